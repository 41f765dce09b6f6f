"""The archive of trimmed entries: what it keeps, what it notices, what a crash leaves."""

import hashlib
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.errors import CorruptState
from service.store import segment, segments
from service.store.archive import Archive, Mark, archive_until
from service.store.ranges import CHUNK
from service.store.segment import Record
from service.store.stream_ids import RawEntry


def record(number: int, *, size: int = 40) -> Record:
    """Return an entry whose payload no other has."""
    payload = (f"{number} ".encode() * size)[:size]
    sha256 = hashlib.sha256(payload).hexdigest().encode()
    fields = {b"batch_id": b"%032x" % number, b"n": b"1", b"sha256": sha256, b"payload": payload}
    return Record(number, f"1700000000000-{number}", fields)


def records(first: int, last: int) -> list[Record]:
    return [record(number) for number in range(first, last + 1)]


def files(state_dir: Path) -> list[Path]:
    return segments.segments(state_dir / "archive")


@pytest.fixture
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a file hold some four entries."""
    monkeypatch.setattr(segments, "SEGMENT_BYTES", 1200)


class FakeLog:
    """A log in memory, read as `ranges.read_range` reads the real one."""

    def __init__(self, first: int, last: int) -> None:
        self.entries = records(first, last)
        self.most_read = 0

    def read(self, after: str, last: str) -> tuple[int, list[RawEntry]]:
        after_number, last_number = int(after.split("-")[1]), int(last.split("-")[1])
        found = [one for one in self.entries if after_number < one.number <= last_number][:CHUNK]
        self.most_read = max(self.most_read, len(found))
        return self.entries[0].number, [(one.position, dict(one.fields)) for one in found]

    def archive_until(self, archive: Archive, number: int) -> None:
        archive_until(archive, self.read, number, record(number).position)


# Keeping


def test_what_was_appended_is_read_back_by_whoever_opens_it(state_dir: Path) -> None:
    Archive(state_dir, None).append(records(1, 30))

    archive = Archive(state_dir, None)

    assert list(archive.read(0)) == records(1, 30)
    assert list(archive.read(25)) == records(26, 30)
    assert archive.first == Mark(1, "1700000000000-1")
    assert archive.last == Mark(30, "1700000000000-30")


def test_nothing_is_written_before_the_first_entry(state_dir: Path) -> None:
    archive = Archive(state_dir, None)
    archive.append([])

    assert (archive.first, archive.last, archive.nbytes) == (None, None, 0)
    assert list(state_dir.iterdir()) == []


def test_an_archive_may_begin_in_the_middle_of_a_stream(state_dir: Path) -> None:
    Archive(state_dir, None).append(records(501, 510))

    assert list(Archive(state_dir, None).read(0)) == records(501, 510)


def test_bytes_that_are_no_text_come_back_as_they_were(state_dir: Path) -> None:
    odd = Record(1, "1-1", {**record(1).fields, b"idempotency_key": b"\xff\x00\xc3"})

    Archive(state_dir, None).append([odd])

    assert list(Archive(state_dir, None).read(0)) == [odd]


def test_entries_that_lie_there_already_change_nothing(state_dir: Path) -> None:
    archive = Archive(state_dir, None)
    archive.append(records(1, 20))
    before = files(state_dir)[0].read_bytes()

    archive.append(records(5, 20))
    Archive(state_dir, None).append(records(1, 20))

    assert files(state_dir)[0].read_bytes() == before


@pytest.mark.usefixtures("small_segments")
def test_files_are_begun_anew_at_their_size_and_read_as_one(state_dir: Path) -> None:
    archive = Archive(state_dir, None)
    archive.append(records(1, 9))
    Archive(state_dir, None).append(records(10, 21))

    assert len(files(state_dir)) > 3
    assert max(path.stat().st_size for path in files(state_dir)) <= 1200
    assert list(archive.read(0)) == records(1, 21)
    assert list(archive.read(13)) == records(14, 21)


@pytest.mark.usefixtures("small_segments")
def test_beyond_its_bytes_the_oldest_files_are_dropped_and_the_newest_never(
    state_dir: Path,
) -> None:
    archive = Archive(state_dir, 3000)
    for number in range(1, 61):
        archive.append([record(number)])

    assert archive.nbytes <= 3000
    assert archive.first is not None
    assert list(archive.read(0)) == records(archive.first.number, 60)
    Archive(state_dir, 1).append([record(61)])
    assert [one.number for one in archive.read(0)][-1] == 61
    assert len(files(state_dir)) == 1


@pytest.mark.usefixtures("small_segments")
def test_opening_reads_the_last_file_only(state_dir: Path) -> None:
    Archive(state_dir, None).append(records(1, 21))
    *earlier, _ = files(state_dir)
    for path in earlier:
        path.write_bytes(b"not read")

    assert Archive(state_dir, None).last == Mark(21, "1700000000000-21")


def test_a_loss_that_was_accepted_begins_another_archive(state_dir: Path) -> None:
    archive = Archive(state_dir, None)
    archive.append(records(1, 5))

    archive.begin_anew()
    archive.append(records(9, 12))

    assert list(Archive(state_dir, None).read(0)) == records(9, 12)
    assert (state_dir / "archive-until-1700000000000-5").is_dir()


# Refusing


def test_a_hole_in_the_numbers_is_refused_and_nothing_is_added(state_dir: Path) -> None:
    archive = Archive(state_dir, None)
    archive.append(records(1, 5))

    with pytest.raises(CorruptState, match="goes on with entry 8, the log has entry 9"):
        archive.append([*records(6, 7), *records(9, 12)])

    assert archive.last == Mark(5, "1700000000000-5")
    assert list(Archive(state_dir, None).read(0)) == records(1, 5)
    archive.append(records(6, 12))
    assert list(archive.read(0)) == records(1, 12)


def test_another_log_with_the_same_numbers_is_refused(state_dir: Path) -> None:
    archive = Archive(state_dir, None)
    archive.append(records(1, 5))
    other = Record(3, "1800000000000-3", record(3).fields)

    with pytest.raises(CorruptState, match="entry 3 at 1800000000000-3"):
        archive.append([other])


def test_a_payload_that_was_damaged_in_the_log_is_not_archived(state_dir: Path) -> None:
    damaged = Record(2, "1700000000000-2", {**record(2).fields, b"payload": b"flipped"})

    with pytest.raises(CorruptState, match="entry 2 at 1700000000000-2 fails its sha256"):
        Archive(state_dir, None).append([record(1), damaged])

    assert Archive(state_dir, None).last is None


@pytest.mark.usefixtures("small_segments")
def test_a_full_disk_adds_nothing_takes_no_space_and_is_got_over(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = Archive(state_dir, None)
    archive.append(records(1, 5))
    size = archive.nbytes
    with monkeypatch.context() as full:
        calls = iter(range(100))

        def fsync(_: int) -> None:
            if next(calls) > 3:
                raise OSError(28, "No space left on device")

        full.setattr(os, "fsync", fsync)
        with pytest.raises(OSError, match="No space"):
            archive.append(records(6, 30))

    assert archive.nbytes == size
    assert archive.last == Mark(5, "1700000000000-5")
    archive.append(records(6, 30))
    assert list(Archive(state_dir, None).read(0)) == records(1, 30)


# Damage


def flips(content: bytes, every: int) -> Iterator[tuple[int, bytes]]:
    """Yield copies of `content`, each with one bit of another byte flipped."""
    bits = random.Random(0)  # noqa: S311  no secret
    for at in range(0, len(content), every):
        damaged = bytearray(content)
        damaged[at] ^= 1 << bits.randrange(8)
        yield at, bytes(damaged)


def notices(state_dir: Path, expected: list[Record]) -> bool:
    """Return whether reading raises, having yielded nothing but what was written."""
    found = []
    try:
        for one in Archive(state_dir, None).read(0):
            found.append(one)  # noqa: PERF402  what came before the error counts
    except CorruptState:
        return found == expected[: len(found)]
    return False


def test_every_flipped_byte_is_noticed(state_dir: Path) -> None:
    Archive(state_dir, None).append(records(1, 4))
    path, content = files(state_dir)[0], files(state_dir)[0].read_bytes()

    missed = []
    for at, damaged in flips(content, 1):
        path.write_bytes(damaged)
        if not notices(state_dir, records(1, 4)):
            missed.append(at)

    assert missed == []


def test_without_hashes_a_flipped_byte_would_not_be_noticed(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segment, "_sha256", lambda _: b"of anything")
    unhashed = {b"sha256": b"of anything"}
    written = [
        Record(one.number, one.position, {**one.fields, **unhashed}) for one in records(1, 4)
    ]
    Archive(state_dir, None).append(written)
    path = files(state_dir)[0]
    path.write_bytes(path.read_bytes()[:-1] + b"X")

    assert not notices(state_dir, written)


@pytest.mark.parametrize("number", [1, 3, 6, 9], ids=lambda number: f"entry {number}")
@pytest.mark.usefixtures("small_segments")
def test_the_damaged_entry_and_its_file_are_named(state_dir: Path, number: int) -> None:
    Archive(state_dir, None).append(records(1, 9))
    path = [p for p in files(state_dir) if segments.first_number(p) <= number][-1]
    content = path.read_bytes()
    at = content.index(record(number).fields[b"payload"])
    path.write_bytes(content[:at] + b"X" + content[at + 1 :])

    with pytest.raises(CorruptState, match=f"entry {number} in .*{path.name}: the payload"):
        list(Archive(state_dir, None).read(0))


@pytest.mark.usefixtures("small_segments")
@pytest.mark.parametrize("damage", ["cut", "emptied", "removed"])
def test_a_file_in_the_middle_that_lacks_entries_is_noticed(state_dir: Path, damage: str) -> None:
    Archive(state_dir, None).append(records(1, 21))
    path = files(state_dir)[2]
    if damage == "removed":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1] if damage == "cut" else b"")

    assert notices(state_dir, records(1, 21))


def test_a_damaged_entry_whose_original_was_trimmed_is_never_cut_off(state_dir: Path) -> None:
    Archive(state_dir, None).append(records(1, 9))
    path = files(state_dir)[0]
    content = path.read_bytes()
    at = content.index(record(4).fields[b"payload"])
    path.write_bytes(content[:at] + b"X" + content[at + 1 :])
    archive = Archive(state_dir, None)

    with pytest.raises(CorruptState, match=r"entry 4, the log has entry 10 .*entry 4 in"):
        FakeLog(10, 12).archive_until(archive, 12)

    assert len(path.read_bytes()) == len(content)


def test_a_damaged_first_entry_is_not_taken_for_an_empty_archive(state_dir: Path) -> None:
    Archive(state_dir, None).append(records(1, 9))
    path = files(state_dir)[0]
    path.write_bytes(b"X" + path.read_bytes()[1:])

    with pytest.raises(CorruptState, match="goes on with entry 1, the log has entry 10"):
        FakeLog(10, 12).archive_until(Archive(state_dir, None), 12)

    assert files(state_dir) == [path]


# Crashes


@pytest.mark.parametrize("end", ["in the sizes", "in the header", "in the payload", "garbage"])
def test_a_torn_tail_is_passed_over_and_cut_off_by_the_next_append(
    state_dir: Path, end: str
) -> None:
    Archive(state_dir, None).append(records(1, 9))
    path = files(state_dir)[0]
    whole = path.read_bytes()
    Archive(state_dir, None).append([record(10)])
    torn = path.read_bytes()[len(whole) :]
    tails = {"in the sizes": torn[:7], "in the header": torn[:60], "in the payload": torn[:-1]}
    path.write_bytes(whole + tails.get(end, bytes(200)))

    archive = Archive(state_dir, None)

    assert archive.last == Mark(9, "1700000000000-9")
    assert end == "garbage" or list(archive.read(0)) == records(1, 9)
    archive.append(records(8, 12))
    assert list(Archive(state_dir, None).read(0)) == records(1, 12)


@pytest.mark.usefixtures("small_segments")
@pytest.mark.parametrize("content", [b"", b"LVA1"], ids=["empty", "torn"])
def test_a_new_file_without_an_entry_yet_is_begun_again(state_dir: Path, content: bytes) -> None:
    Archive(state_dir, None).append(records(1, 9))
    (state_dir / "archive" / "from-000000000010.segment").write_bytes(content)

    archive = Archive(state_dir, None)

    assert archive.last == Mark(9, "1700000000000-9")
    archive.append(records(10, 20))
    assert list(Archive(state_dir, None).read(0)) == records(1, 20)


KILLED = """
import os, signal, sys
from pathlib import Path
from service.store import segment, segments
from service.store.archive import Archive
from tests.test_archive import FakeLog

