"""One entry of the log through the engine: what the worker does, and a replay repeats.

The same log, the same decisions and the same engine settings give the same state, whoever walks
through them: that is why this file knows no Redis, no clock and no checkpoint.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from service.engine.protocol import Engine, EntryRefused, ObserveReport, Tensors
from service.store.decisions import Decisions
from service.store.entry import Entry
from service.store.stream_ids import START

RECENT = 50_000
"""Learned batches whose ids are remembered, so that one that comes twice is learned once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far the learner has come; consumed = learned + quarantined + repeated."""

    position: str = START
    consumed: int = 0
    learned: int = 0
    quarantined: int = 0
    repeated: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What became of one entry."""

    state: Literal["learned", "quarantined", "repeated"]
    report: ObserveReport | None = None
    """Of the engine; None unless learned."""
    reason: str | None = None
    """Why it was set aside; None unless quarantined."""


class RecentBatches:
    """The ids of the batches learned last, each with the step that learned it."""

    def __init__(self) -> None:
        self._steps: dict[str, int] = {}

    def step_of(self, batch_id: str) -> int | None:
        """Return the step that learned a batch, or None where none of the recent ones did."""
        return self._steps.get(batch_id)

    def add(self, batch_id: str, step: int) -> None:
        """Remember a batch; the oldest beyond `RECENT` is forgotten."""
        self._steps[batch_id] = step
        if len(self._steps) > RECENT:
            del self._steps[next(iter(self._steps))]

    def dump(self) -> Tensors:
        """Return it as arrays: `ids` uint8 [N, 16] and `steps` int64 [N], oldest first."""
        raw = b"".join(bytes.fromhex(batch_id) for batch_id in self._steps)
        ids = np.frombuffer(raw, np.uint8).reshape(-1, 16)
        return {"ids": ids, "steps": np.array(list(self._steps.values()), np.int64)}

    def load(self, arrays: Tensors) -> None:
        """Become what was dumped."""
        ids: Sequence[bytes] = [row.tobytes() for row in arrays["ids"]]
        steps = arrays["steps"].tolist()
        self._steps = {one.hex(): step for one, step in zip(ids, steps, strict=True)}


def advance(engine: Engine, entry: Entry, decisions: Decisions, recent: RecentBatches) -> Step:
    """Take the engine past one entry; wholly or not at all.

    Args:
        engine: learns the entry, unless it is set aside or came before.
        entry: the next of the log.
        decisions: what was decided about entries by number.
        recent: the batches learned last; this one joins them when it is learned.
    """
    step = _taken(engine, entry, decisions, recent)
    if decisions.expands(entry.number):  # after an entry that was set aside, too
        engine.expand()
        if step.report is not None:
            step = replace(step, report=replace(step.report, expanded=True))
    return step


def advanced(before: Progress, entry: Entry, step: Step) -> Progress:
    """Return the progress after `step` took the learner past `entry`."""
    return Progress(
        position=entry.position,
        consumed=entry.number,
        learned=before.learned + (step.state == "learned"),
        quarantined=before.quarantined + (step.state == "quarantined"),
        repeated=before.repeated + (step.state == "repeated"),
    )


def _taken(engine: Engine, entry: Entry, decisions: Decisions, recent: RecentBatches) -> Step:
    if recent.step_of(entry.batch_id) is not None:  # first: what was learned is not set aside
        return Step(state="repeated")
    reason = decisions.skips(entry.number)
    if reason is not None:
        return Step(state="quarantined", reason=reason)
    try:
        report = engine.observe(entry.number, entry.x, entry.labels)
    except EntryRefused as refusal:
        return Step(state="quarantined", reason=str(refusal))
    recent.add(entry.batch_id, report.step)
    return Step(state="learned", report=report)
