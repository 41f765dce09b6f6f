"""Entries that were trimmed from the log, kept in files, so that the past can be read once more.

    archive/from-<number of the first entry>.segment ...    records as in `segment`

The worker appends before it trims, so an entry lies in the log, here, or in both; appending one
that lies here already changes nothing. Numbers have no hole. What a crash left of an append, the
next one cuts off: it was never trimmed from the log. Damage looks the same from here, but its
entries were trimmed; so the next append leaves a hole and is refused. Only the oldest files are
ever dropped, whole, to keep a bound of bytes.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from service.errors import CorruptState
from service.store import segment
from service.store.directory import fsync_directory
from service.store.segment import Record
from service.store.segments import Tail, first_number, read_segments, segments
from service.store.stream_ids import START, RawEntry, order

DIRECTORY = "archive"
OFF_FOR_A_WHILE = "if the archive was off for a while, move its folder away"
"""What may explain entries that are missing between archive and log."""

ReadRange = Callable[[str, str], tuple[int, Sequence[RawEntry]]]
"""Of two positions: the number of the oldest entry in the log, and some of the entries behind the
one up to and with the other, in their order."""


@dataclass(frozen=True, slots=True)
class Mark:
    """Where an entry is."""

    number: int
    """Ordinal in the stream, counted from 1."""
    position: str
    """Its id in the Redis stream."""


class Archive:
    """The archive of a state directory; opening it reads its last file only, and writes nothing."""

    def __init__(self, state_dir: Path, most_bytes: int | None) -> None:
        """Find the last entry.

        Args:
            state_dir: the archive lies in a folder of it, made by the first `append`.
            most_bytes: above which the oldest files are dropped; None: never.
        """
        self._root = state_dir / DIRECTORY
        self._most_bytes = most_bytes
        self.last: Mark | None = None
        """The newest entry that is whole; None while there is none."""
        self._next: int | None = None  # the number that must follow; None: any
        self._end = 0  # of the last entry in its file
        self._damage = ""  # what is behind the last entry, where that is no entry
        for path in segments(self._root)[:-3:-1]:  # the last one may be new and have none yet
            self._find_last(path)
            if self.last is not None:
                break

    @property
    def first(self) -> Mark | None:
        """The oldest entry; None while there is none.

        Raises:
            CorruptState: it is not what was written.
        """
        if self.last is None:
            return None
        for record in self.read(0):
            return Mark(record.number, record.position)
        return None

    @property
    def nbytes(self) -> int:
        """Size of all files."""
        return sum(path.stat().st_size for path in segments(self._root))

    def append(self, entries: Iterable[Record]) -> None:
        """Add entries in their order; when this returns all of them are on disk.

        Those that lie here already are passed over. One is held in memory at a time.

        Raises:
            CorruptState: they do not follow the last one, or fail their hash; none was added.
            OSError: the disk is full or refuses; none was added.
        """
        last, number = self.last, self._next
        tail = Tail(self._root, self._kept(), self._end)
        try:
            for record in entries:
                if self._is_here(record, last, number):
                    continue
                tail.write(record)
                last, number = Mark(record.number, record.position), record.number + 1
            tail.sync()
        except BaseException:
            tail.abandon()
            raise
        finally:
            tail.close()
        if last != self.last:
            self.last, self._next, self._end, self._damage = last, number, tail.end, ""
            self._drop_oldest()

    def read(self, after_number: int) -> Iterator[Record]:
        """Yield the entries behind the one of that number; see `read_segments`."""
        return read_segments(self._root, after_number)

    def begin_anew(self) -> None:
        """Put all files beside, where nothing reads them; the next entry may have any number.

        For a log of which a loss was accepted: what follows does not continue what lies here.
        """
        if self._root.exists():
            until = START if self.last is None else self.last.position
            self._root.rename(self._root.with_name(f"{DIRECTORY}-until-{until}"))
            fsync_directory(self._root.parent)
        self.last, self._next, self._end, self._damage = None, None, 0, ""

    def _find_last(self, path: Path) -> None:
        self._next, self._end = first_number(path), 0
        try:
            for end, record in segment.records(path, self._next):
                self.last, self._end = Mark(record.number, record.position), end
                self._next = record.number + 1
        except CorruptState as error:
            self._damage = str(error)

    def _is_here(self, record: Record, last: Mark | None, number: int | None) -> bool:
        """Return whether the archive has an entry already; it has if position and number say so.

        Raises:
            CorruptState: one says so and the other does not, or entries between are missing.
        """
        if number is None:
            return False
        here = record.number < number
        reached = START if last is None else last.position
        before = order(record.position) <= order(reached)
        if here == before and record.number <= number:
            return here
        raise CorruptState(
            f"the archive in {self._root} goes on with entry {number}, the log has entry "
            f"{record.number} at {record.position}; {self._damage or OFF_FOR_A_WHILE}"
        )

    def _kept(self) -> list[Path]:
        """Return the files up to the one with the last entry."""
        following = self._next or 0
        return [path for path in segments(self._root) if first_number(path) < following]

    def _drop_oldest(self) -> None:
        paths = segments(self._root)
        sizes = [path.stat().st_size for path in paths]
        for at, path in enumerate(paths[:-1]):
            if self._most_bytes is None or sum(sizes[at:]) <= self._most_bytes:
                return
            path.unlink()
            fsync_directory(self._root)  # one by one, so that a power cut leaves no hole


def archive_until(archive: Archive, read: ReadRange, number: int, position: str) -> None:
    """Put what the log has up to an entry into the archive; then it may be trimmed.

    Args:
        archive: where it goes to; what it has already is not read again.
        read: reads the log; see `ranges.read_range`.
        number: of the last entry to archive; 0: none.
        position: of the same entry.

    Raises:
        CorruptState: archive and log do not join, or the log lacks entries; nothing was archived.
        OSError: the disk is full or refuses; nothing was archived.
    """
    if archive.last is None and read(START, START)[0] > number:
        return  # all of it left the log before there was an archive
    if archive.last is None or archive.last.number < number:
        archive.append(_entries(archive.last, read, Mark(number, position)))


def _entries(last: Mark | None, read: ReadRange, target: Mark) -> Iterator[Record]:
    at, oldest = last or Mark(0, START), 0
    while at.position != target.position:
        oldest, chunk = read(at.position, target.position)
        if not chunk:
            break
        for number, (position, fields) in enumerate(chunk, start=max(at.number + 1, oldest)):
            at = Mark(number, position)
            yield Record(number, position, fields)
    if at != target:
        raise CorruptState(
            f"the log lacks entries: expected entry {target.number} at {target.position}, "
            f"counted {at.number} up to {at.position}, the oldest there is {oldest}; "
            f"{OFF_FOR_A_WHILE}"
        )
