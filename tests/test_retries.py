"""Retries: whatever answers get lost and however many come at once, a key is one batch."""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from redis.exceptions import ResponseError

from service.errors import Unavailable
from service.settings import Settings
from service.store import append, link
from service.store.append import Appender, batch_id_of
from service.store.entry import BatchStatus
from service.store.link import connect, redis_errors
from service.store.names import DEFAULT as names
from service.store.names import RECORD_LIFETIME_S
from tests.conftest import MakeSettings
from tests.log_entries import batches, submission
from tests.lossy_link import LossyLink, lossy_link
from tests.patience import BUSY
from tests.served import DOCUMENT, PIXELS, assert_problem, logged, running_api

X = PIXELS[..., None]
KEY = "0123456789abcdef"
HEADER = {"Idempotency-Key": KEY}


@pytest.fixture
async def lossy(redis_server: str, tmp_path: Path) -> AsyncIterator[LossyLink]:
    """A link to Redis that can lose answers."""
    async with lossy_link(redis_server, tmp_path) as between:
        yield between


@pytest.fixture
async def appender(lossy: LossyLink, settings: MakeSettings) -> AsyncIterator[Appender]:
    """An appender behind the lossy link."""
    appender = Appender(lossy.url, settings())
    yield appender
    await appender.close()


@pytest.fixture
async def direct(redis_server: str, settings: MakeSettings) -> AsyncIterator[Appender]:
    """An appender that loses nothing."""
    appender = Appender(redis_server, settings())
    yield appender
    await appender.close()


# Lost answers


async def test_a_lost_answer_is_503_and_never_repeated_by_itself(
    appender: Appender, lossy: LossyLink, redis_server: str
) -> None:
    lossy.losses = 1

    with pytest.raises(Unavailable, match="outcome is unknown"):
        await appender.append(submission(X))

    assert len(logged(redis_server)) == 1


async def test_control_a_lost_answer_taken_for_a_lost_race_appends_twice(
    appender: Appender, lossy: LossyLink, redis_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "lost_connection", lambda _: None)
    lossy.losses = 1

    await appender.append(submission(X))

    assert len(logged(redis_server)) == 2


async def test_a_retry_after_a_lost_answer_is_told_of_the_first(
    appender: Appender, lossy: LossyLink, redis_server: str
) -> None:
    lossy.losses = 1
    with pytest.raises(Unavailable):
        await appender.append(submission(X, key=KEY))

    receipt = await appender.append(submission(X, key=KEY))

    [entry] = logged(redis_server)
    assert (receipt.replayed, receipt.batch_id) == (True, entry.batch_id)


async def test_forty_lost_answers_double_nothing(
    lossy: LossyLink, settings: MakeSettings, redis_server: str
) -> None:
    lossy.losses = 40
    async with running_api(settings(insecure=True, redis_url=lossy.url)) as api:
        statuses = [
            (await api.post("/observe", json=DOCUMENT, headers={"Idempotency-Key": f"{KEY}{n}"}))
            for n in [*range(40), *range(40)]
        ]

    assert [one.status_code for one in statuses] == [503] * 40 + [202] * 40
    assert all("Retry-After" in one.headers for one in statuses[:40])
    assert len(logged(redis_server)) == 40


async def test_a_silent_redis_is_503_within_three_seconds(
    appender: Appender, lossy: LossyLink
) -> None:
    await appender.append(submission(X))
    lossy.silent = True
    started = time.monotonic()

    with pytest.raises(Unavailable) as refused:
        await appender.append(submission(X))

    assert time.monotonic() - started < BUSY * 3
    assert refused.value.code == "redis_unavailable"


# Many at once


async def test_fifty_retries_at_once_are_one_entry(direct: Appender, redis_server: str) -> None:
    receipts = await asyncio.gather(*(direct.append(submission(X, key=KEY)) for _ in range(50)))

    assert len(logged(redis_server)) == 1
    assert [receipt.replayed for receipt in receipts].count(False) == 1
    assert {receipt.batch_id for receipt in receipts} == {batch_id_of(f"anonymous:{KEY}")}


