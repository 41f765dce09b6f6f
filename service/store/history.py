"""Every entry from the first to the newest: the archive, then the log, as one.

Only reads, beside a running worker. It archives before it trims, so what has left the log
meanwhile is found in the archive.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from service.errors import IncompleteHistory, Unavailable
from service.store.archive import DIRECTORY
from service.store.entry import Entry
from service.store.link import connect
from service.store.names import DEFAULT, Names
from service.store.ranges import END, newest_number, read_range
from service.store.segment import Record
from service.store.segments import read_segments
from service.store.stream_ids import START


class History:
    """The entries of a stream, by number; close it after use."""

    def __init__(self, state_dir: Path, url: str, names: Names = DEFAULT) -> None:
        """Name the places; nothing is read yet.

        Args:
            state_dir: where the archive is.
            url: of the Redis server that has the log.
            names: of the stream.
        """
        self._archive = state_dir / DIRECTORY
        self._redis = connect(url)
        self._names = names

    def last(self) -> int:
        """Return the number of the newest entry; 0 before the first.

        Raises:
            Unavailable: Redis is away.
        """
        with _present():
            return newest_number(self._redis, self._names)

    def first(self, *, archived: bool) -> int:
        """Return the number of the oldest entry that is kept, or of the next one.

        Args:
            archived: whether the archive goes on in the log.

        Raises:
            CorruptState: the archive is not what was written.
            Unavailable: Redis is away.
        """
        for record in read_segments(self._archive, 0) if archived else ():
            return record.number
        with _present():
            return read_range(self._redis, self._names, START, START)[0]

    def entries(self, after: int, until: int) -> Iterator[Entry]:
        """Yield the entries numbered after + 1 to until, in their order, a few in memory.

        Raises:
            CorruptState: an entry is not what was accepted, or archive and log do not join.
            IncompleteHistory: one is missing; names it, and the first that is there.
            Unavailable: Redis is away.
        """
        number, looked_twice = after, False
        while number < until:
            before, behind_gap = number, None
            for record in self._some(number):
                if record.number != number + 1:
                    behind_gap = record
                    break
                yield Entry.from_fields(record.number, record.position, record.fields)
                number = record.number
                if number == until:
                    return
            if number == before and (looked_twice or behind_gap is None):
                raise _missing(number + 1, behind_gap)
            looked_twice = number == before  # it may have moved to the archive between the two

    def close(self) -> None:
        """Close the connection."""
        self._redis.close()

    def _some(self, after: int) -> Iterator[Record]:
        """Yield the archive from a number on, then the log up to where it is trimmed meanwhile."""
        number, position = 0, START
        for record in read_segments(self._archive, after):
            yield record
            number, position = record.number, record.position
        while True:
            with _present():
                oldest, chunk = read_range(self._redis, self._names, position, END)
            if not chunk or (number and oldest > number + 1):
                return
            for following, (position, fields) in enumerate(chunk, max(number + 1, oldest)):
                number = following
                if number > after:
                    yield Record(number, position, fields)


@contextmanager
def _present() -> Iterator[None]:
    try:
        yield
    except Unavailable as error:
        raise Unavailable(
            "redis_unavailable",
            "the newest entries are in redis, which does not answer; start it with "
            "`levit serve`, or end with --until where the archive does",
        ) from error


def _missing(number: int, following: Record | None) -> IncompleteHistory:
    if following is None:
        return IncompleteHistory(f"neither archive nor log has entry {number}, or any behind it")
    last = following.number - 1
    lacking = f"entry {number} is" if last == number else f"entries {number} to {last} are"
    return IncompleteHistory(
        f"{lacking} kept no longer: the first there is entry {following.number} "
        f"at position {following.position}"
    )
