"""Decisions that the log does not imply, one line of JSON each, on disk before they take effect.

    decisions.jsonl   {"kind", "after", "until", "reason", "checkpoint", "command",
                       "previous", "sha256"}

`skip` sets the entries numbered after + 1 to until aside; with a checkpoint, the learner first goes
back to it. `expand` makes the mixture grow right after the entry numbered `until`. `unlearn` says
how far back the purge numbered `until` reaches. `renumber` ends what was decided before about
entries behind `after`: others have those numbers now. Whoever reads the log once more, a restarted
worker or a replay, follows the same list and ends in the same state.
Each line carries the hash of the line before, so a line that is missing is noticed.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from service.errors import CorruptState
from service.store.directory import fsync_directory

FILE = "decisions.jsonl"
_FIRST = "0" * 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """One decision; entries are named by their number in the stream, counted from 1."""

    kind: Literal["skip", "expand", "unlearn", "renumber"]
    after: int
    """`skip`, `renumber`: the last entry that stays; `expand`: same as `until`; `unlearn`: the last
    entry that is kept no longer."""
    until: int
    """`skip`: the last entry set aside; `expand`: the entry after which the mixture grows;
    `unlearn`: the purge; `renumber`: same as `after`."""
    reason: str
    """What clients read of the entries set aside."""
    checkpoint: int | None = None
    """Sequence number of the checkpoint that the learner goes back to; None: it goes on."""
    command: str | None = None
    """Id of the command that asked for it; None: the worker decided by itself."""


class Decisions:
    """The decisions of a state directory, in the order in which they were taken."""

    def __init__(self, state_dir: Path) -> None:
        """Read what was decided so far.

        A last line without its end was never followed: it is what a crash left, and is removed
        with the next `add`.

        Raises:
            CorruptState: a line is not what was written, or one is missing.
        """
        self._path = state_dir / FILE
        self._all: list[Decision] = []
        self._last_skipped = 0
        self._expansions: set[int] = set()
        self._unlearned: dict[int, int] = {}
        self._last_hash, self._whole_bytes = _FIRST, 0
        for line in self._lines():
            self._take(self._read(line))
            self._whole_bytes += len(line)

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._all)

    def __iter__(self) -> Iterator[Decision]:
        """Yield them, oldest first."""
        return iter(self._all)

    def rollbacks(self, *, since: int) -> list[tuple[int, Decision]]:
        """Return the decisions to go back but for the first `since`, each with its checkpoint."""
        newer = self._all[since:]
        return [(one.checkpoint, one) for one in newer if one.checkpoint is not None]

    def skips(self, number: int, *, order: bool = False) -> str | None:
        """Return why the entry of that number is set aside, or None where it is to be learned.

        Args:
            number: of the entry.
            order: whether it is an order, as a purge is: going back takes none of them back.
        """
        if number > self._last_skipped:  # as nearly all are: each entry is asked about
            return None
        for one in reversed(self._all):
            if one.kind == "renumber" and number > one.after:
                return None
            covers = one.kind == "skip" and one.after < number <= one.until
            if covers and not (order and one.checkpoint is not None):
                return one.reason
        return None

    def expands(self, number: int) -> bool:
        """Return whether the mixture grows right after the entry of that number."""
        return number in self._expansions

    def unlearns(self, number: int) -> int | None:
        """Return the last entry that the purge of that number cannot reach; None: undecided."""
        return self._unlearned.get(number)

    def add(self, decision: Decision) -> None:
        """Take a decision; when this returns it is on disk.

        Raises:
            OSError: the disk is full or refuses; nothing was decided.
        """
        facts = {**asdict(decision), "previous": self._last_hash}
        sha256 = _hash(facts)
        line = json.dumps({**facts, "sha256": sha256}).encode() + b"\n"
        with self._path.open("ab") as file:
            file.truncate(self._whole_bytes)
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        if not self._whole_bytes:
            fsync_directory(self._path.parent)
        self._take(decision)
        self._last_hash = sha256
        self._whole_bytes += len(line)

    def _take(self, decision: Decision) -> None:
        self._all.append(decision)
        match decision.kind:
            case "skip":
                self._last_skipped = max(self._last_skipped, decision.until)
            case "expand":
                self._expansions.add(decision.until)
            case "unlearn":
                self._unlearned[decision.until] = decision.after
            case "renumber":
                self._last_skipped = min(self._last_skipped, decision.after)
                self._expansions = {n for n in self._expansions if n <= decision.after}
                kept = self._unlearned.items()
                self._unlearned = {n: after for n, after in kept if n <= decision.after}

    def _lines(self) -> list[bytes]:
        try:
            content = self._path.read_bytes()
        except FileNotFoundError:
            return []
        lines = content[: content.rfind(b"\n") + 1].splitlines(keepends=True)
        if lines and b"\0" in lines[-1]:  # room that a crash left unfilled: JSON has no such byte
            del lines[-1]
        return lines

    def _read(self, line: bytes) -> Decision:
        where = f"line {len(self._all) + 1} of {self._path}"
        try:
            facts: dict[str, Any] = json.loads(line)
            sha256, previous = facts.pop("sha256"), facts["previous"]
            actual = _hash(facts)
            del facts["previous"]
            decision = Decision(**facts)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CorruptState(f"{where} cannot be read: {error}") from None
        if (previous, sha256) != (self._last_hash, actual):
            raise CorruptState(f"{where} is not what was written, or a line before it is missing")
        self._last_hash = sha256
        return decision


def _hash(facts: dict[str, Any]) -> str:
    canonical = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
