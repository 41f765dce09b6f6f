"""Answers of the Open Inference Protocol V2: JSON tensors, and binary ones behind the JSON object.

They say what the answer of /predict says, as tensors: where that lists no classes for a sample, the
label is -1 or "", the probabilities are 0; a novelty that is not finite is null in JSON.
Dimension key: B batch, K classes listed per sample.
"""

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from fastapi.responses import Response

from service.api.body import JSON, OCTETS
from service.api.oip_body import HEADER_LENGTH, Inference, Output
from service.api.predictor import Answer
from service.engine.protocol import Array, Label

_DTYPES = {"INT64": "<i8", "FP32": "<f4"}


@dataclass(frozen=True, slots=True, eq=False)
class _Tensor:
    """One output before it is spelled."""

    datatype: str
    values: Array
    """float64 for FP32: JSON has its few decimals, not the nearest float32 in many."""

    def listed(self) -> list[Any]:
        """Return the values in row-major order, as JSON has them."""
        flat = self.values.ravel()
        if self.datatype != "FP32":
            return flat.tolist()
        return [value if abs(value) < float("inf") else None for value in flat.tolist()]

    def raw(self) -> bytes:
        """Return the values in row-major order, as binary data."""
        if self.datatype == "BYTES":
            texts = [text.encode() for text in self.values.ravel().tolist()]
            return b"".join(struct.pack("<I", len(text)) + text for text in texts)
        return self.values.astype(_DTYPES[self.datatype]).tobytes()


def labels_datatype(known: Sequence[Label]) -> str:
    """Return the datatype of labels, given the classes that the model knows."""
    return "BYTES" if known and isinstance(known[0], str) else "INT64"


def render(answer: Answer, asked: Inference, *, stream: str) -> Response:
    """Return the response that carries the outputs that were asked for."""
    tensors = _tensors(answer)
    told: list[dict[str, Any]] = []
    binary: list[bytes] = []
    for name, as_binary in asked.outputs.items():
        tensor = tensors[name]
        output: dict[str, Any] = {
            "name": name,
            "datatype": tensor.datatype,
            "shape": list(tensor.values.shape),
        }
        if as_binary:
            binary.append(tensor.raw())
            output["parameters"] = {"binary_data_size": len(binary[-1])}
        else:
            output["data"] = tensor.listed()
        told.append(output)
    document = {
        "model_name": stream,
        "model_version": str(answer.info.version),
        "parameters": {"model_version": answer.info.version, "position": answer.info.position},
        "outputs": told,
    }
    if asked.id is not None:
        document["id"] = asked.id
    spelled = json.dumps(document, allow_nan=False, separators=(",", ":")).encode()
    if not binary:
        return Response(spelled, media_type=JSON)
    return Response(
        b"".join([spelled, *binary]),
        media_type=OCTETS,
        headers={HEADER_LENGTH: str(len(spelled))},
    )


def _tensors(answer: Answer) -> Mapping[Output, _Tensor]:
    datatype = labels_datatype(answer.known)
    missing: Label = "" if datatype == "BYTES" else -1
    # One more class than is known: what the label is where there is none.
    known = np.array([*answer.known, missing], object if datatype == "BYTES" else np.int64)
    answered = answer.answered[:, np.newaxis]
    classes = known[np.where(answered, answer.top, -1)]
    no_label = np.full(len(answer.experts), missing, known.dtype)
    return {
        "label": _Tensor(datatype, classes[:, 0] if classes.shape[1] else no_label),
        "probabilities": _Tensor("FP32", np.where(answered, answer.probabilities, 0.0)),
        "classes": _Tensor(datatype, classes),
        "expert": _Tensor("INT64", answer.experts),
        "novelty": _Tensor("FP32", answer.novelty),
    }
