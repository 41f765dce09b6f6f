"""What the OpenAPI page says of the bodies of /observe, /labels and /predict.

They are decoded in `codec`, not by pydantic, which would make a Python object of every pixel.
"""

from typing import Any

from service.api.body import IMAGES, JSON, LINES, SAFETENSORS
from service.api.bounds import MAX_LABEL_CHARACTERS


def _nested(levels: int) -> dict[str, Any]:
    """Return the schema of lists of numbers, or of such lists, nested so deep at most."""
    number = {"type": "number"}
    items = number if levels == 1 else {"anyOf": [number, _nested(levels - 1)]}
    return {"type": "array", "items": items, "minItems": 1}


def _binary(what: str) -> dict[str, Any]:
    return {"schema": {"type": "string", "format": "binary", "description": what}}


_X: dict[str, Any] = {
    "description": "Samples: images [B,H,W] or [B,H,W,C], vectors [B,D], series [B,T,C], "
    "as nested lists of numbers; or images as strings, each a PNG or JPEG file in base64.",
    "type": "array",
    "items": {"anyOf": [{"type": "string"}, _nested(3)]},
    "minItems": 1,
}
_DTYPE: dict[str, Any] = {
    "description": "What the numbers of x are; without it the stream's input decides.",
    "enum": ["uint8", "float32", None],
}
_LABEL: list[dict[str, Any]] = [
    {"type": "integer", "minimum": 0, "maximum": 2**63 - 1},
    {"type": "string", "minLength": 1, "maxLength": MAX_LABEL_CHARACTERS},
]
_Y: dict[str, Any] = {
    "description": "One label per sample, integers >= 0 or strings, null for none.",
    "type": ["array", "null"],
    "items": {"anyOf": [*_LABEL, {"type": "null"}]},
}
_SAMPLES = {"type": "object", "required": ["x"], "additionalProperties": False}
_VECTORS = {"x": [[0.2, 1.5, -3.0], [0.1, 1.7, -2.5]], "dtype": "float32"}
_IMAGE_BODIES: dict[str, Any] = dict.fromkeys(
    IMAGES, _binary("One image, resized to the stream's shape.")
)

IDEMPOTENCY_KEY: dict[str, Any] = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "Repeat it when you retry; with NDJSON of at most 56 characters.",
    "schema": {"type": "string", "pattern": "^[A-Za-z0-9_-]{16,64}$"},
}
OBSERVE_BODY: dict[str, Any] = {
    "parameters": [
        IDEMPOTENCY_KEY,
        {
            "name": "label",
            "in": "query",
            "required": False,
            "description": "Label of the image that is the body; of nothing else. Digits are an "
            "integer, unless the stream's labels are strings.",
            "schema": {"type": "string", "minLength": 1, "maxLength": 64},
        },
    ],
    "requestBody": {
        "required": True,
        "content": {
            JSON: {
                "schema": _SAMPLES | {"properties": {"x": _X, "y": _Y, "dtype": _DTYPE}},
                "examples": {
                    "labelled vectors": {"value": _VECTORS | {"y": [0, 1]}},
                    "one without a label": {"value": _VECTORS | {"y": ["walk", None]}},
                },
            },
            SAFETENSORS: _binary(
                "Tensors x (U8 or F32) and, optionally, y (I64, -1 for none); or string labels in "
                'the metadata entry labels, a JSON list ("" for none).'
            ),
            **_IMAGE_BODIES,
            LINES: _binary("A JSON batch a line.")
            | {
                "example": '{"x": [[0.2, 1.5, -3.0]], "y": ["walk"]}\n'
                '{"x": [[0.1, 1.7, -2.5]], "y": ["run"]}\n',
            },
        },
    },
    "responses": {
        "200": {
            "description": "A line for each line of an NDJSON body: what its own request would "
            "have been answered, and its number and status",
            "content": {
                LINES: {
                    "schema": {"type": "string"},
                    "example": '{"line": 1, "status": 202, "batch_id": "3f0c9a52d1b84e6f9a7e2c5b8d'
                    '104f6e", "n": 1, ...}\n{"line": 2, "status": 422, "code": "bad_shape", ...}\n',
                }
            },
        }
    },
}
_SAMPLE_ID = "3f0c9a52d1b84e6f9a7e2c5b8d104f6e:0"
LABELS_BODY: dict[str, Any] = {
    "parameters": [IDEMPOTENCY_KEY],
    "requestBody": {
        "required": True,
        "content": {
            JSON: {
                "schema": {
                    "type": "object",
                    "required": ["labels"],
                    "additionalProperties": False,
                    "properties": {
                        "labels": {
                            "description": "Integers >= 0 or strings, of one kind, by sample id: "
                            "a batch_id, a colon and the number of the sample, from 0.",
                            "type": "object",
                            "minProperties": 1,
                            "propertyNames": {"pattern": "^[0-9a-f]{32}:(0|[1-9][0-9]{0,8})$"},
                            "additionalProperties": {"anyOf": _LABEL},
                        }
                    },
                },
                "examples": {"one late label": {"value": {"labels": {_SAMPLE_ID: 7}}}},
            }
        },
    },
}
_KEY_OF_KEPT = IDEMPOTENCY_KEY | {
    "description": "As of /observe; of what is not kept nobody looks at it.",
    "schema": {"type": "string"},
}
PREDICT_BODY: dict[str, Any] = {
    "parameters": [_KEY_OF_KEPT],
    "requestBody": {
        "required": True,
        "content": {
            JSON: {
                "schema": _SAMPLES | {"properties": {"x": _X, "dtype": _DTYPE}},
                "examples": {"vectors": {"value": _VECTORS}},
            },
            SAFETENSORS: _binary("Tensor x (U8 or F32)."),
            **_IMAGE_BODIES,
        },
    },
}
