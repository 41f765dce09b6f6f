"""The log, its records and the replay members, on the embedded server and on Debian's."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import redis

from service.engine.protocol import Labels
from service.errors import Conflict, CorruptState, Misused, ServiceError, Unavailable, Unprocessable
from service.inputs import InputSchema
from service.settings import Settings
from service.store import admission, entry
from service.store.append import Appender
from service.store.aside import SetAside
from service.store.entry import BatchStatus, Entry, Header
from service.store.link import connect
from service.store.names import DEFAULT as names
from service.store.read import Log, Outcome
from service.store.replay import ReplayStore
from service.store.stream_ids import START
from service.store.stream_schema import StreamSchema
from service.store.submission import Submission
from tests.log_entries import NO_NEWS, SCHEMA, claimed, submission

X = np.arange(2 * 64, dtype=np.uint8).reshape(2, 8, 8, 1)
Y = np.array([0, 1])
LARGE = np.zeros((8000, 8, 8, 1), np.uint8)
HEADER = Header(batch_id="b", schema=SCHEMA, n=2)


@pytest.fixture
async def appender(either_server: str) -> AsyncIterator[Appender]:
    appender = Appender(either_server, Settings())
    yield appender
    await appender.close()


@pytest.fixture
def server(either_server: str) -> redis.Redis:
    return connect(either_server)


async def refusal(appender: Appender, refused: Submission) -> ServiceError:
    with pytest.raises(ServiceError) as raised:
        await appender.append(refused)
    return raised.value


# Entries


@pytest.mark.parametrize(
    "labels",
    [None, np.array([3, -1]), ["cat", ""]],
    ids=["unlabelled", "integers", "strings"],
)
async def test_an_entry_comes_back_as_it_was_sent(
    appender: Appender, either_server: str, labels: Labels | None
) -> None:
    receipt = await appender.append(submission(X, labels, key="k" * 16))

    [(position, fields)] = Log(claimed(either_server)).read(START, count=8, block_ms=10)
    found = Entry.from_fields(1, position, fields)

    np.testing.assert_array_equal(found.x, X)
    assert found.batch_id == receipt.batch_id
    assert found.position == receipt.position
    assert found.idempotency_key == "k" * 16
    assert (found.labels is None) == (labels is None)
    assert list(found.labels if found.labels is not None else []) == list(
        labels if labels is not None else []
    )


def test_grey_images_without_a_channel_axis_get_one() -> None:
    fields = HEADER.to_fields(entry.encode(X[..., 0], None))

    found = Entry.from_fields(1, "1-0", {k.encode(): _bytes(v) for k, v in fields.items()})

    assert found.x.shape == (2, 8, 8, 1)


@pytest.mark.parametrize("index", [8, 100, -1], ids=["header", "middle", "last byte"])
def test_a_flipped_byte_of_a_payload_is_detected(index: int) -> None:
    payload = entry.encode(X, Y)
    fields = HEADER.to_fields(payload)
    damaged = bytearray(payload)
    damaged[index] ^= 1
    raw = {k.encode(): _bytes(v) for k, v in fields.items()} | {b"payload": bytes(damaged)}

    with pytest.raises(CorruptState, match="sha256"):
        Entry.from_fields(1, "1-0", raw)


def test_an_entry_of_a_later_version_is_not_guessed_at() -> None:
    fields = HEADER.to_fields(entry.encode(X, Y))
    raw = {k.encode(): _bytes(v) for k, v in fields.items()} | {b"version": b"2"}

    with pytest.raises(CorruptState, match="version 2"):
        Entry.from_fields(1, "1-0", raw)


# Appending


async def test_the_first_batch_settles_the_schema(appender: Appender) -> None:
    await appender.append(submission(X))
    before_labels = await appender.stream_schema()
    await appender.append(submission(X, Y))

    assert before_labels == StreamSchema(SCHEMA, None)
    assert await appender.stream_schema() == StreamSchema(SCHEMA, "int")


async def test_a_declared_input_settles_the_schema_before_the_first_batch(
    either_server: str,
) -> None:
    appender = Appender(either_server, Settings(input="vector:3"))

    refused = await refusal(appender, submission(X))

    assert refused.code == "schema_mismatch"
    assert await appender.stream_schema() == StreamSchema(InputSchema.parse("vector:3"), None)
    await appender.close()


async def test_a_refused_batch_leaves_no_trace(appender: Appender, server: redis.Redis) -> None:
    await appender.append(submission(X, Y))
    before = {key: server.dump(key) for key in server.scan_iter()}

    codes = [
        (await refusal(appender, submission(np.zeros((1, 9, 9, 1), np.uint8)))).code,
        (await refusal(appender, submission(X, ["cat", "dog"]))).code,
    ]

    assert codes == ["schema_mismatch", "label_kind_mismatch"]
    assert {key: server.dump(key) for key in server.scan_iter()} == before


async def test_two_first_batches_that_differ_do_not_both_win(
    appender: Appender, server: redis.Redis
) -> None:
    vectors = submission(np.zeros((2, 5), np.float32))

    outcomes = await asyncio.gather(
        appender.append(submission(X)), appender.append(vectors), return_exceptions=True
    )

    refused = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
    assert [type(error) for error in refused] == [Unprocessable]
    assert server.xlen(names.log) == 1


async def test_a_class_over_the_limit_is_refused(either_server: str) -> None:
    appender = Appender(either_server, Settings(max_classes=3))
    other_process = Appender(either_server, Settings(max_classes=3))
    await appender.append(submission(X, Y))
    await other_process.append(submission(X, np.array([1, 2])))

    refused = await refusal(appender, submission(X, np.array([0, 3])))
    await appender.append(submission(X, np.array([0, 2])))

    assert refused.code == "too_many_classes"
    assert refused.message == "expected at most 3 classes in a stream, got 4"
    await appender.close()
    await other_process.close()


async def test_a_backlog_over_the_limit_is_refused(either_server: str) -> None:
    appender = Appender(either_server, Settings(max_backlog=2))
    await appender.append(submission(X))
    second = await appender.append(submission(X))

    refused = await refusal(appender, submission(X))

    assert second.backlog == 2
    assert isinstance(refused, Unavailable)
    assert (refused.code, refused.retry_after_s) == ("backlog_full", 1)
    await appender.close()


async def test_memory_is_left_for_the_worker(
    either_server: str, server: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "CHECK_INTERVAL_S", 0)
    appender = Appender(either_server, Settings())
    limit = str(server.config_get("maxmemory")["maxmemory"])
    used = server.info("memory")["used_memory"]

    server.config_set("maxmemory", int(used / 0.7))
    await appender.append(submission(X))
    server.config_set("maxmemory", int(used / 0.9))
    refused = await refusal(appender, submission(X))
    server.config_set("maxmemory", limit)

    assert refused.code == "backlog_full"
    assert "of maxmemory" in refused.message
    await appender.close()


async def test_a_retry_with_the_same_key_is_one_entry(
    appender: Appender, server: redis.Redis
) -> None:
    first = await appender.append(submission(X, Y, key="k" * 16))

    again = await appender.append(submission(X, Y, key="k" * 16))

    assert again.position in (None, first.position)  # it is written down after the answer
    assert again == replace(first, position=again.position, replayed=True)
    assert server.xlen(names.log) == 1


async def test_a_retry_is_recognised_even_when_the_backlog_is_full(either_server: str) -> None:
    appender = Appender(either_server, Settings(max_backlog=1))
    await appender.append(submission(X, key="k" * 16))

    again = await appender.append(submission(X, key="k" * 16))

    assert again.replayed
    await appender.close()


async def test_simultaneous_retries_are_one_entry(appender: Appender, server: redis.Redis) -> None:
    receipts = await asyncio.gather(
        *(appender.append(submission(X, Y, key="k" * 16)) for _ in range(5))
    )

    assert len({receipt.batch_id for receipt in receipts}) == 1
    assert sorted(receipt.replayed for receipt in receipts) == [False] + [True] * 4
    assert server.xlen(names.log) == 1


async def test_without_a_key_a_retry_is_a_second_entry(
    appender: Appender, server: redis.Redis
) -> None:
    first = await appender.append(submission(X, Y))
    await appender.append(submission(X, Y))

    assert not first.idempotent
    assert server.xlen(names.log) == 2


async def test_a_key_that_came_with_another_body_is_refused(appender: Appender) -> None:
    await appender.append(submission(X, key="k" * 16))

    refused = await refusal(appender, submission(X, Y, key="k" * 16))

    assert isinstance(refused, Unprocessable)
    assert refused.code == "idempotency_key_reused"


async def test_a_race_lost_every_time_is_a_conflict(
    appender: Appender, server: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = appender._admission.check_room

    def interfere(*arguments: object) -> None:
        server.set(names.schema, StreamSchema(SCHEMA, None).to_record())
        room(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(appender._admission, "check_room", interfere)

    assert isinstance(await refusal(appender, submission(X)), Conflict)
    assert server.xlen(names.log) == 0


async def test_redis_away_is_unavailable_and_says_that_the_outcome_is_unknown(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    appender = Appender(f"unix://{tmp_path_factory.getbasetemp()}/nobody.sock", Settings())

    refused = await refusal(appender, submission(X))

    assert isinstance(refused, Unavailable)
    assert (refused.code, refused.retry_after_s) == ("redis_unavailable", 1)
    assert "outcome is unknown" in refused.message
    await appender.close()


async def test_the_shipped_configuration_has_no_problems(appender: Appender) -> None:
    receipt = await appender.append(submission(X))

    assert await appender.problems() == []
    assert receipt.durability == "always"


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("appendfsync", "everysec", "appendfsync is everysec, expected always"),
        ("appendonly", "no", "appendonly is no, expected yes"),
        ("maxmemory-policy", "allkeys-lru", "maxmemory-policy is allkeys-lru, expected noeviction"),
        ("maxmemory", "0", "maxmemory is 0, expected a limit"),
    ],
)
async def test_a_weaker_server_is_named(
    appender: Appender, server: redis.Redis, name: str, value: str, problem: str
) -> None:
    shipped = str(server.config_get(name)[name])
    server.config_set(name, value)

    problems = await appender.problems()
    receipt = await appender.append(submission(X))
    server.config_set(name, shipped)

    assert problems == [problem]
    assert receipt.durability == {"everysec": "everysec", "no": "no"}.get(value, "always")


async def test_what_became_of_a_batch_can_be_asked(appender: Appender, either_server: str) -> None:
    receipt = await appender.append(submission(X, key="k" * 16))
    queued = await appender.status(receipt.batch_id)
    learned = BatchStatus(
        batch_id=receipt.batch_id, state="learned", n=2, position=receipt.position, step=1, expert=0
    )

    Log(claimed(either_server)).tell("1-0", 1, [outcome(learned)], NO_NEWS)

    assert queued == BatchStatus(batch_id=receipt.batch_id, state="queued", n=2)
    assert await appender.status(receipt.batch_id) == learned
    assert await appender.backlog() == 0
    assert await appender.status("0" * 32) is None
    again = await appender.append(submission(X, key="k" * 16))
    assert again.position == receipt.position


# Reading


async def test_trimming_leaves_what_is_behind_the_position(
    appender: Appender, either_server: str
) -> None:
    receipts = [await appender.append(submission(X)) for _ in range(5)]
    log = Log(claimed(either_server))

    log.trim(str(receipts[2].position))

    assert log.gap(3, 4) == 0
    left = [position for position, _ in log.read(START, count=8, block_ms=10)]
    assert left == [receipts[3].position, receipts[4].position]


@pytest.mark.parametrize(
    ("damage", "missing"),
    [
        (lambda r, _: r.xtrim(names.log, maxlen=1, approximate=False), 2),
        (lambda r, positions: r.xdel(names.log, positions[4]), 1),
        (lambda r, _: r.delete(names.log), -2),
        (lambda r, _: (r.delete(names.log), r.xadd(names.log, {"a": "b"})), -2),
        (lambda _r, _p: None, 0),
    ],
    ids=["XTRIM MAXLEN", "XDEL", "DEL", "DEL and a new beginning", "no damage"],
)
async def test_a_gap_is_counted_exactly(
    appender: Appender,
    either_server: str,
    server: redis.Redis,
    damage: object,
    missing: int,
) -> None:
    receipts = [await appender.append(submission(X)) for _ in range(5)]
    log = Log(claimed(either_server))
    log.trim(str(receipts[1].position))

    assert callable(damage)
    damage(server, [receipt.position for receipt in receipts])

    assert log.gap(2, 4) == missing


async def test_a_lost_end_of_the_log_is_counted(appender: Appender, either_server: str) -> None:
    receipts = [await appender.append(submission(X)) for _ in range(5)]

    log = Log(claimed(either_server))
    log.trim(str(receipts[1].position))

    assert log.gap(2, 8) == -3


def test_a_log_that_was_never_written_has_no_gap(either_server: str) -> None:
    assert Log(claimed(either_server)).gap(0, 0) == 0


# Replay members


def test_members_come_back_in_the_order_named(either_server: str) -> None:
    store = ReplayStore(claimed(either_server))
    x = np.random.default_rng(0).random((600, 3)).astype(np.float32)
    members = {(number, 0): (x[number], "cat" if number % 2 else None) for number in range(600)}
    store.put(members)
    store.put({(1, 0): members[1, 0]})

    found = store.fetch([(number, 0) for number in reversed(range(600))])

    np.testing.assert_array_equal(np.stack(found.x), x[::-1])
    assert found.labels[:2] == ["cat", None]
    assert store.ids() == set(members)


def test_a_deleted_member_is_missed(either_server: str) -> None:
    store = ReplayStore(claimed(either_server))
    store.put({(1, 0): (X[0], 1), (1, 1): (X[1], 2)})
    store.delete([(1, 0), (9, 9)])

    with pytest.raises(CorruptState, match="1:0 is not stored"):
        store.fetch([(1, 1), (1, 0)])


def test_a_flipped_byte_of_a_member_is_detected(either_server: str, server: redis.Redis) -> None:
    store = ReplayStore(claimed(either_server))
    store.put({(1, 0): (X[0], 1)})
    value = server.hget(names.replay, "1:0")
    assert isinstance(value, bytes)
    server.hset(names.replay, "1:0", value[:-1] + b"!")

    with pytest.raises(CorruptState, match="not what was written"):
        store.fetch([(1, 0)])


async def test_a_quarantined_entry_is_kept_with_its_reason(
    appender: Appender, either_server: str, server: redis.Redis
) -> None:
    await appender.append(submission(X))
    log = Log(claimed(either_server))
    [(position, fields)] = log.read(START, count=1, block_ms=10)

    log.set_aside([SetAside.of(Entry.from_fields(1, position, fields), "loss is not finite")])

    value = server.hget(names.quarantine, position)
    assert isinstance(value, bytes)
    header, _, payload = value.partition(b"\n")
    assert json.loads(header)["reason"] == "loss is not finite"
    assert payload == fields[b"payload"]


def outcome(status: BatchStatus, *, number: int = 1, key: str | None = None) -> Outcome:
    return Outcome(number=number, status=status, idempotency_key=key)


def _bytes(value: str | int | bytes) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


async def test_entries_for_whose_copies_redis_has_no_room_are_not_set_aside(
    appender: Appender, either_server: str, server: redis.Redis
) -> None:
    receipts = [await appender.append(submission(LARGE)) for _ in range(3)]
    log = Log(claimed(either_server))
    first, last = str(receipts[0].position), str(receipts[-1].position)
    memory: Any = server.info("memory")

    log.check_room_for(first, last)
    server.config_set("maxmemory", memory["used_memory"] + 3 * LARGE.nbytes // 2)
    try:
        with pytest.raises(Misused, match="nothing was changed"):
            log.check_room_for(first, last)
        log.check_room_for(str(receipts[1].position), last)
    finally:
        server.config_set("maxmemory", memory["maxmemory"])
