"""Redis stopped or silent: /observe refuses soon, /predict goes on, all recovers alone."""

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.settings import Settings
from service.store.server import EmbeddedServer, bundled_binary
from tests.conftest import MakeSettings
from tests.patience import BUSY
from tests.served import (
    DOCUMENT,
    PIXELS,
    assert_problem,
    publish,
    running_api,
    until_served,
)


@pytest.fixture
def mortal_redis(tmp_path: Path) -> Iterator[EmbeddedServer]:
    """A Redis of this test alone, which it may stop."""
    server = EmbeddedServer(Settings(state_dir=tmp_path / "own"), bundled_binary())
    server.start()
    yield server
    server.stop()


@pytest.fixture
def silent_redis() -> Iterator[str]:
    """An address that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"redis://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture(params=["stopped", "silent"])
def absent_redis(
    request: pytest.FixtureRequest, mortal_redis: EmbeddedServer, silent_redis: str
) -> str:
    if request.param == "silent":
        return silent_redis
    mortal_redis.stop()
    return mortal_redis.url


async def test_without_redis_predict_answers_and_observe_is_503_within_three_seconds(
    settings: MakeSettings, state_dir: Path, absent_redis: str
) -> None:
    publish(state_dir, classes=[5, 6, 7])

    async with running_api(settings(insecure=True, redis_url=absent_redis)) as client:
        await until_served(client)
        predicted = await client.post("/predict", json={"x": PIXELS.tolist()})
        started = time.monotonic()
        observed = await client.post("/observe", json=DOCUMENT)
        elapsed_s = time.monotonic() - started
        kept = await client.post("/predict?keep=true", json={"x": PIXELS.tolist()})
        ready = await client.get("/readyz")
        live = await client.get("/livez")
        metrics = await client.get("/metrics")

    assert predicted.status_code == 200
    assert_problem(observed, 503, "redis_unavailable")
    assert_problem(kept, 503, "redis_unavailable")
    assert elapsed_s < BUSY * 3
    assert (ready.status_code, ready.json()["status"]) == (503, "not_ready")
    assert ready.headers["Retry-After"] == "1"
    assert live.status_code == 200
    assert "levit_redis_ready 0.0" in metrics.text


async def test_observe_recovers_when_redis_is_back(
    settings: MakeSettings, mortal_redis: EmbeddedServer
) -> None:
    async with running_api(settings(insecure=True, redis_url=mortal_redis.url)) as client:
        await client.post("/observe", json=DOCUMENT)
        mortal_redis.stop()
        refused = await client.post("/observe", json=DOCUMENT)
        mortal_redis.start()
        accepted = await client.post("/observe", json=DOCUMENT)

    assert refused.status_code == 503
    assert accepted.status_code == 202


async def test_without_redis_and_model_predict_is_not_ready(
    settings: MakeSettings, absent_redis: str
) -> None:
    async with running_api(settings(insecure=True, redis_url=absent_redis)) as client:
        answer = await client.post("/predict", json={"x": PIXELS.tolist()})

    assert_problem(answer, 503, "not_ready")


async def test_without_redis_answers_are_explained_but_for_their_neighbours(
    settings: MakeSettings, state_dir: Path, absent_redis: str
) -> None:
    publish(state_dir, classes=[5, 6, 7])

    async with running_api(settings(insecure=True, redis_url=absent_redis)) as client:
        await until_served(client)
        answer = await client.post("/predict?explain=true", json={"x": PIXELS.tolist()})

    assert answer.status_code == 200
    for one in answer.json()["explanations"]:
        assert (one["nearest"], one["nearest_reason"]) == (None, "redis does not answer")
        assert one["heat"]["rows"] == [[1, 0], [0, 1]]
