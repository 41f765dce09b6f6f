"""How many batches a second are acknowledged with every promise kept, while they are learned."""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.chaos.load import load
from tests.chaos.parts import chaos_settings
from tests.chaos.workload import Workload

BIG = Workload(schema="image:32x32x3", fewest=64, most=64)
"""Batches of 64 colour images: 196 KB."""
WARM_UP_S = 3.0
FEWEST_PER_S, P99_MS = 60.0, 200.0
"""Promised."""


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """What was measured."""

    per_s: float
    """Batches of 196 KB acknowledged."""
    p50_ms: float
    p99_ms: float
    learned_per_s: float
    refused: int
    violations: list[str]

    def __str__(self) -> str:
        return (
            f"{self.per_s:.0f} batches of 196 KB acknowledged a second, p50 {self.p50_ms:.0f} ms, "
            f"p99 {self.p99_ms:.0f} ms; {self.learned_per_s:.0f} learned a second, "
            f"{self.refused} refused; violations: {'; '.join(self.violations) or 'none'}"
        )


def throughput(seconds: float, home: Path, binary: Path) -> Throughput:
    """Return the rates of so many seconds, four clients, default cadence of checkpoints."""
    home.mkdir(parents=True, exist_ok=True)
    settings = chaos_settings(home, checkpoint_interval_s=10.0, snapshot_interval_s=2.0)
    with load(settings, BIG, binary=binary, clients=4) as run:
        run.go_on(WARM_UP_S)
        skipped = [len(client.latencies_s) for client in run.clients]
        refused, started_at = run.statuses()[503], time.monotonic()
        run.go_on(seconds)
        took_s, refused = time.monotonic() - started_at, run.statuses()[503] - refused
        latencies = [
            s
            for client, start in zip(run.clients, skipped, strict=True)
            for s in client.latencies_s[start:]
        ]
        posted_s = time.monotonic()
        verdict = run.end()
        drained_s = time.monotonic() - posted_s
    p50, p99 = np.percentile(latencies, [50, 99]) * 1000
    return Throughput(
        per_s=len(latencies) / took_s,
        p50_ms=float(p50),
        p99_ms=float(p99),
        learned_per_s=verdict.learned / (WARM_UP_S + took_s + drained_s),
        refused=refused,
        violations=[*verdict.violations, *run.service.unexpected],
    )
