"""The real API in this process, for tests: a numpy predictor behind published snapshots,
what is sent to it, and what must hold of its answers and of Redis."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import httpx
import numpy as np
from numpy.typing import NDArray

from service.api.app import create_app
from service.engine.explanation import Explanation, Heat
from service.engine.protocol import (
    Array,
    Engines,
    EngineState,
    ExpertInfo,
    Label,
    MemberId,
    Prediction,
    Summary,
)
from service.inputs import InputSchema
from service.settings import Settings
from service.store.entry import Entry
from service.store.link import connect
from service.store.member import encode, member_name
from service.store.names import DEFAULT as names
from service.store.snapshots import SnapshotInfo, SnapshotWriter, StreamFacts
from service.timeline import Timeline

SCHEMA = InputSchema.parse("image:8x8x1")
PIXELS = np.arange(128, dtype=np.uint8).reshape(2, 8, 8)
DOCUMENT = {"x": PIXELS.tolist(), "y": [1, None]}
UNANSWERED = 255
"""First pixel of a sample for which the predictor knows no class."""


class PixelPredictor:
    """Answers with the class that the first pixel of a sample names, modulo the classes."""

    lost = False

    def __init__(self, classes: list[Label]) -> None:
        self.classes = classes
        self.schema = SCHEMA

    def predict(self, x: Array) -> Prediction:
        pixels = x.reshape(len(x), -1)[:, 0]
        first = pixels.astype(np.int64) % len(self.classes)
        probabilities = np.full((len(x), len(self.classes)), 0.1, np.float32)
        probabilities[np.arange(len(x)), first] = 0.1234567
        probabilities[pixels == UNANSWERED] = 0
        novelty = x.reshape(len(x), -1).mean(axis=1, dtype=np.float32)
        return Prediction(
            classes=self.classes,
            probabilities=probabilities,
            experts=np.full(len(x), 3),
            novelty=novelty,
        )

    def explain(self, x: Array) -> Explanation:
        """Say that expert 3 and half as much expert 1 answer, looking at the upper left."""
        return Explanation(
            ids=[1, 3],
            weights=np.tile(np.array([1 / 3, 2 / 3], np.float32), (len(x), 1)),
            parts=[{"network": 1.0}] * len(x),
            novelty=x.reshape(len(x), -1).mean(axis=1, dtype=np.float32),
            heat=[Heat("attention", np.eye(2, dtype=np.float32))] * len(x),
        )

    def features(self, x: Array) -> NDArray[np.float32]:
        return x.reshape(len(x), -1).astype(np.float32)

    def draw(self, expert: int, n: int) -> Array:
        """Return images as bright as the expert's id says, smaller than the stream's."""
        return np.full((n, 4, 4, 1), expert, np.uint8)


class PixelEngines:
    """Makes predictors of snapshots whose values name the classes."""

    def predictor(self, state: EngineState) -> PixelPredictor:
        return PixelPredictor(state.values["classes"])


def load_pixel_engines() -> Engines:
    return cast(Engines, PixelEngines())


def publish(
    state_dir: Path,
    *,
    classes: list[Label],
    position: str = "7-0",
    timeline: Timeline | None = None,
    experts: Sequence[ExpertInfo] = (),
) -> SnapshotInfo:
    """Publish a model of `classes`, as the worker would."""
    state = EngineState(
        frozen={},
        served={"weights": np.zeros(2, np.float32)},
        training={},
        members=np.empty((0, 2), np.int64),
        values={"classes": classes},
    )
    summary = Summary(
        step=5,
        classes=classes,
        experts=experts,
        prequential_by_class=[None] * len(classes),
        replay_by_class=[0] * len(classes),
    )
    return SnapshotWriter(state_dir).publish(
        state,
        summary,
        position=position,
        quarantined=0,
        stream=StreamFacts((timeline or Timeline()).dump()),
        checkpoint=None,
    )


@asynccontextmanager
async def running_api(
    settings: Settings, load_engines: Callable[[], Engines] = load_pixel_engines
) -> AsyncIterator[httpx.AsyncClient]:
    """Run the API's lifespan; yield a client whose requests go straight into the app."""
    app = create_app(settings, load_engines)
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://localhost") as client,
    ):
        yield client


async def until_served(client: httpx.AsyncClient, *, version: int = 1) -> None:
    while (await client.get("/experts")).json()["model_version"] < version:  # noqa: ASYNC110  HTTP has no event
        await asyncio.sleep(0.01)


def remember(url: str, members: Mapping[MemberId, tuple[Array, Label | None]]) -> None:
    """Put samples into the replay memory, as the worker would."""
    redis = connect(url)
    fields: dict[Any, Any] = {member_name(id_): encode(*members[id_]) for id_ in members}
    redis.hset(names.replay, mapping=fields)
    redis.close()


def stored(url: str) -> list[str]:
    """Return everything that Redis holds, by name."""
    redis = connect(url)
    try:
        found: Any = redis.keys()
        return sorted(name.decode() for name in found)
    finally:
        redis.close()


def logged(url: str) -> list[Entry]:
    """Return the entries of the log."""
    redis = connect(url)
    try:
        found: Any = redis.xrange(names.log)
        return [
            Entry.from_fields(number, position.decode(), fields)
            for number, (position, fields) in enumerate(found, 1)
        ]
    finally:
        redis.close()


def assert_problem(answer: httpx.Response, status: int, code: str) -> None:
    said = answer.json()
    assert (answer.status_code, said["status"], said["code"]) == (status, status, code)
    assert answer.headers["content-type"] == "application/problem+json"
    assert set(said) == {"type", "title", "status", "code", "detail"}
    assert ("Retry-After" in answer.headers) == (status == 503)
