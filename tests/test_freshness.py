"""/predict?wait_for= reads your writes; how stale the served model is."""

import asyncio
import re
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from service.api.freshness import Freshness, check_learned
from service.api.predictor import Follower
from service.errors import Unavailable
from service.settings import Settings
from service.store.link import connect
from service.store.names import DEFAULT as names
from service.store.snapshots import SnapshotInfo
from service.store.unlearned import Unlearned
from tests.listening import listening
from tests.patience import BUSY
from tests.served import (
    DOCUMENT,
    PIXELS,
    assert_problem,
    load_pixel_engines,
    publish,
    running_api,
    until_served,
)

SAMPLES = {"x": PIXELS.tolist()}
NEVER = "99999999999999-0"


async def test_a_model_that_has_learned_the_position_answers_at_once(
    serving: httpx.AsyncClient,
) -> None:
    for position in ("7-0", "6-9", "0-0"):
        answer = await serving.post("/predict", params={"wait_for": position}, json=SAMPLES)

        assert (answer.status_code, answer.json()["position"]) == (200, "7-0")


async def test_a_request_waits_for_the_model_that_has_learned_the_position(
    serving: httpx.AsyncClient, api_settings: Settings
) -> None:
    asked = asyncio.create_task(
        serving.post("/predict", params={"wait_for": "9-1", "wait_s": 20}, json=SAMPLES)
    )
    await asyncio.sleep(0.05)
    publish(api_settings.state_dir, classes=["a"], position="9-0")
    await until_served(serving, version=2)
    assert not asked.done()
    publish(api_settings.state_dir, classes=["a"], position="10-0")

    answer = await asked

    assert (answer.status_code, answer.json()["position"]) == (200, "10-0")


async def test_a_position_that_is_not_learned_in_time_is_refused_with_both_positions(
    serving: httpx.AsyncClient,
) -> None:
    began = time.monotonic()

    answer = await serving.post("/predict", params={"wait_for": "7-1", "wait_s": 0.3}, json=SAMPLES)

    assert 0.25 < time.monotonic() - began < BUSY
    assert_problem(answer, 503, "not_learned_yet")
    assert "up to 7-1" in answer.json()["detail"]
    assert "reached 7-0" in answer.json()["detail"]


async def test_before_the_first_model_a_request_can_wait_for_it(
    api: httpx.AsyncClient, api_settings: Settings
) -> None:
    asked = asyncio.create_task(
        api.post("/predict", params={"wait_for": "7-0", "wait_s": 20}, json=SAMPLES)
    )
    await asyncio.sleep(0.05)
    publish(api_settings.state_dir, classes=[5, 6, 7])

    assert (await asked).json()["labels"] == [5, 6]


async def test_waiting_works_while_redis_is_away(api_settings: Settings) -> None:
    publish(api_settings.state_dir, classes=[5, 6, 7])
    away = api_settings.model_copy(update={"redis_url": "unix:///nowhere.sock"})

    async with running_api(away) as client:
        await until_served(client)
        asked = asyncio.create_task(
            client.post("/predict", params={"wait_for": "8-0", "wait_s": 20}, json=SAMPLES)
        )
        await asyncio.sleep(0.05)
        publish(api_settings.state_dir, classes=[5], position="8-0")

        assert (await asked).json()["position"] == "8-0"


@pytest.mark.parametrize(
    "query",
    [
        {"wait_for": "7"},
        {"wait_for": "7-"},
        {"wait_for": "-7-0"},
        {"wait_for": "7-0\n"},
        {"wait_for": "\u0667-0"},
        {"wait_for": "1" * 21 + "-0"},
        {"wait_for": "7-0", "wait_s": "31"},
        {"wait_for": "7-0", "wait_s": "-1"},
        {"wait_for": "7-0", "wait_s": "nan"},
        {"wait_for": "7-0", "wait_s": "inf"},
    ],
    ids=str,
)
async def test_what_is_no_position_or_no_time_is_refused(
    serving: httpx.AsyncClient, query: dict[str, str]
) -> None:
    answer = await serving.post("/predict", params=query, json=SAMPLES)

    assert_problem(answer, 422, "bad_parameter")


