"""One entry of the log through the engine: what the worker does, and a replay repeats.

The same log, the same decisions and the same engine settings give the same state, whoever walks
through them: that is why this file knows no Redis, no clock and no checkpoint.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Self

from service.engine.protocol import Engine, EntryRefused, ObserveReport, Stored
from service.settings import Settings
from service.store.decisions import Decisions
from service.store.entry import Entry, LabelOutcome
from service.store.stream_ids import START, order
from service.timeline import Timeline
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
    purged: Mapping[str, int] | None = None
    """What a purge did; see `BatchStatus`."""


@dataclass(frozen=True, slots=True)
class Memory:
    """What the steps before have left behind, beside the engine."""

    settings: Settings
    recent: RecentBatches
    waiting: Waiting
    writers: Writers
    timeline: Timeline = field(default_factory=Timeline)

    @classmethod
    def fresh(cls, settings: Settings) -> Self:
        """Return what there is before the first step."""
        return cls(settings, RecentBatches(), Waiting(settings), Writers())

    def lesson(self, entry: Entry) -> Lesson:
        """Return what there is to learn from the next entry; changes nothing."""
        return self.waiting.lesson(entry, self.recent)

    def remember(self, lesson: Lesson, *, step: int) -> None:
        """Take an entry into account that was learned by a step of the learner."""
        entry = lesson.entry
        self.recent.add(entry.batch_id, step)
        self.waiting.learned(lesson)
        if entry.kind == "purge":
            self.waiting.forget(entry.key_id)


def advance(engine: Engine, lesson: Lesson, decisions: Decisions, memory: Memory) -> Step:
    """Take the engine past one entry; wholly or not at all.

    Args:
        engine: learns the entry, unless it is set aside or came before.
        lesson: of the next entry of the log.
        decisions: what was decided about entries by number.
        memory: takes the entry in when it is learned.
    """
    step, number = _settled(lesson, decisions, memory), lesson.entry.number
    step = step or _taken(engine, lesson, decisions, memory)
    memory.waiting.passed(number)
    if decisions.expands(number):  # after an entry that was set aside, too
        engine.expand()
        if step.report is not None:
            step = replace(step, report=replace(step.report, expanded=True))
    arrived = lesson.entry.n if lesson.right is None else 0  # late labels bring no new samples
    memory.timeline.add(order(lesson.entry.position)[0], arrived, step.report)
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


def _settled(lesson: Lesson, decisions: Decisions, memory: Memory) -> Step | None:
    """Return what becomes of an entry that is not to be learned, else None."""
    entry = lesson.entry
    if memory.recent.step_of(entry.batch_id) is not None:  # first: what was learned stays
        return Step(state="repeated")
    reason = decisions.skips(entry.number, order=entry.kind == "purge")
    if reason is None and memory.writers.bars(entry):
        reason = "the key that wrote it was purged"
    return None if reason is None else Step(state="quarantined", reason=reason)


def _taken(engine: Engine, lesson: Lesson, decisions: Decisions, memory: Memory) -> Step:
    entry = lesson.entry
    if entry.kind == "purge":
        purged = _purged(engine, lesson, decisions, memory)
        memory.remember(lesson, step=0)
        return Step(state="learned", purged=purged)
    try:
        report = _learned(engine, lesson, memory.writers)
    except EntryRefused as refusal:
        memory.writers.refused.add(entry.number)
        return Step(state="quarantined", reason=str(refusal))
    if report is not None:
        memory.writers.learned(entry.key_id, report.labelled)
    memory.remember(lesson, step=0 if report is None else report.step)
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


def _purged(engine: Engine, lesson: Lesson, decisions: Decisions, memory: Memory) -> dict[str, int]:
    """Let the engine forget what the key of an entry has written; return `BatchStatus.purged`."""
    entry, writers = lesson.entry, memory.writers
    stored = (
        Stored(taught.number, taught.x, taught.labels)
        for taught in (one.taught for one in _retold(lesson.past, decisions, memory))
        if taught.key_id == entry.key_id and taught.labels is not None
    )
    told = engine.purge(writers.number(entry.key_id), stored)
    remaining = writers.purged(entry, told.unlearned)
    return {"replay": told.replay, "unlearned": told.unlearned, "remaining": remaining}


def _retold(entries: Iterable[Entry], decisions: Decisions, memory: Memory) -> Iterator[Lesson]:
    """Yield what was learned of past entries, as it was learned; nothing is learned again.

    Whatever joins a label to its sample lies among them, or was let go: so where they begin makes
    no difference to what they mean.
    """
    again = Memory(memory.settings, RecentBatches(), Waiting(memory.settings), memory.writers)
    for entry in entries:
        lesson = again.lesson(entry)
        refused = entry.number in memory.writers.refused
        if not refused and _settled(lesson, decisions, again) is None:
            again.remember(lesson, step=0)
            yield lesson
        again.waiting.passed(entry.number)
