"""What is told of a learner's life to whoever listens, each thing once.

    of entries     the experts born after one; those set aside, together
    of decisions   going back, a drift, going on after a loss
    of snapshots   the newest, at most once in `SNAPSHOT_INTERVAL_S`

Told with each checkpoint, behind the mark of what was told before. The mark's order is that of
telling: a decision that begins anew comes after all that it gives up.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

from service.store.decisions import Decision, Decisions
from service.store.events import EntryMark, EventKind, Facts, Mark, News
from service.store.read import Log, Outcome
from service.worker.state import WorkerState

SNAPSHOT_INTERVAL_S = 60.0
"""Shortest time between two snapshots that are told: there may be one every two seconds."""
MOST_LISTED = 8
"""Most batches that one event lists; those beyond are counted."""

Told = tuple[EventKind, Facts]


class Telling:
    """Finds what is new, and tells it."""

    def __init__(self, log: Log, decisions: Decisions) -> None:
        self._log = log
        self._decisions = decisions
        self._snapshot_told_at = float("-inf")

    def tell(self, state: WorkerState, checkpoint: int, snapshot: int) -> None:
        """Tell what became of entries that are now in a checkpoint, and what else is new.

        Args:
            state: of the worker, as the checkpoint has it.
            checkpoint: its number.
            snapshot: version of the newest.

        Raises:
            Unavailable: Redis is away; may be called again.
        """
        outcomes, progress = state.books.outcomes, state.progress
        news = self._news(outcomes, snapshot=snapshot)
        self._log.tell(progress.position, progress.consumed, outcomes, news, checkpoint=checkpoint)
        outcomes.clear()

    def _news(self, outcomes: Sequence[Outcome], *, snapshot: int) -> News:
        """Return what is to be told with a checkpoint.

        Args:
            outcomes: of entries that are in it and were perhaps not told of.
            snapshot: version of the newest.

        Raises:
            Unavailable: Redis is away.
        """
        decisions = list(self._decisions)
        mark = self._log.mark()
        if mark is None:  # a new stream; or a fork, which tells nothing of its origin
            mark = Mark(entry=EntryMark(), decisions=len(decisions), snapshot=0)
        marked = [(entry_mark(decisions, one.number), one) for one in outcomes]
        fresh = [one for place, one in marked if place > mark.entry]
        events = [
            *(told for one in decisions[mark.decisions :] for told in _decided(one)),
            *(told for one in fresh for told in _born(one)),
            *_set_aside([one for one in fresh if one.status.state == "quarantined"]),
        ]
        mark = Mark(
            entry=max([mark.entry, *(place for place, _ in marked)]),
            decisions=len(decisions),
            snapshot=mark.snapshot,
        )
        if snapshot > mark.snapshot and self._may_tell_a_snapshot():
            events.append(("snapshot", {"version": snapshot}))
            mark = replace(mark, snapshot=snapshot)
        return News(mark=mark, events=events)

    def _may_tell_a_snapshot(self) -> bool:
        now = time.monotonic()
        if now - self._snapshot_told_at < SNAPSHOT_INTERVAL_S:
            return False
        self._snapshot_told_at = now
        return True


def entry_mark(decisions: Sequence[Decision], number: int) -> EntryMark:
    """Return the mark of an entry, given all that was decided."""
    for place in range(len(decisions), 0, -1):
        one = decisions[place - 1]
        anew = one.checkpoint is not None or one.kind == "renumber"
        if anew and one.after < number:
            return EntryMark(place, number)
    return EntryMark(0, number)


def _decided(one: Decision) -> Iterator[Told]:
    if one.checkpoint is not None:
        facts = {"checkpoint": one.checkpoint, "after": one.after, "until": one.until}
        yield "rolled_back", {**facts, "reason": one.reason, "asked": one.command is not None}
    elif one.kind == "expand":
        yield "drifted", {"number": one.until, "reason": one.reason}
    elif one.kind == "renumber":
        yield "resynced", {"number": one.after, "reason": one.reason}


def _born(one: Outcome) -> Iterator[Told]:
    for expert in one.born:
        status = one.status
        place = {"number": one.number, "position": status.position, "batch_id": status.batch_id}
        yield "expanded", {**expert, **place}


def _set_aside(those: Sequence[Outcome]) -> Iterator[Told]:
    """Yield one event of all that were set aside."""
    if not those:
        return
    listed = [
        {"batch_id": one.status.batch_id, "number": one.number, "reason": one.status.reason}
        for one in those[:MOST_LISTED]
    ]
    numbers = {"first": those[0].number, "last": those[-1].number}
    yield "quarantined", {"entries": len(those), **numbers, "batches": listed}
