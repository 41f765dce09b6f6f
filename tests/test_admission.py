"""What is refused for want of room, when the service is ready, and that both end by themselves."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
import redis

from service.settings import Settings
from service.store import admission, directory
from service.store.append import Appender
from service.store.link import connect
from service.store.names import DEFAULT as names
from tests.conftest import MakeSettings
from tests.served import DOCUMENT, assert_problem, logged, running_api

MIB = 2**20


@pytest.fixture(autouse=True)
def _always_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "CHECK_INTERVAL_S", 0)


@pytest.fixture
def server(redis_server: str) -> Iterator[redis.Redis]:
    connected = connect(redis_server)
    yield connected
    connected.close()


@pytest.fixture
async def tolerant(settings: MakeSettings) -> AsyncIterator[httpx.AsyncClient]:
    """An API that is ready with a weaker server."""
    async with running_api(settings(insecure=True, allow_weaker_durability=True)) as api:
        yield api


def set_disk(monkeypatch: pytest.MonkeyPatch, *, free: int, checkpoint: int = 0) -> None:
    """Let the disk have so much room."""
    monkeypatch.setattr(admission, "_disk", lambda _: (free, checkpoint))


# The disk


async def test_a_disk_below_the_floor_is_refused_until_there_is_room(
    api: httpx.AsyncClient, redis_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_disk(monkeypatch, free=100 * MIB)
    refused = await api.post("/observe", json=DOCUMENT)
    not_ready = await api.get("/readyz")

    set_disk(monkeypatch, free=600 * MIB)
    taken = await api.post("/observe", json=DOCUMENT)
    ready = await api.get("/readyz")

    problem = "expected 512 MiB free on the disk of the state directory, got 100 MiB"
    assert_problem(refused, 503, "disk_full")
    assert refused.json()["detail"] == problem
    assert (not_ready.status_code, not_ready.json()["problems"]) == (503, [problem])
    assert (taken.status_code, ready.status_code) == (202, 200)
    assert len(logged(redis_server)) == 1


async def test_two_of_the_newest_checkpoint_must_fit_beside_the_floor(
    settings: MakeSettings, redis_server: str
) -> None:
    made = settings(disk_floor_bytes=5)
    root = made.state_dir / "checkpoints"
    root.mkdir()
    for seq, size in ((1, 900), (2, 1000)):
        directory.write(root / f"ckpt-{seq:08}", {"file": b"x" * size}, {}, linked={})
    appender = Appender(redis_server, made)

    facts = await appender.facts()

    await appender.close()
    assert facts.disk_needed == 2 * 1000 + 5
    assert facts.disk_free > 0


def test_a_state_directory_that_is_not_there_yet_has_the_disk_of_its_parent(
    tmp_path: Path,
) -> None:
    free, checkpoint = admission._disk(tmp_path / "not" / "yet")

    assert free > 0
    assert checkpoint == 0


async def test_a_retry_is_recognised_even_when_the_disk_is_full(
    api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = {"Idempotency-Key": "0123456789abcdef"}
    await api.post("/observe", json=DOCUMENT, headers=key)
    set_disk(monkeypatch, free=0)

    again = await api.post("/observe", json=DOCUMENT, headers=key)

    assert again.status_code == 202


async def test_room_is_looked_at_once_a_second(
    api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "CHECK_INTERVAL_S", 1.0)
    await api.post("/observe", json=DOCUMENT)
    set_disk(monkeypatch, free=0)

    at_once = await api.post("/observe", json=DOCUMENT)

    assert at_once.status_code == 202


# The worker


async def test_a_worker_that_has_stopped_makes_the_service_not_ready(
    api: httpx.AsyncClient, server: redis.Redis
) -> None:
    server.hset(names.worker, mapping={"state": "stopped", "problem": "gap of 5", "epoch": 1})
    stopped = await api.get("/readyz")
    seen = (await api.get("/metrics")).text
    server.hset(names.worker, mapping={"state": "learning", "problem": ""})
    learning = await api.get("/readyz")

    assert stopped.json()["problems"] == ["the worker has stopped: gap of 5"]
    assert (stopped.status_code, learning.status_code) == (503, 200)
    assert 'levit_worker_stopped{stream="default"} 1.0' in seen


async def test_what_is_observed_while_the_worker_has_stopped_is_kept(
    api: httpx.AsyncClient, server: redis.Redis, redis_server: str
) -> None:
    server.hset(names.worker, mapping={"state": "stopped", "problem": "gap of 5"})

    answer = await api.post("/observe", json=DOCUMENT)

    assert answer.status_code == 202
    assert len(logged(redis_server)) == 1


# A weaker server


@pytest.fixture
def weaker(server: redis.Redis) -> Iterator[None]:
    """Redis that syncs once a second."""
    server.config_set("appendfsync", "everysec")
    yield
    server.config_set("appendfsync", "always")


@pytest.mark.usefixtures("weaker")
async def test_a_weaker_server_may_be_allowed_and_is_told_in_every_answer(
    tolerant: httpx.AsyncClient, capsys: pytest.CaptureFixture[str]
) -> None:
    ready = await tolerant.get("/readyz")
    answers = [(await tolerant.post("/observe", json=DOCUMENT)).json() for _ in range(3)]
    text = (await tolerant.get("/metrics")).text

    assert ready.status_code == 200
    assert [answer["durability"] for answer in answers] == ["everysec"] * 3
    assert "levit_redis_ready 0.0" in text
    assert capsys.readouterr().out.count("weaker_durability_allowed") == 1


@pytest.mark.usefixtures("weaker")
async def test_without_leave_a_weaker_server_is_not_ready(api: httpx.AsyncClient) -> None:
    assert (await api.get("/readyz")).status_code == 503


async def test_metrics_tell_the_free_space(
    api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_disk(monkeypatch, free=4096)

    assert "levit_disk_free_bytes 4096.0" in (await api.get("/metrics")).text


async def test_metrics_tell_each_bound_beside_what_it_bounds(
    api: httpx.AsyncClient, api_settings: Settings
) -> None:
    text = (await api.get("/metrics")).text

    told = {line.split()[0]: float(line.split()[1]) for line in text.splitlines() if line[0] != "#"}
    assert told['levit_stream_backlog_limit{stream="default"}'] == api_settings.max_backlog
    assert told['levit_disk_needed_bytes{stream="default"}'] == api_settings.disk_floor_bytes
    assert 0 < told["levit_redis_memory_bytes"] < told["levit_redis_memory_limit_bytes"]


def test_the_floor_is_half_a_gibibyte() -> None:
    assert Settings().disk_floor_bytes == 512 * MIB
