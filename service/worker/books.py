"""What became of entries and has not been told yet."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import structlog

from service.engine.protocol import ExpertInfo, Summary
from service.store.aside import SetAside
from service.store.entry import LETTERS, MOST_RESULTS, BatchStatus, Entry, LabelOutcome
from service.store.read import Outcome
from service.worker.recent import RecentBatches
from service.worker.step import Step

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class Books:
    """Outcomes for clients, and entries to be kept for people; told with the next checkpoint."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []
        self.set_aside: list[SetAside] = []
        self.expansions = 0
        """How many of the mixture were noted here."""

    def enter(self, entry: Entry, step: Step, recent: RecentBatches) -> None:
        """Note what became of an entry."""
        facts: dict[str, Any] = {"state": "quarantined", "reason": step.reason}
        if step.state == "learned":
            facts = {"state": "learned", "purged": step.purged, **_labels(step.results)}
            if step.report is not None:
                facts |= {"step": step.report.step, "expert": step.report.expert}
        elif step.state == "repeated":
            facts = {"state": "learned", "step": recent.step_of(entry.batch_id)}
        else:
            self.set_aside.append(SetAside.of(entry, str(step.reason)))
            log.warning("entry_quarantined", position=entry.position, reason=step.reason)
        status = BatchStatus(batch_id=entry.batch_id, n=entry.n, position=entry.position, **facts)
        key = entry.client_key
        self.outcomes.append(Outcome(number=entry.number, status=status, idempotency_key=key))

    def grew(self, summary: Summary) -> None:
        """Note the experts that were born after the entry that was entered last."""
        count = summary.expansions - self.expansions
        born = summary.experts[len(summary.experts) - count :]
        self.expansions = summary.expansions
        self.outcomes[-1] = replace(self.outcomes[-1], born=list(map(_told, born)))


def _labels(results: Sequence[LabelOutcome]) -> dict[str, Any]:
    """Return what a record says of late labels; nothing where there were none."""
    if not results:
        return {}
    tally: dict[LabelOutcome, int] = {outcome: results.count(outcome) for outcome in LETTERS}
    letters = "".join(LETTERS[outcome] for outcome in results[:MOST_RESULTS])
    return {"labels": tally, "results": letters}


def _told(expert: ExpertInfo) -> dict[str, Any]:
    """Return why an expert was born and what it costs."""
    return {
        "expert": expert.id,
        "step": expert.born_step,
        "cause": expert.cause,
        "novelty": expert.novelty,
        "threshold": expert.threshold,
        "p_value": expert.p_value,
        "parameters": expert.parameters,
        "bytes": expert.bytes,
    }