segments.SEGMENT_BYTES = 1200
left, fsync = int(sys.argv[2]), os.fsync

def counted(descriptor):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    fsync(descriptor)

os.fsync = counted
archive = Archive(Path(sys.argv[1]), None)
for number in (7, 15, 30):
    FakeLog(1, 30).archive_until(archive, number)
"""


def test_killed_before_any_fsync_it_doubles_and_loses_nothing(state_dir: Path) -> None:
    returncode, attempts, found = -signal.SIGKILL, 0, list[Record]()
    while returncode == -signal.SIGKILL:
        attempts += 1
        command = [sys.executable, "-c", KILLED, str(state_dir), str(attempts)]
        returncode = subprocess.run(command, check=False, timeout=30).returncode
        found = list(Archive(state_dir, None).read(0))
        assert found == records(1, len(found))

    assert returncode == 0
    assert attempts > 4
    assert found == records(1, 30)


# From the log


def test_a_log_is_archived_up_to_a_position_a_few_entries_at_a_time(state_dir: Path) -> None:
    archive, log = Archive(state_dir, None), FakeLog(101, 200)

    log.archive_until(archive, 150)
    log.archive_until(archive, 150)
    log.archive_until(archive, 140)
    log.archive_until(archive, 171)

    assert list(archive.read(0)) == records(101, 171)
    assert log.most_read <= CHUNK


def test_before_the_first_checkpoint_nothing_is_archived(state_dir: Path) -> None:
    archive_until(Archive(state_dir, None), FakeLog(1, 5).read, 0, "0-0")

    assert list(state_dir.iterdir()) == []


def test_an_archive_that_was_turned_on_late_begins_behind_what_was_trimmed(
    state_dir: Path,
) -> None:
    log, archive = FakeLog(31, 50), Archive(state_dir, None)

    log.archive_until(archive, 30)
    log.archive_until(archive, 40)

    assert list(archive.read(0)) == records(31, 40)


def test_a_crash_between_archive_and_trim_doubles_nothing(state_dir: Path) -> None:
    log = FakeLog(1, 50)
    log.archive_until(Archive(state_dir, None), 30)

    log.archive_until(Archive(state_dir, None), 30)
    log.archive_until(Archive(state_dir, None), 40)

    assert list(Archive(state_dir, None).read(0)) == records(1, 40)


def test_an_archive_that_was_turned_on_late_begins_with_what_is_left(state_dir: Path) -> None:
    archive, log = Archive(state_dir, None), FakeLog(31, 50)

    log.archive_until(archive, 30)
    assert archive.last is None
    log.archive_until(archive, 40)

    assert list(archive.read(0)) == records(31, 40)


@pytest.mark.parametrize("number", [40, 45], ids=["all trimmed", "some left"])
def test_an_archive_that_was_off_for_a_while_is_refused_and_says_so(
    state_dir: Path, number: int
) -> None:
    archive = Archive(state_dir, None)
    FakeLog(1, 24).archive_until(archive, 24)

    with pytest.raises(CorruptState, match="off for a while, move its folder away"):
        FakeLog(41, 50).archive_until(archive, number)

    archive.begin_anew()
    FakeLog(41, 50).archive_until(archive, 45)
    assert list(archive.read(0)) == records(41, 45)


@pytest.mark.parametrize("missing", [25, 31, 40], ids=["first", "middle", "last"])
def test_an_entry_deleted_from_the_log_is_noticed(state_dir: Path, missing: int) -> None:
    archive = Archive(state_dir, None)
    FakeLog(1, 24).archive_until(archive, 24)
    log = FakeLog(25, 50)
    log.entries = [one for one in log.entries if one.number != missing]

    with pytest.raises(CorruptState):
        log.archive_until(archive, 40)

    assert list(Archive(state_dir, None).read(0)) == records(1, 24)
