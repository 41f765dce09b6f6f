"""Tensors of an Open Inference Protocol request, from JSON and from binary data, to arrays.

A tensor is a list in its `data`, flat in row-major order or nested, or the next `binary_data_size`
bytes behind the JSON object, in the order of `inputs`: little endian, and of BYTES each element as
4 bytes of length and UTF-8. No size is believed: each is compared with the shape and with the bytes
that are there before anything is read.
Dimension key: B batch; a sample has the shape of its InputSchema.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Final, TypeGuard

import numpy as np

from service.api.json_body import INT64_MAX, MAX_RANK, brief, read_numbers
from service.engine.protocol import Array, Labels
from service.errors import BadRequest, Unprocessable

MAX_EXTENT: Final = 2**31 - 1
LENGTH_BYTES: Final = 4
"""Of the length before each element of BYTES."""
_NUMBERS = {"UINT8": "u1", "INT32": "<i4", "INT64": "<i8", "FP32": "<f4", "FP64": "<f8"}
_DATATYPES = {"x": ("UINT8", "FP32", "FP64"), "y": ("INT64", "INT32", "BYTES")}
_FIELDS = ("name", "shape", "datatype", "parameters", "data")


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """An input; its values are a list or raw bytes."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    listed: list[Any] | None
    raw: memoryview


def read_inputs(inputs: object, binary: memoryview, allowed: Sequence[str]) -> dict[str, Tensor]:
    """Return the inputs by name; all of `binary` belongs to one of them.

    Args:
        inputs: the list of the request.
        binary: what follows the JSON object.
        allowed: names that inputs may have.

    Raises:
        ServiceError: `bad_inference`, `unknown_field`, `bad_dtype` or `bad_shape`.
    """
    if not isinstance(inputs, list):
        raise BadRequest("bad_inference", "expected inputs as a list of tensors")
    found: dict[str, Tensor] = {}
    start = 0
    for said in inputs:
        tensor = _read_input(said, binary[start:], allowed)
        if tensor.name in found:
            raise BadRequest(
                "bad_inference", f"expected the input {tensor.name} once, got it twice"
            )
        found[tensor.name] = tensor
        start += len(tensor.raw)
    if start != len(binary):
        raise BadRequest(
            "bad_inference",
            f"expected {start} bytes behind the JSON object, as the inputs say, got {len(binary)}",
        )
    return found


def _read_input(said: object, binary: memoryview, allowed: Sequence[str]) -> Tensor:
    """Return one input, whose raw bytes are the beginning of `binary` if it has any."""
    match said:
        case {"name": str(name), "datatype": str(datatype), "shape": list(shape), **rest}:
            pass
        case _:
            raise BadRequest("bad_inference", "expected name, datatype and shape of an input")
    if name not in allowed:
        raise Unprocessable(
            "unknown_field", f"expected only the inputs {', '.join(allowed)}, got {name[:40]!a}"
        )
    refuse_unknown(rest, _FIELDS, f"fields of input {name}")
    if datatype not in _DATATYPES[name]:
        raise Unprocessable(
            "bad_dtype",
            f"expected {name} of datatype {', '.join(_DATATYPES[name])}, got {datatype[:16]!a}",
        )
    extents = _extents(name, shape)
    size = parameters(rest).get("binary_data_size")
    listed = rest.get("data")
    if (size is None) == (listed is None) or not isinstance(listed, list | None):
        raise BadRequest(
            "bad_inference", f"expected either data, a list, or binary_data_size of input {name}"
        )
    return Tensor(name, datatype, extents, listed, _raw(name, size or 0, binary))


def _extents(name: str, shape: list[Any]) -> tuple[int, ...]:
    """Return the shape; 0 samples are let through, as an empty batch has a refusal of its own."""
    if not 1 <= len(shape) <= MAX_RANK:
        raise Unprocessable(
            "bad_shape", f"expected {name} of rank 1 to {MAX_RANK}, got {len(shape)}"
        )
    for axis, extent in enumerate(shape):
        if not is_integer(extent):
            raise BadRequest("bad_inference", f"expected integers in the shape of input {name}")
        if not (axis > 0) <= extent <= MAX_EXTENT:
            raise Unprocessable(
                "bad_shape",
                f"expected extents of {name} from 1 to {MAX_EXTENT}, got {brief(extent)}",
            )
    return tuple(shape)


