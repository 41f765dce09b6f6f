"""The files of an archive, one behind the other: how they are found, read and added to.

    from-<number of the first entry>.segment

Only the last one ever grows. A file that is full is on disk before the next one is begun, so that
a crash can leave an unfinished entry at the very end only.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from service.errors import CorruptState
from service.store import segment
from service.store.directory import fsync_directory
from service.store.segment import CutShort, Record

SEGMENT_BYTES = 64 * 2**20
"""Size that a file does not pass, unless a single entry does."""


def segments(root: Path) -> list[Path]:
    """Return the files in a folder, oldest entries first."""
    return sorted(root.glob("from-*.segment"), key=first_number)


def first_number(path: Path) -> int:
    """Return the number of the first entry in a file, as its name says."""
    return int(path.name.removeprefix("from-").removesuffix(".segment"))


def read_segments(root: Path, after_number: int) -> Iterator[Record]:
    """Yield the entries behind the one of that number, each checked, in their order.

    Ends with the last whole entry, so also where a running append has come to by now.

    Raises:
        CorruptState: an entry is not what was written, or is missing; names entry and file.
    """
    paths = segments(root)
    behind = [path for path in paths if first_number(path) > after_number + 1]
    expected: int | None = None
    for path in paths[max(0, len(paths) - len(behind) - 1) :]:
        if expected not in (None, first_number(path)):
            raise CorruptState(f"the archive lacks entry {expected}, which comes before {path}")
        try:
            for _, record in segment.records(path, first_number(path)):
                expected = record.number + 1
                if record.number > after_number:
                    yield record
        except FileNotFoundError:  # dropped meanwhile, as all before it
            expected = None
        except CutShort:
            if path != paths[-1]:
                raise


class Tail:
    """The end of the archive while entries are added; nothing is changed before the first."""

    def __init__(self, root: Path, kept: list[Path], end: int) -> None:
        """Name the end.

        Args:
            root: the folder.
            kept: the files that stay; any others there are what was left of an append.
            end: up to where the last of them is kept.
        """
        self._root = root
        self._kept = kept
        self._kept_end = self.end = end
        self._file: BinaryIO | None = None

    def write(self, record: Record) -> None:
        """Add an entry; in memory of the system until `sync`.

        Raises:
            CorruptState: its payload is not the one that was accepted.
            OSError: the disk is full or refuses.
        """
        content = segment.encode(record)
        self._file_for(record.number, len(content)).write(content)
        self.end += len(content)

    def sync(self) -> None:
        """Have all entries on disk.

        Raises:
            OSError: the disk is full or refuses.
        """
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def abandon(self) -> None:
        """Cut off what was written, so that it takes no space of a full disk."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None
            with contextlib.suppress(OSError):
                self._cut()

    def _file_for(self, number: int, size: int) -> BinaryIO:
        """Return the file that an entry of so many bytes goes to."""
        if self._file is None:
            self._cut()
            if not self._kept:
                return self._begin(number)
            self._file = self._kept[-1].open("ab")
        if self.end and self.end + size > SEGMENT_BYTES:
            self.sync()
            self.close()
            return self._begin(number)
        return self._file

    def _cut(self) -> None:
        if self._kept:
            os.truncate(self._kept[-1], self._kept_end)
        left_over = set(segments(self._root)) - set(self._kept)
        for path in left_over:
            path.unlink()
        if left_over:
            fsync_directory(self._root)

    def _begin(self, number: int) -> BinaryIO:
        """Return another file; its name is on disk before it has an entry."""
        self._root.mkdir(exist_ok=True)
        file = (self._root / f"from-{number:012}.segment").open("wb")
        self._file, self.end = file, 0
        fsync_directory(self._root)
        fsync_directory(self._root.parent)
        return file
