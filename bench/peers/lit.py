"""The snapshot behind LitServe: requests batched, computed in worker processes."""

from pathlib import Path
from typing import Any

import numpy as np
from fastapi import Request
from litserve import LitAPI, LitServer

from bench.peers.served import answer, load, samples
from service.engine.protocol import Array, Prediction

BATCH = 64
"""Most requests in one of LitServe's forward passes; the service's default is the same."""
BATCH_S = 0.002
"""How long LitServe waits for company; its own examples wait longer."""


class Api(LitAPI):  # type: ignore[misc, unused-ignore]  # not typed
    """What LitServe's users write."""

    def __init__(self, state_dir: Path) -> None:
        super().__init__(max_batch_size=BATCH, batch_timeout=BATCH_S, api_path="/predict")
        self._state_dir = state_dir

    def setup(self, device: str) -> None:  # noqa: ARG002  LitServe passes it
        """Load the snapshot in the worker's process."""
        self.predictor = load(self._state_dir)

    def decode_request(self, request: Request) -> Array:
        """Return the samples of a request, whose JSON LitServe has read."""
        return samples(self.predictor, request)

    def batch(self, inputs: list[Array]) -> Array:
        """Return the samples of all requests."""
        return np.concatenate(inputs)

    def predict(self, x: Array) -> Prediction:
        """Return the answers for all of them."""
        return self.predictor.predict(x)

    def unbatch(self, output: Prediction) -> list[dict[str, Any]]:
        """Return the answer of each request."""
        return [answer(output, row) for row in range(len(output.experts))]

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        """Return it as it is: JSON."""
        return output


def serve(state_dir: Path, port: int, workers: int) -> None:
    """Serve until killed."""
    server = LitServer(Api(state_dir), accelerator="cpu", workers_per_device=workers)
    server.run(host="127.0.0.1", port=port, generate_client_file=False, log_level="error")
