"""What is decided about entries besides learning them; every decision is on disk before it counts.

Before an entry: is it set aside untried? After it: is the learner to go back, or to grow?
"""

from dataclasses import asdict

import structlog

from service.engine.protocol import Engine
from service.metrics import LearningMetrics
from service.settings import Settings
from service.store.decisions import Decision, Decisions
from service.store.entry import Entry
from service.worker.attempts import MOST_DEATHS, Attempts
from service.worker.health import Health, Verdict
from service.worker.step import Step

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class Judge:
    """The decisions of a state directory, and who adds to them."""

    def __init__(self, settings: Settings, metrics: LearningMetrics) -> None:
        self.decisions = Decisions(settings.state_dir)
        self.attempts = Attempts(settings.state_dir)
        self._metrics = metrics

    def decide(self, decision: Decision) -> None:
        """Take a decision.

        Raises:
            OSError: the disk is full or refuses; nothing was decided.
        """
        self.decisions.add(decision)
        self._metrics.decisions[decision.kind].inc()
        log.warning("decided", **asdict(decision))

    def before(self, health: Health, engine: Engine, entry: Entry) -> None:
        """Set an entry aside that must not be tried, or that contradicts the model on probation."""
        number, deaths = entry.number, self.attempts.deaths(entry.number)
        if deaths >= MOST_DEATHS:
            reason: str | None = f"the worker died {deaths} times while it learned this batch"
        else:
            reason = health.contradiction(engine, entry)
        if reason is not None and self._tried(entry):
            self.decide(Decision(kind="skip", after=number - 1, until=number, reason=reason))

    def _tried(self, entry: Entry) -> bool:
        """Say whether an entry is not set aside so far."""
        return self.decisions.skips(entry.number, order=entry.kind == "purge") is None

    def after(self, health: Health, engine: Engine, entry: Entry, step: Step) -> Verdict:
        """Return the verdict on the learner after an entry; after a drift it has grown."""
        verdict, number = health.after(engine, entry, step), entry.number
        if verdict == "drifted" and not self.decisions.expands(number):
            why = "the evidence lasted: the world has changed"
            self.decide(Decision(kind="expand", after=number, until=number, reason=why))
            engine.expand()
        return verdict

    def has_followed(self, command: str) -> bool:
        """Return whether a command led to a decision already."""
        return any(one.command == command for one in self.decisions)
