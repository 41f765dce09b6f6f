"""Whether learning has done harm: looked at in the weights' answers, never in what arrives.

Every `EVERY` entries the model answers the canary. Much worse than lately, and still so `CONFIRM`
entries later, it has diverged: the learner goes back to a checkpoint from before, and the entries
since are set aside. Then, for `PROBATION` entries, those that contradict the restored model are set
aside as well; if most of them do, the world has changed, not the learner: it grows, and all that
was set aside is learned after all. While a class is new nothing is judged.
"""

import math
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from service.engine.protocol import Engine, Tensors
from service.store.entry import Entry
from service.worker.canary import Canary, Measure
from service.worker.step import Step

EVERY = 25
"""Entries between two looks."""
CONFIRM = 10
"""Entries after which harm that was seen must still be there."""
PROBATION = 200
"""Entries after a rollback that decide between a burst and a drift."""
TRUSTED = 1000
"""Entries after a drift for which nothing is rolled back; twice as many after each further one."""
LOST_ACCURACY, STANDARD_ERRORS = 0.1, 3.0
"""Fall of the canary's accuracy that is harm, if it is so many standard errors too."""
LOSS_FACTOR, LOSS_STEP = 5.0, 0.5
"""A loss above so many times its median, and by so many nats more, is harm, too."""
COMPARED = 8
"""Healthy looks whose median is what is compared with."""
FEWEST_COMPARED = 3
FEWEST_LABELLED = 4
"""Labelled samples of settled classes in an entry that can contradict the model."""

DIVERGED, CONTRADICTS = "diverged: ", "contradicts the restored model: "
"""Beginnings of the reasons for which entries are set aside here: only those a drift releases."""

Verdict = Literal["none", "diverged", "drifted"]


@dataclass
class Facts:
    """What is known of the learner's health; JSON-able."""

    looks: list[tuple[float, float]] = field(default_factory=list)
    """Accuracy and loss of the healthy looks compared with, oldest first."""
    healthy_until: int = 0
    """Number of the entry up to which nothing was wrong."""
    suspect_since: int | None = None
    """Number of the entry at which harm was seen first."""
    probation_since: int = 0
    """Number of the last entry before it: those up to there had been found healthy, and which of
    them are learned again depends on which checkpoint there was."""
    probation_until: int = 0
    """Number of the last entry on probation; 0 outside."""
    trusted_until: int = 0
    """Number of the entry up to which nothing is rolled back, as the world has been drifting."""
    drifts: int = 0
    judged: int = 0
    contradicting: int = 0
    set_aside: list[str] = field(default_factory=list)
    """Positions of the entries set aside since the rollback."""


class Health:
    """The canary and what it has shown."""

    def __init__(self) -> None:
        self.facts = Facts()
        self.canary = Canary()
        self.last: Measure | None = None
        """The newest look; None before the first."""

    def contradiction(self, engine: Engine, entry: Entry) -> str | None:
        """Return why an entry on probation is to be set aside, or None."""
        facts = self.facts
        if not self._on_probation(entry.number) or not facts.looks:
            return None
        right, of = self.canary.right(engine, entry)
        if of < FEWEST_LABELLED:
            return None
        facts.judged += 1
        expected = statistics.median(accuracy for accuracy, _ in facts.looks)
        if right / of > expected / 2:
            return None
        facts.contradicting += 1
        return f"{CONTRADICTS}{right} of {of} labels agree"

    def after(self, engine: Engine, entry: Entry, step: Step) -> Verdict:
        """Return the verdict after `step` took the learner past an entry."""
        facts = self.facts
        if step.purged is not None:
            self.canary.drop(entry.key_id)
        elif step.state == "learned":
            self.canary.add(entry)
        elif self._on_probation(entry.number) and _is_ours(step.reason):
            facts.set_aside.append(entry.position)
        if entry.number == facts.probation_until:
            return self._end_probation()
        return self._look(engine, entry.number) if self._due(entry.number) else "none"

    @property
    def harm(self) -> str:
        """What the last look showed, for people."""
        before = statistics.median(accuracy for accuracy, _ in self.facts.looks)
        now = 0.0 if self.last is None else self.last.accuracy
        return f"{DIVERGED}accuracy on samples of the past fell from {before:.2f} to {now:.2f}"

    def went_back(self, after: int, until: int) -> None:
        """Begin the probation after a rollback that set aside entries after + 1 to until."""
        self.facts = Facts(
            looks=self.facts.looks,
            healthy_until=self.facts.healthy_until,
            probation_since=after,
            probation_until=until + PROBATION,
            drifts=self.facts.drifts,
        )

    def dump(self) -> dict[str, Any]:
        """Return everything but the samples, JSON-able."""
        return {"facts": asdict(self.facts), "canary": self.canary.facts()}

    def load(self, dumped: Mapping[str, Any], samples: Tensors) -> None:
        """Become what was dumped."""
        self.facts = Facts(**{**dumped["facts"], "looks": [*map(tuple, dumped["facts"]["looks"])]})
        self.canary.load(dumped["canary"], samples)

    def _on_probation(self, number: int) -> bool:
        return self.facts.probation_since < number <= self.facts.probation_until

    def _due(self, number: int) -> bool:
        since = self.facts.suspect_since
        return number % EVERY == 0 or (since is not None and number == since + CONFIRM)

    def _look(self, engine: Engine, number: int) -> Verdict:
        facts = self.facts
        measure = self.canary.measure(engine, number) if self.canary.settled else None
        if measure is None:
            self._found_healthy(number, [])
            return "none"
        self.last = measure
        if not self._is_harm(measure):
            looks = [*facts.looks, (measure.accuracy, measure.loss)]
            self._found_healthy(number, looks[-COMPARED:])
        elif facts.suspect_since is None:
            facts.suspect_since = number
        elif number >= facts.suspect_since + CONFIRM and number > self._protected_until:
            return "diverged"
        return "none"

    @property
    def _protected_until(self) -> int:
        return max(self.facts.probation_until, self.facts.trusted_until)

    def _found_healthy(self, number: int, looks: list[tuple[float, float]]) -> None:
        self.facts.looks = looks
        self.facts.healthy_until, self.facts.suspect_since = number, None

    def _is_harm(self, measure: Measure) -> bool:
        looks = self.facts.looks
        if len(looks) < FEWEST_COMPARED:
            return False
        accuracy = statistics.median(accuracy for accuracy, _ in looks)
        loss = statistics.median(loss for _, loss in looks)
        error = math.sqrt(accuracy * (1 - accuracy) / measure.samples)
        fell = accuracy - measure.accuracy >= max(LOST_ACCURACY, STANDARD_ERRORS * error)
        unsure = measure.loss > max(LOSS_FACTOR * loss, loss + LOSS_STEP)
        return fell or unsure or not math.isfinite(measure.loss)

    def _end_probation(self) -> Verdict:
        """Return `drifted` if most entries contradicted, or the harm is still there."""
        facts = self.facts
        drifted = facts.suspect_since is not None or 2 * facts.contradicting > facts.judged > 0
        number, drifts = facts.probation_until, facts.drifts
        if not drifted:
            self.facts = Facts(looks=facts.looks, healthy_until=number, drifts=drifts)
            return "none"
        self.facts = Facts(
            healthy_until=number,
            trusted_until=number + TRUSTED * 2**drifts,
            drifts=drifts + 1,
            set_aside=facts.set_aside,
        )
        self.canary.forget()
        return "drifted"


def _is_ours(reason: str | None) -> bool:
    return reason is not None and reason.startswith((DIVERGED, CONTRADICTS))
