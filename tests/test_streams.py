"""Several streams of one service: declared once, apart in everything."""

import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from service.api.schemas_streams import StreamOptions
from service.errors import CorruptState, SettingsError
from service.metrics import WorkerMetrics
from service.settings import OF_A_STREAM, Settings
from service.store.declared import DeclaredStreams, declared_on_disk, settings_of
from service.store.link import connect
from service.store.names import STREAMS, Names
from service.worker.process import Process
from tests.conftest import MakeSettings
from tests.served import assert_problem, running_api
from tests.toy_engine import ToyEngines

WINDOWS = {"name": "windows", "input": "series:4x2"}
IMAGES = np.arange(2 * 64, dtype=np.uint8).reshape(2, 8, 8)
SERIES = np.linspace(-1, 1, 16, dtype=np.float32).reshape(2, 4, 2)
IMAGE_BATCH = {"x": IMAGES.tolist(), "y": [0, 1]}
SERIES_BATCH = {"x": SERIES.tolist(), "y": ["sit", "walk"]}


@contextmanager
def learning(settings: Settings) -> Iterator[Process]:
    """Run the worker's process in a thread of this one."""
    process = Process(settings, ToyEngines(), WorkerMetrics(CollectorRegistry()))
    found: list[BaseException] = []

    def run() -> None:
        try:
            process.run()
        except CorruptState as error:
            found.append(error)

    with closing(process):
        thread = threading.Thread(target=run)
        thread.start()
        yield process
        process.stop()
        thread.join()


async def outcome(api: httpx.AsyncClient, url: str) -> dict[str, Any]:
    """Return what became of a batch, once it is no longer queued."""
    deadline = time.monotonic() + 20
    while True:
        found: dict[str, Any] = (await api.get(url)).json()
        if found["state"] != "queued" or time.monotonic() > deadline:
            return found


async def test_a_stream_is_declared_once_and_the_same_again(api: httpx.AsyncClient) -> None:
    first = await api.post("/streams", json=WINDOWS)
    again = await api.post("/streams", json=WINDOWS)
    other = await api.post("/streams", json=WINDOWS | {"input": "series:4x3"})

    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json()["input"] == "series:4x2"
    assert_problem(other, 409, "stream_exists")


async def test_a_stream_of_the_other_preset_is_declared_by_its_name(api: httpx.AsyncClient) -> None:
    declared = await api.post("/streams", json={"name": "old", "preset": "paper"})

    assert (declared.status_code, declared.json()["preset"]) == (201, "paper")


async def test_all_streams_are_listed_the_default_one_first(api: httpx.AsyncClient) -> None:
    await api.post("/streams", json=WINDOWS)

    listed = (await api.get("/streams")).json()["streams"]

    assert [one["name"] for one in listed] == ["default", "windows"]


@pytest.mark.parametrize(
    ("document", "status", "code"),
    [
        ({"name": "Upper"}, 422, "bad_value"),
        ({"name": "a/../b"}, 422, "bad_value"),
        ({"name": "x" * 33}, 422, "bad_value"),
        ({"name": "default"}, 422, "bad_stream"),
        ({"name": "a", "input": "image:4x4x1"}, 422, "bad_stream"),
        ({"name": "a", "budget": -1}, 422, "bad_stream"),
        ({"name": "a", "threshold": 0.5}, 422, "bad_stream"),
        ({"name": "a", "replay_bytes": 2**40}, 422, "bad_stream"),
        ({"name": "a", "port": 80}, 422, "unknown_field"),
    ],
    ids=str,
)
async def test_a_declaration_that_cannot_be_is_refused(
    api: httpx.AsyncClient, document: dict[str, object], status: int, code: str, redis_server: str
) -> None:
    answer = await api.post("/streams", json=document)

    assert_problem(answer, status, code)
    assert connect(redis_server).exists(STREAMS) == 0


async def test_there_are_at_most_so_many_streams(settings: MakeSettings) -> None:
    async with running_api(settings(insecure=True, max_streams=2)) as api:
        first = await api.post("/streams", json={"name": "a"})
        second = await api.post("/streams", json={"name": "b"})

    assert first.status_code == 201
    assert_problem(second, 409, "too_many_streams")


async def test_a_stream_that_nobody_declared_is_unknown(api: httpx.AsyncClient) -> None:
    assert_problem(await api.post("/streams/other/predict", json={}), 404, "unknown_stream")
    assert_problem(await api.get("/streams/Other/experts"), 422, "bad_parameter")


async def test_a_label_that_was_not_declared_is_refused(
    api: httpx.AsyncClient, redis_server: str
) -> None:
    await api.post("/streams", json=WINDOWS | {"labels": ["sit", "stand"]})

    refused = await api.post("/streams/windows/observe", json=SERIES_BATCH)
    taken = await api.post("/streams/windows/observe", json=SERIES_BATCH | {"y": ["sit", None]})

    assert_problem(refused, 422, "unknown_label")
    assert taken.status_code == 202
    assert connect(redis_server).xlen(Names("windows").log) == 1


