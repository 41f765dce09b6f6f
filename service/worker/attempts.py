"""How often an entry was being learned when the worker died.

    attempt          number of the entry that is being learned; 0 between entries
    attempts.json    {number: deaths}, changed only when a worker starts

An entry that kills the process would be met again after each restart. `attempt` is written without
fsync, as a killed process loses nothing that it wrote; after a power cut the count may lack one.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from service.errors import CorruptState, Unavailable
from service.store import directory

MOST_DEATHS = 3
"""Deaths during one entry after which it is set aside."""
_WIDTH = 20


class Attempts:
    """The attempts of one state directory; only the worker that holds its lock has them."""

    def __init__(self, state_dir: Path) -> None:
        """Count the death of the worker before, if it was learning an entry.

        Raises:
            OSError: the disk is full or refuses.
        """
        self._counts_path = state_dir / "attempts.json"
        self._file = os.open(state_dir / "attempt", os.O_RDWR | os.O_CREAT, 0o600)
        self.running = False
        """Whether an entry is being learned."""
        self._deaths = self._read()
        text = os.pread(self._file, _WIDTH, 0).strip()
        if died_at := int(text) if text.isdigit() else 0:
            self._deaths[died_at] = self._deaths.get(died_at, 0) + 1
            self._write_counts()
            self._write(0)

    def deaths(self, number: int) -> int:
        """Return how often the worker died while it learned the entry of that number."""
        return self._deaths.get(number, 0)

    @contextmanager
    def of(self, number: int) -> Iterator[None]:
        """Say that an entry is being learned, as long as the context lasts.

        An exception that nothing in the worker waits out ends the process like a signal: it is left
        to be counted by the next start. An entry that is learned after all is cleared of them.

        Raises:
            OSError: the disk is full or refuses.
        """
        self._write(number)
        self.running, deadly = True, False
        try:
            yield
            if self._deaths.pop(number, 0):
                self._write_counts()
        except Exception as error:
            deadly = not isinstance(error, OSError | Unavailable | CorruptState)
            raise
        finally:
            self.running = False
            if not deadly:
                self._write(0)

    def forget_until(self, number: int) -> None:
        """Drop the counts of entries that no restart can meet again."""
        self._deaths = {n: deaths for n, deaths in self._deaths.items() if n > number}

    def forget_behind(self, number: int) -> None:
        """Drop the counts of later entries: others have their numbers now.

        Raises:
            OSError: the disk is full or refuses.
        """
        self._deaths = {n: deaths for n, deaths in self._deaths.items() if n <= number}
        self._write_counts()

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def _read(self) -> dict[int, int]:
        try:
            counts = json.loads(self._counts_path.read_bytes())
        except FileNotFoundError:
            return {}
        return {int(number): deaths for number, deaths in counts.items()}

    def _write_counts(self) -> None:
        directory.replace_file(self._counts_path, json.dumps(self._deaths).encode())

    def _write(self, number: int) -> None:
        os.pwrite(self._file, str(number).ljust(_WIDTH).encode(), 0)
