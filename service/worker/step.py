"""One entry of the log through the engine: what the worker does, and a replay repeats.

The same log, the same decisions and the same engine settings give the same state, whoever walks
through them: that is why this file knows no Redis, no clock and no checkpoint.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self

from service.engine.protocol import Engine, EntryRefused, ObserveReport
from service.settings import Settings
from service.store.decisions import Decisions
from service.store.entry import Entry, LabelOutcome
from service.store.stream_ids import START
from service.worker.recent import RecentBatches
from service.worker.waiting import Lesson, Waiting
from service.worker.writers import Writers


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
    """Of the engine; None unless it learned something."""
    reason: str | None = None
    """Why it was set aside; None unless quarantined."""
    results: Sequence[LabelOutcome] = ()
    """What became of each late label, in their order."""


@dataclass(frozen=True, slots=True)
class Memory:
    """What the steps before have left behind, beside the engine."""

    recent: RecentBatches
    waiting: Waiting
    writers: Writers

    @classmethod
    def fresh(cls, settings: Settings) -> Self:
        """Return what there is before the first step."""
        return cls(RecentBatches(), Waiting(settings), Writers())

    def lesson(self, entry: Entry) -> Lesson:
        """Return what there is to learn from the next entry; changes nothing."""
        return self.waiting.lesson(entry, self.recent)


def advance(engine: Engine, lesson: Lesson, decisions: Decisions, memory: Memory) -> Step:
    """Take the engine past one entry; wholly or not at all.

    Args:
        engine: learns the entry, unless it is set aside or came before.
        lesson: of the next entry of the log.
        decisions: what was decided about entries by number.
        memory: takes the entry in when it is learned.
    """
    step, number = _taken(engine, lesson, decisions, memory), lesson.entry.number
    memory.waiting.passed(number)
    if decisions.expands(number):  # after an entry that was set aside, too
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


def _taken(engine: Engine, lesson: Lesson, decisions: Decisions, memory: Memory) -> Step:
    entry = lesson.entry
    if memory.recent.step_of(entry.batch_id) is not None:  # first: what was learned stays
        return Step(state="repeated")
    reason = decisions.skips(entry.number)
    if reason is not None:
        return Step(state="quarantined", reason=reason)
    try:
        report = _learned(engine, lesson, memory.writers)
    except EntryRefused as refusal:
        return Step(state="quarantined", reason=str(refusal))
    memory.recent.add(entry.batch_id, 0 if report is None else report.step)
    if report is not None:
        memory.writers.learned(entry.key_id, report.labelled)
    memory.waiting.learned(lesson)
    return Step(state="learned", report=report, results=lesson.results)


def _learned(engine: Engine, lesson: Lesson, writers: Writers) -> ObserveReport | None:
    """Return the engine's report; None where no late label has met its sample."""
    taught = lesson.taught
    origin = (taught.number, writers.number(taught.key_id))
    if lesson.right is None:
        return engine.observe(origin, taught.x, taught.labels)
    if taught.labels is None:
        return None
    return engine.label(origin, taught.x, taught.labels, lesson.right)
