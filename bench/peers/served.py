"""The same snapshot behind LitServe and behind plain FastAPI, as their users would write it.

    python -m bench.peers.served litserve|fastapi STATE_DIR PORT PROCESSES

Body: JSON with `x`, all that LitServe reads; answer: the most probable classes. The model is the
predictor that the service serves, on as many CPU threads. LitServe batches requests, as it advises
for throughput.
"""

import asyncio
import sys
from pathlib import Path
from typing import Any

import numpy as np

from service.engine.load import load_engines
from service.engine.protocol import Array, Prediction, Predictor
from service.store.snapshots import SnapshotReader

TOP = 5


def load(state_dir: Path) -> Predictor:
    """Return the predictor of the newest snapshot."""
    reader = SnapshotReader(state_dir)
    version = reader.newest_version()
    if version is None:
        sys.exit(f"no snapshot in {state_dir}")
    return load_engines(1).predictor(reader.load(version).state)


def samples(predictor: Predictor, document: Any) -> Array:  # noqa: ANN401  it is JSON
    """Return the samples of a request, unchecked."""
    return predictor.schema.canonical(np.array(document["x"], np.uint8))


def answer(found: Prediction, row: int) -> dict[str, Any]:
    """Return what is told of one sample."""
    top = np.argsort(-found.probabilities[row])[:TOP]
    return {
        "labels": [found.classes[top[0]]],
        "probabilities": [found.probabilities[row, top].round(3).tolist()],
        "classes": [[found.classes[one] for one in top]],
        "experts": [int(found.experts[row])],
        "novelty": [float(found.novelty[row])],
    }


def litserve(state_dir: Path, port: int, workers: int) -> None:
    """Serve with LitServe until killed."""
    from bench.peers.lit import serve

    serve(state_dir, port, workers)


def fastapi(state_dir: Path, port: int, _: int) -> None:
    """Serve with FastAPI alone until killed: each request is a forward pass in a thread."""
    import uvicorn
    from fastapi import FastAPI, Request

    predictor = load(state_dir)
    app = FastAPI()

    @app.post("/predict")
    async def predict(request: Request) -> dict[str, Any]:
        """Answer for one sample."""
        x = samples(predictor, await request.json())
        return answer(await asyncio.to_thread(predictor.predict, x), 0)

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="error")


if __name__ == "__main__":
    server, place, *numbers = sys.argv[1:]
    {"litserve": litserve, "fastapi": fastapi}[server](Path(place), *map(int, numbers))
