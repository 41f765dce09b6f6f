"""What the documents of the Open Inference Protocol V2 look like, for the OpenAPI page.

Bodies are decoded in `oip_body`, and answers spelled in `oip_answer`, where tensors may be binary.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from service.api.body import JSON, OCTETS
from service.api.body_schemas import IDEMPOTENCY_KEY
from service.api.oip_body import HEADER_LENGTH, MAX_ID_CHARACTERS, OUTPUTS


class Refusal(BaseModel):
    """Every answer from 400 up: `code: what was expected and what was got`."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"error": "bad_shape: expected x of rank 1 to 4, got 5"}]}
    )
    error: str


class Server(BaseModel):
    """What the server is."""

    name: str
    version: str
    extensions: list[str]
    """Of the protocol: `binary_tensor_data`, and `observe`, which is ours."""


class Live(BaseModel):
    """Whether the process answers."""

    live: Literal[True] = True


class Ready(BaseModel):
    """Whether a model is served."""

    ready: Literal[True] = True


class ModelReady(BaseModel):
    """Whether the stream's model is served."""

    name: str
    ready: Literal[True] = True


class TensorMetadata(BaseModel):
    """What an input or output is."""

    name: str
    datatype: str
    shape: list[int]
    """-1 where it differs from request to request."""


class ModelMetadata(BaseModel):
    """What the served model takes and answers."""

    name: str
    versions: list[str]
    """The one that is served."""
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class OutputTensor(BaseModel):
    """One output, its values in `data` or, where `parameters` say how many bytes, behind."""

    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, int] | None = None
    data: list[int | float | str | None] | None = None


class AnsweredBy(BaseModel):
    """Which model answered."""

    model_version: int
    position: str
    """Id of the newest log entry that this model has learned."""


class Inferred(BaseModel):
    """The answer of an inference."""

    model_name: str
    model_version: str
    id: str | None = None
    """The one of the request."""
    parameters: AnsweredBy
    outputs: list[OutputTensor]


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return FastAPI's `responses` for the refusals a route may answer with."""
    return {status: {"model": Refusal, "description": "Refused"} for status in statuses}


_PARAMETERS: dict[str, Any] = {"type": "object", "additionalProperties": True}


def _tensor(name: str, datatypes: list[str], data: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["name", "datatype", "shape"],
        "additionalProperties": False,
        "properties": {
            "name": {"const": name},
            "datatype": {"enum": datatypes},
            "shape": {"type": "array", "items": {"type": "integer"}, "maxItems": 4},
            "parameters": _PARAMETERS,
            "data": data,
        },
    }


_X = _tensor("x", ["UINT8", "FP32", "FP64"], {"type": "array", "items": {}})
_Y = _tensor("y", ["INT64", "INT32", "BYTES"], {"type": "array", "items": {}})
_ASKED: dict[str, Any] = {
    "name": "x",
    "datatype": "FP32",
    "shape": [2, 3],
    "data": [0.2, 1.5, -3.0, 0.1, 1.7, -2.5],
}


_OUTPUT: dict[str, Any] = {
    "type": "object",
    "required": ["name"],
    "properties": {
        "name": {"enum": list(OUTPUTS)},
        "parameters": {
            "type": "object",
            "additionalProperties": False,
            "properties": {"binary_data": {"type": "boolean"}},
        },
    },
}
_HEADER: dict[str, Any] = {
    "name": HEADER_LENGTH,
    "in": "header",
    "required": False,
    "description": "Length of the JSON object in bytes, where binary tensors follow it.",
    "schema": {"type": "integer", "minimum": 0},
}


def _body(inputs: list[dict[str, Any]], example: list[dict[str, Any]]) -> dict[str, Any]:
    request = {
        "type": "object",
        "required": ["inputs"],
        "additionalProperties": False,
        "properties": {
            "id": {"type": ["string", "null"], "maxLength": MAX_ID_CHARACTERS},
            "model_name": {},
            "model_version": {},
            "parameters": _PARAMETERS,
            "inputs": {"type": "array", "items": {"oneOf": inputs}, "maxItems": len(inputs)},
            "outputs": {"type": ["array", "null"], "items": _OUTPUT, "uniqueItems": True},
        },
    }
    return {
        "parameters": [_HEADER],
        "requestBody": {
            "required": True,
            "content": {
                JSON: {"schema": request, "example": {"inputs": example}},
                OCTETS: {
                    "schema": {
                        "type": "string",
                        "format": "binary",
                        "description": "The JSON object, as long as the header says, and the bytes "
                        "of the tensors that have a binary_data_size.",
                    }
                },
            },
        },
    }


INFER_BODY = _body([_X], [_ASKED])
OBSERVE_BODY = _body(
    [_X, _Y], [_ASKED, {"name": "y", "datatype": "INT64", "shape": [2], "data": [0, -1]}]
)
OBSERVE_BODY["parameters"].append(IDEMPOTENCY_KEY)
INFERRED: dict[int | str, dict[str, Any]] = {
    200: {"content": {OCTETS: {"schema": {"type": "string", "format": "binary"}}}}
}
"""What FastAPI does not know of the answer: it may hold binary tensors."""