def test_who_waits_when_the_process_stops_is_answered_at_once(api_settings: Settings) -> None:
    publish(api_settings.state_dir, classes=[5])
    with ThreadPoolExecutor(1) as thread, listening(api_settings, load_pixel_engines) as served:
        asked = thread.submit(
            httpx.post,
            f"http://127.0.0.1:{served.port}/predict",
            params={"wait_for": NEVER, "wait_s": "30"},
            json=SAMPLES,
            timeout=30,
        )
        time.sleep(0.5)
        stopped_at = time.monotonic()
    answer = asked.result()

    assert time.monotonic() - stopped_at < BUSY * 2
    assert (answer.status_code, answer.json()["code"]) == (503, "not_learned_yet")


@pytest.fixture
async def followed(api_settings: Settings) -> AsyncIterator[tuple[Follower, Freshness]]:
    """A follower that looks when it is told to, and who waits for it."""
    follower = Follower(api_settings, load_pixel_engines)
    freshness = Freshness(follower)
    freshness.start()
    yield follower, freshness
    freshness.stop()


async def test_who_waits_looks_once_a_swap(
    followed: tuple[Follower, Freshness], api_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    follower, freshness = followed
    looks: list[str] = []

    def facts(self: Follower) -> SnapshotInfo | None:
        looks.append("once")
        return None if self.current is None else self.current.info

    monkeypatch.setattr(Follower, "facts", property(facts))
    waiting = asyncio.create_task(freshness.until("8-0", 20))
    await asyncio.sleep(0.3)
    assert len(looks) == 1

    for position in ("7-0", "8-0"):
        publish(api_settings.state_dir, classes=[5], position=position)
        await asyncio.to_thread(follower.follow_once, load_pixel_engines())
    await waiting

    assert len(looks) <= 4


def test_an_answer_of_a_model_that_went_back_is_refused() -> None:
    with pytest.raises(Unavailable, match="up to 8-0, got one that has reached 7-0"):
        check_learned("8-0", "7-0")


async def test_staleness_is_the_age_of_the_first_entry_behind_the_model(
    serving: httpx.AsyncClient, api_settings: Settings
) -> None:
    async def told() -> float:
        return sample((await serving.get("/metrics")).text, "levit_staleness_seconds")

    assert await told() == 0
    first, second = [(await serving.post("/observe", json=DOCUMENT)).json() for _ in range(2)]
    await asyncio.sleep(0.2)
    waited = await told()
    publish(api_settings.state_dir, classes=[5], position=first["position"])
    await until_served(serving, version=2)
    shorter = await told()
    publish(api_settings.state_dir, classes=[5], position=second["position"])
    await until_served(serving, version=3)

    assert 0.2 <= waited < 30
    assert 0 < shorter < 30
    assert await told() == 0


async def test_an_entry_of_a_clock_that_was_set_back_has_no_negative_age(
    redis_server: str,
) -> None:
    redis = connect(redis_server)
    in_an_hour = int((time.time() + 3600) * 1000)
    redis.xadd(names.log, {"field": "value"}, id=f"{in_an_hour}-0")
    redis.close()
    unlearned = Unlearned(redis_server)

    assert await unlearned.age_s("0-0") == 0
    await unlearned.close()


async def test_the_payload_of_the_oldest_entry_is_read_once(redis_server: str) -> None:
    redis = connect(redis_server)
    redis.xadd(names.log, {"payload": b"x" * 1000}, id="5-0")
    unlearned = Unlearned(redis_server)
    await unlearned.age_s("0-0")
    redis.delete(names.log)
    redis.close()

    assert await unlearned.age_s("0-0") > 1e6
    assert await unlearned.age_s("5-0") == 0
    await unlearned.close()


def sample(text: str, name: str) -> float:
    """Return the value of a metric of the default stream."""
    [value] = re.findall(rf'^{name}{{stream="default"}} (.+)$', text, re.MULTILINE)
    return float(value)
