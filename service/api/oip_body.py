"""Requests of the Open Inference Protocol V2, with its binary tensor data extension.

A body is a JSON object {id?, parameters?, inputs, outputs?}; where binary tensors follow it, the
header `Inference-Header-Content-Length` says how long it is.
Dimension key: B batch; a sample has the shape of its InputSchema.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from service.api.bounds import check_batch_size
from service.api.json_body import parse_json
from service.api.oip_tensors import labels_of, parameters, read_inputs, refuse_unknown, samples_of
from service.engine.protocol import Array, Labels
from service.errors import BadRequest, Unprocessable

Output = Literal["label", "probabilities", "classes", "expert", "novelty"]
OUTPUTS: Final[tuple[Output, ...]] = ("label", "probabilities", "classes", "expert", "novelty")
HEADER_LENGTH: Final = "Inference-Header-Content-Length"
MAX_ID_CHARACTERS: Final = 128
_FIELDS = ("id", "model_name", "model_version", "parameters", "inputs", "outputs")


@dataclass(frozen=True, slots=True, eq=False)
class Inference:
    """What a request asks, and of which samples."""

    id: str | None
    """Comes back with the answer."""
    x: Array
    """[B, ...] uint8 or float32; whether they are the stream's is not checked yet."""
    labels: Labels | None
    """As they came, not checked yet; None where there is no input y."""
    outputs: Mapping[Output, bool]
    """What is asked for, in order, and whether as binary data."""


def json_length(said: str | None, body_bytes: int) -> int:
    """Return the length of the JSON object that a body of `body_bytes` begins with.

    Args:
        said: the header `Inference-Header-Content-Length`; None: there is no binary data.
        body_bytes: length of the body.

    Raises:
        BadRequest: `bad_inference`.
    """
    if said is None:
        return body_bytes
    fits = said.isascii() and said.isdecimal() and len(said) <= len(str(body_bytes))
    if not fits or int(said) > body_bytes:
        raise BadRequest(
            "bad_inference",
            f"expected {HEADER_LENGTH} from 0 to {body_bytes}, the bytes of the body, "
            f"got {said[:24]!a}",
        )
    return int(said)


def read_inference(
    body: bytes, json_bytes: int, *, max_batch: int, labels_allowed: bool
) -> Inference:
    """Return what `body` spells.

    Args:
        body: the request's body.
        json_bytes: how many of its bytes are the JSON object; the rest is binary data.
        max_batch: most samples.
        labels_allowed: whether there may be an input y.

    Raises:
        ServiceError: 400, 413 or 422, naming what is wrong with the body.
    """
    document = parse_json(body[:json_bytes])
    if not isinstance(document, dict):
        raise BadRequest("bad_inference", "expected a JSON object with inputs")
    refuse_unknown(document, _FIELDS, "fields")
    allowed = ("x", "y") if labels_allowed else ("x",)
    tensors = read_inputs(document.get("inputs"), memoryview(body)[json_bytes:], allowed)
    if "x" not in tensors:
        raise Unprocessable("missing_field", "expected the input x, got none")
    x, y = tensors["x"], tensors.get("y")
    check_batch_size(x.shape[0], max_batch)
    if y is not None and y.shape[0] != x.shape[0]:
        raise Unprocessable(
            "label_count", f"expected {x.shape[0]} labels, one a sample, got {y.shape[0]}"
        )
    return Inference(
        id=_id(document.get("id")),
        x=samples_of(x),
        labels=None if y is None else labels_of(y),
        outputs=_outputs(document.get("outputs"), parameters(document)),
    )


def _outputs(said: object, common: Mapping[str, Any]) -> dict[Output, bool]:
    """Return the outputs to send, all where none is named, and whether as binary data."""
    binary = _flag(common, "binary_data_output", default=False)
    if said is None or said == []:
        return dict.fromkeys(OUTPUTS, binary)
    if not isinstance(said, list):
        raise BadRequest("bad_inference", "expected outputs as a list of names")
    found: dict[Output, bool] = {}
    for one in said:
        name = one.get("name") if isinstance(one, dict) else None
        output = next((known for known in OUTPUTS if known == name), None)
        if output is None or output in found:
            got = f"{name[:40]!a}" if isinstance(name, str) else "no name"
            raise Unprocessable(
                "unknown_field",
                f"expected outputs among {', '.join(OUTPUTS)}, each once, got {got}",
            )
        asked = parameters(one)
        refuse_unknown(asked, ("binary_data",), f"parameters of output {output}")
        found[output] = _flag(asked, "binary_data", default=binary)
    return found


def _flag(said: Mapping[str, Any], name: str, *, default: bool) -> bool:
    flag = said.get(name, default)
    if not isinstance(flag, bool):
        raise BadRequest("bad_inference", f"expected {name} as true or false")
    return flag


def _id(said: object) -> str | None:
    if said is None or (isinstance(said, str) and len(said) <= MAX_ID_CHARACTERS):
        return said
    raise BadRequest("bad_inference", f"expected an id of at most {MAX_ID_CHARACTERS} characters")
