"""What became of entries and has not been told yet."""

from typing import Any

import structlog

from service.store.aside import SetAside
from service.store.entry import BatchStatus, Entry
from service.store.read import Outcome
from service.worker.step import RecentBatches, Step

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class Books:
    """Outcomes for clients, and entries to be kept for people; told with the next checkpoint."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []
        self.set_aside: list[SetAside] = []

    def enter(self, entry: Entry, step: Step, recent: RecentBatches) -> None:
        """Note what became of an entry."""
        facts: dict[str, Any] = {"state": "quarantined", "reason": step.reason}
        if step.report is not None:
            facts = {"state": "learned", "step": step.report.step, "expert": step.report.expert}
        elif step.state == "repeated":
            facts = {"state": "learned", "step": recent.step_of(entry.batch_id)}
        else:
            self.set_aside.append(SetAside.of(entry, str(step.reason)))
            log.warning("entry_quarantined", position=entry.position, reason=step.reason)
        status = BatchStatus(batch_id=entry.batch_id, n=entry.n, position=entry.position, **facts)
        key = entry.client_key
        self.outcomes.append(Outcome(number=entry.number, status=status, idempotency_key=key))