def _raw(name: str, size: object, binary: memoryview) -> memoryview:
    if not is_integer(size):
        raise BadRequest("bad_inference", f"expected an integer binary_data_size of input {name}")
    if not 0 <= size <= len(binary):
        raise BadRequest(
            "bad_inference",
            f"expected binary_data_size of input {name} from 0 to {len(binary)}, the bytes that "
            f"are left, got {brief(size)}",
        )
    return binary[:size]


def samples_of(x: Tensor) -> Array:
    """Return the samples [B, ...] as uint8 or float32, an array of its own.

    Raises:
        ServiceError: the values do not fit datatype or shape.
    """
    if x.listed is not None:
        return read_numbers(x.listed, x.shape, "uint8" if x.datatype == "UINT8" else "float32")
    with np.errstate(over="ignore"):  # becomes infinite, and is refused as such
        return _numbers(x).astype(np.uint8 if x.datatype == "UINT8" else np.float32)


def labels_of(y: Tensor) -> Labels:
    """Return the labels: integers with -1 for none, or strings with "" for none.

    Raises:
        ServiceError: the values do not fit datatype or shape.
    """
    if len(y.shape) != 1:
        raise Unprocessable("bad_label", f"expected y of rank 1, got {len(y.shape)}")
    if y.listed is not None and len(y.listed) != y.shape[0]:
        raise Unprocessable(
            "label_count", f"expected {y.shape[0]} labels in data of y, got {len(y.listed)}"
        )
    if y.datatype == "BYTES":
        return _texts(y.raw, y.shape[0]) if y.listed is None else _listed_texts(y.listed)
    return _numbers(y).astype(np.int64) if y.listed is None else _listed_integers(y.listed)


def _numbers(tensor: Tensor) -> Array:
    """Return the values of the raw bytes, a view of the body."""
    dtype = np.dtype(_NUMBERS[tensor.datatype])
    expected = dtype.itemsize * prod(tensor.shape)
    if len(tensor.raw) != expected:
        raise BadRequest(
            "bad_inference",
            f"expected {brief(expected)} bytes of input {tensor.name}, as its shape says, "
            f"got {len(tensor.raw)}",
        )
    return np.frombuffer(tensor.raw, dtype).reshape(tensor.shape)


def _listed_integers(listed: list[Any]) -> Labels:
    for index, label in enumerate(listed):
        if not is_integer(label) or not -1 <= label <= INT64_MAX:
            got = brief(label) if is_integer(label) else "no integer"
            raise Unprocessable(
                "bad_label",
                f"expected labels of integers from -1 (none) to {INT64_MAX}, got {got} "
                f"at sample {index}",
            )
    return np.array(listed, np.int64)


def _listed_texts(listed: list[Any]) -> list[str]:
    for index, label in enumerate(listed):
        if not isinstance(label, str):
            raise Unprocessable(
                "bad_label", f"expected strings in y, got another value at sample {index}"
            )
    return listed


def _texts(raw: memoryview, n: int) -> list[str]:
    """Return the `n` elements of a tensor of BYTES."""
    found: list[str] = []
    end = 0
    while end < len(raw) and len(found) < n:
        start = end + LENGTH_BYTES
        end = start + int.from_bytes(raw[end:start], "little")
        try:
            found.append(str(raw[start:end], "utf-8"))
        except UnicodeDecodeError:
            raise Unprocessable(
                "bad_label", f"expected labels of UTF-8, got another byte at sample {len(found)}"
            ) from None
    if (end, len(found)) != (len(raw), n):
        raise BadRequest(
            "bad_inference",
            f"expected {n} elements of BYTES in y, each behind its length in {LENGTH_BYTES} bytes, "
            f"got {len(raw)} bytes of another layout",
        )
    return found


def parameters(owner: Mapping[Any, Any]) -> Mapping[str, Any]:
    """Return the parameters of a request, an input or an output.

    Raises:
        BadRequest: `bad_inference`.
    """
    said = owner.get("parameters", {})
    if not isinstance(said, dict):
        raise BadRequest("bad_inference", "expected parameters as a JSON object")
    return said


def refuse_unknown(found: Mapping[Any, Any], known: Sequence[str], what: str) -> None:
    """Check that all names are known ones.

    Raises:
        Unprocessable: `unknown_field`.
    """
    for name in found:
        if name not in known:
            raise Unprocessable(
                "unknown_field", f"expected only the {what} {', '.join(known)}, got {name[:40]!a}"
            )


def is_integer(value: object) -> TypeGuard[int]:
    """Say whether a JSON value is an integer; true and false are none."""
    return type(value) is int
