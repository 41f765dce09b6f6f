"""safetensors bodies to arrays: tensors `x` and `y`, string labels in the metadata.

The header is checked here before the library sees the body: the library takes doubled names,
extents of 0, a header of 100 MB and any metadata, and leaks KeyError and ValueError for dtypes
and ranks it cannot give to numpy.
Format: 8 bytes of header length N (little endian), N bytes of JSON
{name: {dtype, shape, data_offsets: [begin, end]}, "__metadata__": {string: string}}, the bytes.
Dimension key: B batch; a sample has the shape of its InputSchema.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import safetensors
import safetensors.numpy

from service.api.bounds import check_batch_size
from service.api.json_body import brief, parse_json
from service.engine.protocol import Array, Labels
from service.errors import BadRequest, Unprocessable

MAX_HEADER_BYTES = 64 * 2**10
MAX_RANK = 4
_ITEM_BYTES = {"U8": 1, "F32": 4, "I64": 8}
_METADATA = "__metadata__"


@dataclass(frozen=True, slots=True)
class _Tensor:
    """What the header says of one tensor."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_tensors(
    body: bytes, *, max_batch: int, labels_allowed: bool
) -> tuple[Array, Labels | None]:
    """Return the samples [B, ...] as uint8 or float32, and the labels, of a safetensors body.

    Raises:
        ServiceError: naming what is wrong with the body.
    """
    tensors, metadata = _read_header(body)
    _check_names(tensors, metadata, labels_allowed=labels_allowed)
    x = tensors["x"]
    if x.dtype == "I64":
        raise Unprocessable("bad_dtype", "expected x of dtype U8 or F32, got I64")
    check_batch_size(x.shape[0] if x.shape else 0, max_batch)
    y = tensors.get("y")
    if y is not None and (y.dtype, len(y.shape)) != ("I64", 1):
        raise Unprocessable(
            "bad_label", f"expected y of dtype I64 and rank 1, got {y.dtype} of rank {len(y.shape)}"
        )
    strings = _string_labels(metadata["labels"]) if "labels" in metadata else None
    try:
        arrays = safetensors.numpy.load(body)
    except safetensors.SafetensorError:
        raise BadRequest(
            "bad_safetensors", "expected a safetensors body without holes and overlaps"
        ) from None
    return arrays["x"], arrays.get("y") if strings is None else strings


def _read_header(body: bytes) -> tuple[dict[str, _Tensor], Mapping[str, Any]]:
    """Return the tensors by name, sizes checked, and the metadata."""
    length = int.from_bytes(body[:8], "little")
    if length > MAX_HEADER_BYTES:
        raise BadRequest(
            "bad_safetensors",
            f"expected a header of at most {MAX_HEADER_BYTES} bytes, got {length}",
        )
    if len(body) < 8 + length:
        raise BadRequest(
            "bad_safetensors", f"expected a header of {length} bytes, got {max(0, len(body) - 8)}"
        )
    header = parse_json(body[8 : 8 + length])
    if not isinstance(header, dict):
        raise BadRequest("bad_safetensors", "expected a header that is a JSON object")
    metadata = header.pop(_METADATA, {})
    if not isinstance(metadata, dict):
        raise BadRequest("bad_safetensors", f"expected {_METADATA} that is a JSON object")
    tensors = {name: _read_tensor(said) for name, said in header.items()}
    end = max((tensor.end for tensor in tensors.values()), default=0)
    if 8 + length + end != len(body):
        raise BadRequest(
            "bad_safetensors",
            f"expected {8 + length + end} bytes, as the header says, got {len(body)}",
        )
    return tensors, metadata


def _read_tensor(said: object) -> _Tensor:
    """Return one tensor of the header, its dtype, rank, extents and byte count checked."""
    match said:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [begin, end]}:
            pass
        case _:
            raise BadRequest(
                "bad_safetensors", "expected dtype, shape and data_offsets of a tensor"
            )
    if dtype not in _ITEM_BYTES:
        raise Unprocessable("bad_dtype", f"expected dtype U8, F32 or I64, got {dtype[:16]!a}")
    if len(shape) > MAX_RANK:
        raise Unprocessable("bad_shape", f"expected rank <= {MAX_RANK}, got {len(shape)}")
    if any(type(number) is not int for number in (*shape, begin, end)):
        raise BadRequest("bad_safetensors", "expected integers in shape and data_offsets")
    if min(shape, default=1) < 1:
        raise Unprocessable("bad_shape", f"expected every extent >= 1, got {brief(min(shape))}")
    if begin < 0 or end - begin != _ITEM_BYTES[dtype] * prod(shape):
        raise BadRequest("bad_safetensors", "expected data_offsets that span the shape exactly")
    return _Tensor(dtype, tuple(shape), begin, end)


def _check_names(
    tensors: Mapping[str, _Tensor], metadata: Mapping[str, Any], *, labels_allowed: bool
) -> None:
    """Check that there is x, at most one kind of labels, and nothing else."""
    allowed = {"x", "y"} if labels_allowed else {"x"}
    unknown = sorted(tensors.keys() - allowed)
    if unknown:
        raise Unprocessable(
            "unknown_field", f"expected only the tensors {sorted(allowed)}, got {unknown[0][:40]!a}"
        )
    unknown = sorted(metadata.keys() - ({"labels"} if labels_allowed else set()))
    if unknown:
        raise Unprocessable(
            "unknown_field",
            f"expected no metadata but string labels of /observe, got {unknown[0][:40]!a}",
        )
    if "x" not in tensors:
        raise Unprocessable("missing_field", "expected the tensor x, got none")
    if "y" in tensors and "labels" in metadata:
        raise Unprocessable("mixed_labels", "expected labels in y or in the metadata, got both")


def _string_labels(text: object) -> Sequence[str]:
    """Return the labels that the metadata entry `labels` spells."""
    labels = parse_json(text.encode(errors="surrogatepass")) if isinstance(text, str) else None
    if not isinstance(labels, list) or any(not isinstance(label, str) for label in labels):
        raise Unprocessable("bad_label", "expected metadata labels as a JSON list of strings")
    return labels