async def test_control_without_watch_fifty_retries_are_many_entries_of_one_id(
    direct: Appender, redis_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for record in ("idempotency", "batch"):
        monkeypatch.setattr(direct._names, record, lambda _: f"levit:unwatched:{uuid.uuid4()}")

    await asyncio.gather(*(direct.append(submission(X, key=KEY)) for _ in range(50)))

    entries = logged(redis_server)
    assert len(entries) == 50
    assert len({entry.batch_id for entry in entries}) == 1  # the second line: learned once


async def test_control_without_derived_ids_too_nothing_tells_that_they_are_one(
    direct: Appender, redis_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(direct._names, "idempotency", lambda _: f"levit:unwatched:{uuid.uuid4()}")
    monkeypatch.setattr(append, "batch_id_of", lambda _: uuid.uuid4().hex)

    await asyncio.gather(*(direct.append(submission(X, key=KEY)) for _ in range(50)))

    assert len({entry.batch_id for entry in logged(redis_server)}) == 50


# What a key is worth once its record is gone


async def test_the_position_is_written_down_for_a_later_retry(
    settings: MakeSettings, redis_server: str
) -> None:
    first = Appender(redis_server, settings())
    receipt = await first.append(submission(X, key=KEY))
    await first.close()  # waits for what is still to be written
    second = Appender(redis_server, settings())

    again = await second.append(submission(X, key=KEY))

    await second.close()
    assert again.position == receipt.position is not None


async def test_writing_the_position_down_prolongs_nothing_and_brings_nothing_back(
    settings: MakeSettings, redis_server: str
) -> None:
    redis = connect(redis_server)
    appender = Appender(redis_server, settings())
    await appender.append(submission(X, key=KEY))
    redis.delete(names.idempotency(f"anonymous:{KEY}"))  # the worker needed the room
    await appender.append(submission(X, key=f"{KEY}2"))

    await appender.close()

    lifetime: object = redis.ttl(names.idempotency(f"anonymous:{KEY}2"))
    assert isinstance(lifetime, int)
    assert 0 < lifetime <= RECORD_LIFETIME_S
    assert lifetime > RECORD_LIFETIME_S - 60
    redis.close()


async def test_a_batch_whose_key_has_expired_is_still_recognised_by_its_status(
    direct: Appender, redis_server: str
) -> None:
    first = await direct.append(submission(X, key=KEY))
    redis = connect(redis_server)
    redis.delete(names.idempotency(f"anonymous:{KEY}"))
    learned = BatchStatus(
        batch_id=first.batch_id, state="learned", n=2, position="7-0", step=3, expert=0
    )
    redis.set(names.batch(first.batch_id), learned.to_record())
    redis.close()

    again = await direct.append(submission(X, key=KEY))

    assert (again.replayed, again.state, again.position) == (True, "learned", "7-0")
    assert len(logged(redis_server)) == 1


async def test_a_batch_of_which_every_record_is_gone_comes_again_under_its_old_id(
    direct: Appender, redis_server: str
) -> None:
    first = await direct.append(submission(X, key=KEY))
    redis = connect(redis_server)
    redis.delete(names.idempotency(f"anonymous:{KEY}"), names.batch(first.batch_id))
    redis.close()

    again = await direct.append(submission(X, key=KEY))

    assert not again.replayed
    assert [entry.batch_id for entry in logged(redis_server)] == [first.batch_id] * 2


async def test_a_replayed_answer_tells_what_became_of_the_batch(
    settings: MakeSettings, redis_server: str
) -> None:
    async with running_api(settings(insecure=True)) as api:
        first = (await api.post("/observe", json=DOCUMENT, headers=HEADER)).json()
        aside = BatchStatus(batch_id=first["batch_id"], state="quarantined", n=2, reason="why")
        redis = connect(redis_server)
        redis.set(names.batch(first["batch_id"]), aside.to_record())
        redis.close()

        again = (await api.post("/observe", json=DOCUMENT, headers=HEADER)).json()

    assert (first["state"], again["state"]) == ("queued", "quarantined")


async def test_a_service_may_require_keys(settings: MakeSettings, redis_server: str) -> None:
    async with running_api(settings(insecure=True, require_idempotency_key=True)) as api:
        without = await api.post("/observe", json=DOCUMENT)
        with_key = await api.post("/observe", json=DOCUMENT, headers=HEADER)

    assert_problem(without, 400, "idempotency_key_required")
    assert with_key.status_code == 202
    assert len(logged(redis_server)) == 1


# Redis that refuses


async def test_a_full_redis_is_503_and_stores_nothing(
    settings: MakeSettings, redis_server: str
) -> None:
    redis = connect(redis_server)
    limit = str(redis.config_get("maxmemory")["maxmemory"])
    async with running_api(settings(insecure=True)) as api:
        await api.post("/observe", json=DOCUMENT)  # from now on it believes that there is room
        redis.config_set("maxmemory", 2**20)

        refused = await api.post("/observe", json=DOCUMENT, headers=HEADER)

        redis.config_set("maxmemory", limit)
        taken = await api.post("/observe", json=DOCUMENT, headers=HEADER)
    redis.close()

    assert_problem(refused, 503, "backlog_full")
    assert taken.status_code == 202
    assert len(logged(redis_server)) == 2


def test_a_redis_that_cannot_write_to_its_disk_is_named() -> None:
    with pytest.raises(Unavailable) as refused, redis_errors():
        raise ResponseError("MISCONF Errors writing to the AOF file: No space left on device")

    assert (refused.value.code, refused.value.retry_after_s) == ("disk_full", 1)


async def test_without_redis_every_route_answers_503(tmp_path: Path) -> None:
    absent = Settings(insecure=True, state_dir=tmp_path, redis_url=f"unix://{tmp_path}/none.sock")
    async with running_api(absent) as api:
        answers: list[httpx.Response] = [
            await api.post("/observe", json=DOCUMENT, headers=HEADER),
            await api.get(f"/observations/{'0' * 32}"),
        ]

    for answer in answers:
        assert_problem(answer, 503, "redis_unavailable")


def test_a_stream_of_batches_without_keys_has_ids_of_its_own() -> None:
    keys = [one.idempotency_key for one in batches(3)]

    assert keys == [None] * 3
    assert len({batch_id_of(key) for key in keys}) == 3


def test_the_record_of_a_key_holds_no_more_than_a_retry_needs() -> None:
    record = json.loads(append._idempotency_record(submission(X, key=KEY), "7-0"))

    assert set(record) == {"digest", "position"}
