"""How schemathesis spells the bodies of ours that are no JSON, and what it does not ask.

What is by design 503 is not asked: a model of a stream that nobody has taught anything, and a
position that the log has not reached.
"""

import re
from typing import Any

import numpy as np
import schemathesis
import tritonclient.http as triton
from hypothesis import strategies as st

from service.api.body import LINES, OCTETS, SAFETENSORS
from service.api.freshness import POSITION
from service.settings import STREAM_NAME
from service.store.entry import encode

TAUGHT, UNKNOWN = "default", "unknown"
"""A stream whose model is served, and a name that no stream has."""
WIDTH = 3
"""Of a sample of it, a vector."""
LONGEST_WAIT_S = 0.05

_VECTORS = st.lists(
    st.lists(st.floats(-10, 10, width=32), min_size=WIDTH, max_size=WIDTH), min_size=1, max_size=4
)


def _tensors(rows: list[list[float]]) -> bytes:
    return encode(np.array(rows, np.float32), None)


def _inference(rows: list[list[float]]) -> bytes:
    """Return a body of the Open Inference Protocol without binary tensors."""
    x = triton.InferInput("x", [len(rows), WIDTH], "FP32")
    x.set_data_from_numpy(np.array(rows, np.float32), binary_data=False)
    body, _ = triton.InferenceServerClient.generate_request_body([x])
    return bytes(body)


for media_type, spell in ((SAFETENSORS, _tensors), (OCTETS, _inference)):
    schemathesis.openapi.media_type(media_type, _VECTORS.map(spell))


@schemathesis.serializer(SAFETENSORS, LINES)
def as_it_is(_: object, value: object) -> bytes:
    """Return a body that is bytes already; of another one its text."""
    data = getattr(value, "data", value)
    return data if isinstance(data, bytes) else str(data).encode()


@schemathesis.hook
def before_call(_: object, case: Any, kwargs: dict[str, Any]) -> None:  # noqa: ANN401
    """Replace what would have to be answered with 503."""
    path, query = case.path_parameters or {}, case.query or {}
    if re.fullmatch(STREAM_NAME, str(path.get("stream", ""))):
        path["stream"] = TAUGHT if path["stream"] < "n" else UNKNOWN
    if re.fullmatch(POSITION, str(query.get("wait_for", ""))):
        query["wait_for"] = "0-0"
    if isinstance(query.get("wait_s"), float | int):
        query["wait_s"] = min(query["wait_s"], LONGEST_WAIT_S)
