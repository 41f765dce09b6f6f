"""Requests of the Open Inference Protocol, spelled by hand or by NVIDIA's client."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import tritonclient.http as triton
import uvicorn

from service.api.app import create_app
from service.api.oip_body import HEADER_LENGTH
from service.engine.protocol import Array, Engines
from service.settings import Settings

DATATYPES = {"uint8": "UINT8", "float32": "FP32", "int64": "INT64", "object": "BYTES"}


def tensor(name: str, values: Array, *, binary: bool = True) -> triton.InferInput:
    """Return an input of NVIDIA's client; strings are an array of dtype object."""
    found = triton.InferInput(name, list(values.shape), DATATYPES[values.dtype.name])
    return found.set_data_from_numpy(values, binary_data=binary)


def spelled(*inputs: triton.InferInput) -> tuple[bytes, dict[str, str]]:
    """Return body and headers of a request, as NVIDIA's client spells it."""
    body, length = triton.InferenceServerClient.generate_request_body(list(inputs))
    return body, {} if length is None else {HEADER_LENGTH: str(length)}


def by_hand(document: object, binary: bytes = b"") -> tuple[bytes, dict[str, str]]:
    """Return body and headers of a request that says what it likes."""
    text = document if isinstance(document, bytes) else json.dumps(document).encode()
    return text + binary, {HEADER_LENGTH: str(len(text))}


def an_input(**said: object) -> dict[str, object]:
    """Return a good binary input of two vectors of two values, but for what is said."""
    good: dict[str, object] = {"name": "x", "datatype": "FP32", "shape": [2, 2]}
    if "data" not in said:
        good["parameters"] = {"binary_data_size": 16}
    return {name: value for name, value in (good | said).items() if value is not None}


def arrays(answer: dict[str, Any]) -> dict[str, Array]:
    """Return an answer of /predict as the outputs of an inference."""
    return {
        "label": np.array(answer["labels"]),
        "probabilities": np.array(answer["probabilities"], np.float32),
        "classes": np.array(answer["classes"]),
        "expert": np.array(answer["experts"]),
        "novelty": np.array(answer["novelty"], np.float32),
    }


def decoded(values: Array) -> Array:
    """Return strings for the bytes of a BYTES tensor, all else as it is."""
    if values.dtype != object:
        return values
    texts = [one.decode() if isinstance(one, bytes) else one for one in values.ravel()]
    return np.array(texts).reshape(values.shape)


@contextmanager
def listening(settings: Settings, load_engines: Callable[[], Engines]) -> Iterator[str]:
    """Run the API on a port of this machine; yield host and port."""
    server = uvicorn.Server(
        uvicorn.Config(create_app(settings, load_engines), port=0, ws="none", log_config=None)
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