async def test_two_streams_of_different_shape_are_learned_side_by_side(
    settings: MakeSettings,
) -> None:
    made = settings(insecure=True)
    async with running_api(made, ToyEngines) as api:
        with learning(made):
            await api.post("/streams", json=WINDOWS)
            image = (await api.post("/observe", json=IMAGE_BATCH)).json()
            window = (await api.post("/streams/windows/observe", json=SERIES_BATCH)).json()
            learned = [await outcome(api, one["status_url"]) for one in (image, window)]

    assert window["status_url"].startswith("/streams/windows/observations/")
    assert [one["state"] for one in learned] == ["learned", "learned"]
    assert [one["step"] for one in learned] == [1, 1]
    assert (made.state_dir / "streams" / "windows" / "checkpoints").is_dir()


async def test_a_stream_is_apart_from_every_other(settings: MakeSettings) -> None:
    made = settings(insecure=True)
    async with running_api(made, ToyEngines) as api:
        await api.post("/streams", json=WINDOWS)
        image = (await api.post("/observe", json=IMAGE_BATCH)).json()
        elsewhere = await api.get(f"/streams/windows/observations/{image['batch_id']}")
        wrong = await api.post("/streams/windows/observe", json=IMAGE_BATCH)
        key = {"Idempotency-Key": "k" * 16}
        both = [
            await api.post("/observe", json=IMAGE_BATCH, headers=key),
            await api.post("/streams/windows/observe", json=SERIES_BATCH, headers=key),
        ]

    assert_problem(elsewhere, 404, "unknown_batch")
    assert_problem(wrong, 422, "schema_mismatch")
    assert [one.status_code for one in both] == [202, 202]


async def test_a_stream_that_has_stopped_stops_no_other(settings: MakeSettings) -> None:
    made = settings(insecure=True)
    async with running_api(made, ToyEngines) as api:
        await api.post("/streams", json=WINDOWS)
        with learning(made):
            window = (await api.post("/streams/windows/observe", json=SERIES_BATCH)).json()
            await outcome(api, window["status_url"])
        redis = connect(str(made.redis_url))
        redis.delete(Names("windows").log)
        with learning(made):
            image = (await api.post("/observe", json=IMAGE_BATCH)).json()
            learned = await outcome(api, image["status_url"])
            deadline = time.monotonic() + 20
            while b"stopped" not in redis.hvals(Names("windows").worker):
                assert time.monotonic() < deadline
            told: Any = redis.hget(Names().worker, "state")

    assert learned["state"] == "learned"
    assert told == b"learning"


async def test_a_declaration_lost_by_redis_or_by_the_disk_comes_back(
    settings: MakeSettings, redis_server: str
) -> None:
    made = settings(insecure=True)
    async with running_api(made) as api:
        await api.post("/streams", json=WINDOWS)
    redis = connect(redis_server)
    with closing(DeclaredStreams(made)) as declared:
        known = declared.all()
        redis.delete(STREAMS)
        again = declared.all()
        (made.state_dir / "streams" / "windows" / "stream.json").unlink()
        once_more = declared.all()

    assert [one.stream for one in known] == ["windows"]
    assert again == once_more == known
    assert redis.hkeys(STREAMS) == [b"windows"]


async def test_an_api_that_starts_without_redis_knows_the_streams(
    settings: MakeSettings, tmp_path: Path
) -> None:
    made = settings(insecure=True)
    async with running_api(made) as api:
        await api.post("/streams", json=WINDOWS)
    with closing(DeclaredStreams(made)) as declared:
        declared.all()
    away = made.model_copy(update={"redis_url": f"unix://{tmp_path}/nobody.sock"})

    async with running_api(away) as api:
        found = await api.get("/streams/windows/experts")

    assert found.status_code == 200
    assert [one.stream for one in declared_on_disk(away)] == ["windows"]


def test_a_stream_has_defaults_of_its_own_and_shares_the_rest(settings: MakeSettings) -> None:
    made = settings(max_experts=3, top_k=2)

    stream = settings_of(made, "other", {"seed": 7})

    assert (stream.seed, stream.max_experts) == (7, Settings().max_experts)
    assert stream.top_k == 2
    assert stream.state_dir == made.state_dir / "streams" / "other"


def test_an_option_that_is_no_streams_is_named(settings: MakeSettings) -> None:
    with pytest.raises(SettingsError, match="port: expected an option of"):
        settings_of(settings(), "other", {"port": 1})


def test_what_may_be_declared_is_what_a_stream_has() -> None:
    assert set(StreamOptions.model_fields) == set(OF_A_STREAM)
