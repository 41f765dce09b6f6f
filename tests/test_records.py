"""Records of finished batches: a day, a quarter of Redis at most, and none of what is set aside."""

from collections.abc import AsyncIterator, Iterator

import numpy as np
import pytest
import redis

from service.settings import Settings
from service.store import records
from service.store.append import Appender
from service.store.entry import BatchStatus, State
from service.store.link import connect
from service.store.names import DEFAULT as names
from service.store.read import Log, Outcome
from service.store.submission import Receipt
from tests.log_entries import NO_NEWS, claimed, submission

X = np.zeros((2, 8, 8, 1), np.uint8)
DAY_S = 86_400


@pytest.fixture
def server(either_server: str) -> Iterator[redis.Redis]:
    connected = connect(either_server)
    yield connected
    connected.close()


@pytest.fixture
async def appender(either_server: str) -> AsyncIterator[Appender]:
    appender = Appender(either_server, Settings())
    yield appender
    await appender.close()


def key(number: int) -> str:
    return f"key-{number:060}"


async def finished(appender: Appender, log: Log, count: int, state: State = "learned") -> list[str]:
    """Accept so many batches and tell that they are finished; return their ids."""
    receipts: list[Receipt] = [
        await appender.append(submission(X, key=key(number))) for number in range(count)
    ]
    outcomes = [
        Outcome(
            number=number,
            status=BatchStatus(batch_id=receipt.batch_id, state=state, n=2, position="7-0"),
            idempotency_key=f"anonymous:{key(number)}",
        )
        for number, receipt in enumerate(receipts)
    ]
    log.tell("7-0", count, outcomes, NO_NEWS)
    return [receipt.batch_id for receipt in receipts]


async def test_the_outcome_of_a_batch_is_told_for_a_day(
    appender: Appender, either_server: str, server: redis.Redis
) -> None:
    [batch_id] = await finished(appender, Log(claimed(either_server)), 1)

    for name in (names.batch(batch_id), names.idempotency(f"anonymous:{key(0)}")):
        lifetime: object = server.ttl(name)
        assert isinstance(lifetime, int)
        assert DAY_S - 60 < lifetime <= DAY_S


async def test_sixty_thousand_batches_within_a_day_keep_their_records(
    either_server: str, server: redis.Redis
) -> None:
    log = Log(claimed(either_server))
    ids = [f"{number:032x}" for number in range(60_000)]
    outcomes = [
        Outcome(
            number=number,
            status=BatchStatus(batch_id=batch_id, state="learned", n=1),
            idempotency_key=None,
        )
        for number, batch_id in enumerate(ids)
    ]

    for start in range(0, len(outcomes), 10_000):
        log.tell("7-0", start, outcomes[start : start + 10_000], NO_NEWS)

    assert server.exists(names.batch(ids[0])) == 1
    assert server.zcard(names.done) == 60_000


async def test_the_oldest_records_go_before_they_take_more_than_their_share(
    appender: Appender, either_server: str, server: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    maxmemory = int(str(server.config_get("maxmemory")["maxmemory"]))
    monkeypatch.setattr(records, "RECORD_BYTES", maxmemory * records.SHARE / 2)

    ids = await finished(appender, Log(claimed(either_server)), 5)

    assert [server.exists(names.batch(one)) for one in ids] == [0, 0, 0, 1, 1]
    kept = [server.exists(names.idempotency(f"anonymous:{key(number)}")) for number in range(5)]
    assert kept == [0, 0, 0, 1, 1]
    assert server.zcard(names.done) == 2


async def test_what_has_expired_is_no_longer_counted(
    appender: Appender, either_server: str, server: redis.Redis
) -> None:
    server.zadd(names.done, {f"{'0' * 32} {key(9)}": 1.0})

    await finished(appender, Log(claimed(either_server)), 2)

    assert server.zcard(names.done) == 2


async def test_the_status_of_what_is_set_aside_is_kept_for_good(
    appender: Appender, either_server: str, server: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "RECORD_BYTES", 10**15)

    [batch_id] = await finished(appender, Log(claimed(either_server)), 1, "quarantined")

    assert server.ttl(names.batch(batch_id)) == -1
    assert server.exists(names.done) == 0


async def test_a_batch_takes_no_more_than_is_reckoned_with(
    appender: Appender, either_server: str, server: redis.Redis
) -> None:
    ids = await finished(appender, Log(claimed(either_server)), 200)

    def used(name: str) -> int:
        found: object = server.memory_usage(name, samples=0)
        assert isinstance(found, int)
        return found

    taken = (
        used(names.batch(ids[0]))
        + used(names.idempotency(f"anonymous:{key(0)}"))
        + used(names.done) / 200
    )
    assert 400 < taken < records.RECORD_BYTES
