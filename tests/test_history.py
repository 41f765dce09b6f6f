"""The whole past of a stream: archive and log as one, also while the one becomes the other."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from service.errors import CorruptState, IncompleteHistory, Unavailable
from service.settings import Settings
from service.store import segments
from service.store.archive import Archive, archive_until
from service.store.history import History
from service.store.link import connect
from service.store.names import DEFAULT as names
from service.store.ranges import read_range
from service.store.segment import Record
from service.store.submission import Receipt
from tests.conftest import MakeSettings
from tests.log_entries import append_all, batches


def archive(made: Settings, receipts: list[Receipt], until: int, *, trim: bool = True) -> None:
    """Do what the worker does behind its oldest checkpoint."""
    position = str(receipts[until - 1].position)
    redis = connect(str(made.redis_url))
    keeper = Archive(made.state_dir, made.log_archive_bytes)
    archive_until(keeper, partial(read_range, redis, names), until, position)
    redis.close()
    if trim:
        trim_until(made, position)


def trim_until(made: Settings, position: str) -> None:
    milliseconds, sequence = position.split("-")
    redis = connect(str(made.redis_url))
    redis.xtrim(names.log, minid=f"{milliseconds}-{int(sequence) + 1}", approximate=False)
    redis.close()


@pytest.fixture
def history(settings: MakeSettings) -> Iterator[History]:
    made = settings()
    one = History(made.state_dir, str(made.redis_url))
    yield one
    one.close()


@pytest.mark.parametrize("archived", [0, 1, 13, 29, 30])
@pytest.mark.parametrize("trim", [True, False], ids=["trimmed", "a crash before the trim"])
async def test_archive_and_log_are_read_as_one(
    settings: MakeSettings, history: History, archived: int, trim: bool
) -> None:
    made = settings()
    receipts = await append_all(made, batches(30))
    if archived:
        archive(made, receipts, archived, trim=trim)

    found = list(history.entries(0, 30))

    assert [entry.number for entry in found] == list(range(1, 31))
    assert [entry.position for entry in found] == [one.position for one in receipts]
    assert [entry.batch_id for entry in found] == [one.batch_id for one in receipts]
    assert history.last() == 30


@pytest.mark.parametrize(("after", "until"), [(0, 5), (9, 10), (10, 20), (12, 30), (29, 30)])
async def test_a_stretch_is_read_alone(
    settings: MakeSettings, history: History, after: int, until: int
) -> None:
    made = settings()
    archive(made, await append_all(made, batches(30)), 10)

    numbers = [entry.number for entry in history.entries(after, until)]

    assert numbers == list(range(after + 1, until + 1))


async def test_what_is_trimmed_while_it_is_read_is_found_in_the_archive(
    settings: MakeSettings, history: History
) -> None:
    made = settings()
    receipts = await append_all(made, batches(60))
    found = []

    for entry in history.entries(0, 60):
        found.append(entry.number)
        if entry.number in (1, 20, 45):
            archive(made, receipts, entry.number + 12)

    assert found == list(range(1, 61))


async def test_what_moves_between_the_look_at_the_archive_and_that_at_the_log_is_found(
    settings: MakeSettings, history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = settings()
    receipts = await append_all(made, batches(30))
    looks = iter(range(100))

    def read(root: Path, after: int) -> Iterator[Record]:
        yield from segments.read_segments(root, after)
        if next(looks) == 0:
            archive(made, receipts, 25)

    monkeypatch.setattr("service.store.history.read_segments", read)

    assert [entry.number for entry in history.entries(0, 30)] == list(range(1, 31))


async def test_the_archive_alone_is_read_without_redis(
    settings: MakeSettings, tmp_path: Path
) -> None:
    made = settings()
    archive(made, await append_all(made, batches(20)), 15)
    history = History(made.state_dir, f"unix://{tmp_path}/absent.sock")

    assert len(list(history.entries(0, 15))) == 15
    with pytest.raises(Unavailable, match="in redis, which does not answer"):
        list(history.entries(0, 16))


# Refusing


async def test_a_missing_start_is_refused_and_the_first_entry_named(
    settings: MakeSettings, history: History
) -> None:
    made = settings()
    receipts = await append_all(made, batches(30))
    trim_until(made, str(receipts[11].position))
    first = receipts[12].position

    with pytest.raises(
        IncompleteHistory, match=rf"entries 1 to 12 are .* first there is entry 13 at .* {first}$"
    ):
        list(history.entries(0, 30))

    assert len(list(history.entries(12, 30))) == 18


async def test_a_start_that_left_the_archive_is_refused(
    settings: MakeSettings, history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments, "SEGMENT_BYTES", 3000)
    made = settings()
    receipts = await append_all(made, batches(30))
    archive(made, receipts, 20)
    paths = segments.segments(made.state_dir / "archive")
    paths[0].unlink()
    first = segments.first_number(paths[1])

    with pytest.raises(IncompleteHistory, match=f"first there is entry {first} at"):
        list(history.entries(0, 30))


async def test_a_missing_middle_is_refused_and_what_follows_named(
    settings: MakeSettings, history: History
) -> None:
    made = settings()
    receipts = await append_all(made, batches(30))
    archive(made, receipts, 10)
    trim_until(made, str(receipts[14].position))
    found: list[int] = []
    said = r"entries 11 to 15 are .* first there is entry 16 at"
    with pytest.raises(IncompleteHistory, match=said):
        found.extend(entry.number for entry in history.entries(0, 30))

    assert found == list(range(1, 11))


async def test_an_entry_deleted_from_the_log_is_noticed(
    settings: MakeSettings, history: History, redis_server: str
) -> None:
    receipts = await append_all(settings(), batches(30))
    redis = connect(redis_server)
    redis.xdel(names.log, str(receipts[14].position))
    redis.close()

    with pytest.raises(IncompleteHistory):
        list(history.entries(0, 30))


async def test_more_entries_than_there_are_is_refused(
    settings: MakeSettings, history: History
) -> None:
    await append_all(settings(), batches(5))

    with pytest.raises(IncompleteHistory, match="has entry 6"):
        list(history.entries(0, 6))


async def test_a_payload_that_was_flipped_in_the_log_is_named(
    settings: MakeSettings, history: History, redis_server: str
) -> None:
    await append_all(settings(), batches(2))
    redis: Any = connect(redis_server)
    _, fields = redis.xrange(names.log)[1]
    payload = fields[b"payload"]
    redis.xadd(names.log, fields | {b"payload": payload[:-1] + bytes([payload[-1] ^ 1])})
    redis.close()

    with pytest.raises(CorruptState, match="has sha256"):
        list(history.entries(0, 3))
