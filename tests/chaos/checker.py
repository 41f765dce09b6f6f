"""What was acknowledged against what was learned; every difference is a violation with a number.

Three witnesses that know nothing of each other: the clients' receipts, the counters and ids in the
newest checkpoint, and an engine that is given the acknowledged batches in the order of the log
without ever being interrupted. The toy engine's bytes change with any batch lost, doubled or moved.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from service.engine.protocol import Engines
from service.inputs import InputSchema
from service.settings import Settings
from service.store.decisions import Decisions
from tests.chaos.clients import Acked, RetryingClient
from tests.chaos.parts import newest_checkpoint
from tests.chaos.workload import Workload
from tests.log_entries import digest
from tests.toy_engine import ToyEngines


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the checker found."""

    acked: int
    consumed: int
    learned: int
    quarantined: int
    repeated: int
    lost: int
    """Acknowledged, and neither learned nor quarantined."""
    doubled: int
    """Entries consumed beyond those acknowledged."""
    innocent: int
    """Quarantined because the worker was killed three times while it learned them."""
    same_state: bool
    """Whether the state is that of an engine that was never interrupted."""
    violations: list[str] = field(default_factory=list)


def check(
    settings: Settings,
    workload: Workload,
    clients: Sequence[RetryingClient],
    *,
    engines: Engines | None = None,
) -> Verdict:
    """Return what became of all batches; the worker has ended with everything learned.

    Args:
        settings: of the worker.
        workload: what the clients sent.
        clients: they have ended.
        engines: of the worker; None for the toy's.
    """
    checkpoint = newest_checkpoint(settings)
    progress, decisions = checkpoint.progress, Decisions(settings.state_dir)
    acked = sorted((one for client in clients for one in client.acked), key=_place)
    batches = list(enumerate(acked, start=1))
    set_aside = {
        one.batch_id
        for number, one in batches
        if workload.refused(one.client, one.number) or decisions.skips(number)
    }
    recent = {row.tobytes().hex() for row in checkpoint.recent["ids"]}
    newest = {one.batch_id for one in acked[-len(recent) // 2 :]}
    learnable = [pair for pair in batches if pair[1].batch_id not in set_aside]
    expected = _uninterrupted(settings, workload, learnable, engines or ToyEngines())
    verdict = Verdict(
        acked=len(acked),
        consumed=progress.consumed,
        learned=progress.learned,
        quarantined=progress.quarantined,
        repeated=progress.repeated,
        lost=len(newest - set_aside - recent),
        doubled=progress.consumed - len(acked),
        innocent=len(decisions) - len(workload.deadly),
        same_state=digest(checkpoint.state) == expected,
    )
    wrong = {
        "lost": verdict.lost,
        "trained twice": verdict.doubled,
        "in the log twice": verdict.repeated,
        "quarantined without a reason": verdict.quarantined - len(set_aside),
        "learned besides the acknowledged": verdict.learned - len(learnable),
        "ids given twice": len(acked) - len({one.batch_id for one in acked}),
        "rollbacks": len(decisions.rollbacks(since=0)),
        "other bytes than an uninterrupted run": int(not verdict.same_state),
    }
    verdict.violations.extend(f"{what}: {count}" for what, count in wrong.items() if count)
    return verdict


def _uninterrupted(
    settings: Settings, workload: Workload, batches: Sequence[tuple[int, Acked]], engines: Engines
) -> str:
    """Return the digest of an engine that got these batches, each with its number in the log."""
    schema = InputSchema.parse(workload.schema)
    engine = engines.create(settings, schema)
    for entry_number, one in batches:
        x, labels = workload.arrays(one.client, one.number)
        engine.observe((entry_number, 0), schema.canonical(x), labels)
    return digest(engine.dump())


def _place(one: Acked) -> tuple[int, ...]:
    assert one.position is not None
    return tuple(int(part) for part in one.position.split("-"))
