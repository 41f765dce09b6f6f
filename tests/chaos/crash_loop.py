"""Kill worker, API and Redis at random moments while clients post; then count.

The moments come from a seed. One kill in five follows the one before so soon that it meets a part
that is just starting.
"""

import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from service.engine.protocol import Array, Engines
from tests.chaos.checker import Verdict, check
from tests.chaos.clients import Prober, RetryingClient, finish_all
from tests.chaos.parts import TOY_API, TOY_WORKER, Part, Service, chaos_settings
from tests.chaos.workload import Workload

SHARES = {"worker": 0.5, "api": 0.25, "redis": 0.25}
"""Of the kills."""
SHARE_SOON = 0.2
TICK_S = 0.005
SOON_S = 0.2
"""A kill that follows so soon need not wait for a worker to learn."""
OBSERVE_AGAIN_S, PREDICT_AGAIN_S = 5.0, 15.0
"""Promised times after a restart (R18)."""


@dataclass(kw_only=True)
class Plan:
    """What is done to a service."""

    kills: int = 60
    seed: int = 0
    fewest_acks: int = 0
    """The load goes on until there are so many."""
    clients: int = 4
    shares: dict[str, float] = field(default_factory=lambda: dict(SHARES))
    gap_s: float = 0.6
    """Mean time between kills."""
    pause_s: float = 0.0
    """Between two batches of a client."""
    worker: Sequence[str] = TOY_WORKER
    api: Sequence[str] = TOY_API
    awake_s: float = 4.0
    """By when a worker learns, or has nothing to go on from."""
    engines: Engines | None = None
    """Those of the worker; None for the toy's."""
    workload: Workload = field(default_factory=Workload)

    def victims(self) -> list[tuple[float, str]]:
        """Return the kills in their order: seconds after the one before, and whom."""
        draw = random.Random(self.seed)  # noqa: S311  no secret
        named = [
            name for name, share in self.shares.items() for _ in range(round(share * self.kills))
        ]
        named = (named + ["worker"] * self.kills)[: self.kills]
        draw.shuffle(named)
        return [(self._gap(draw), name) for name in named]

    def _gap(self, draw: random.Random) -> float:
        if draw.random() < SHARE_SOON:
            return draw.uniform(0, SOON_S)
        return draw.uniform(SOON_S, 2 * self.gap_s)


@dataclass(kw_only=True)
class Report:
    """What a crash loop found."""

    verdict: Verdict
    seconds: float
    kills: Counter[str]
    retried: int
    statuses: Counter[int]
    durability: Counter[str]
    asked: int
    predict_failures: list[str]
    observe_ms: tuple[float, float]
    """Median and 99th percentile of acknowledged requests, retries left out."""
    predict_ms: tuple[float, float]
    predict_again_s: float
    """Longest time from the start of an API to an answer of /predict."""
    observe_again_s: float
    """Longest time from the start of an API that was not killed meanwhile to a 202."""
    violations: list[str]


def crash_loop(
    plan: Plan,
    home: Path,
    binary: Path,
    *,
    told: Callable[[int, int], object] | None = None,
    **options: object,
) -> Report:
    """Return what was found.

    Args:
        plan: what is done.
        home: an empty directory for everything the service writes.
        binary: the Redis server.
        told: is called with kills and acknowledgements so far, now and then.
        options: settings of the service.
    """
    home.mkdir(parents=True, exist_ok=True)
    settings = chaos_settings(home, **options)
    started_at = time.monotonic()
    with Service(settings, binary, worker=plan.worker, api=plan.api) as service:
        clients = [
            RetryingClient(n, settings.port, plan.workload, pause_s=plan.pause_s)
            for n in range(plan.clients)
        ]
        prober = Prober(settings.port, service.api, plan.workload)
        for thread in (*clients, prober):
            thread.start()
        kills = _kill(plan, service, clients, told)
        finish_all(clients, service.tend)
        service.drain()
        prober.finish()
        prober.join()
        ended = service.stop()
    verdict = check(settings, plan.workload, clients, engines=plan.engines)
    report = _report(clients, prober, service.api, verdict, kills, time.monotonic() - started_at)
    report.violations += service.unexpected
    report.violations += [f"{n} ended with {code}" for n, (code, _) in ended.items() if code]
    return report


def _kill(
    plan: Plan,
    service: Service,
    clients: Sequence[RetryingClient],
    told: Callable[[int, int], object] | None,
) -> Counter[str]:
    """Kill as planned, and go on until enough was acknowledged."""
    kills: Counter[str] = Counter()
    victims = plan.victims()
    while not any(client.acked for client in clients):
        service.tend()
        time.sleep(TICK_S)
    due_at = time.monotonic()
    while kills.total() < plan.kills or sum(len(c.acked) for c in clients) < plan.fewest_acks:
        service.tend()
        if kills.total() < plan.kills and time.monotonic() >= due_at:
            gap_s, name = victims[kills.total()]
            if gap_s >= SOON_S and name == "worker" and not _learns(service.worker, plan):
                due_at = time.monotonic() + gap_s / 4  # not always right after it began
            else:
                service.parts[name].kill()
                kills[name] += 1
                due_at = time.monotonic() + gap_s
        if told is not None:
            told(kills.total(), sum(len(client.acked) for client in clients))
        if any(client.refusals for client in clients):
            break
        time.sleep(TICK_S)
    return kills


def _learns(worker: Part, plan: Plan) -> bool:
    """Say whether a worker has come so far that killing it proves something."""
    return b'"restored"' in worker.said() or time.monotonic() > worker.started_at + plan.awake_s


def _report(
    clients: Sequence[RetryingClient],
    prober: Prober,
    api: Part,
    verdict: Verdict,
    kills: Counter[str],
    seconds: float,
) -> Report:
    found = prober.found
    statuses: Counter[int] = sum((client.statuses for client in clients), Counter())
    durability: Counter[str] = sum((client.durability for client in clients), Counter())
    acked_at = np.sort(np.concatenate([client.acked_at for client in clients]))
    violations = list(verdict.violations)
    violations += [refusal for client in clients for refusal in client.refusals]
    violations += [f"/predict: {failure}" for failure in found.failures[:5]]
    if set(durability) != {"always"}:
        violations.append(f"acknowledged with {dict(durability)}")
    return Report(
        verdict=verdict,
        seconds=seconds,
        kills=kills,
        retried=sum(client.retried for client in clients),
        statuses=statuses,
        durability=durability,
        asked=found.asked,
        predict_failures=found.failures,
        observe_ms=_percentiles([s for client in clients for s in client.latencies_s]),
        predict_ms=_percentiles(found.latencies_s),
        predict_again_s=max(found.restarts_s, default=0.0),
        observe_again_s=_longest_start(api.starts, acked_at),
        violations=violations,
    )


def _longest_start(starts: Sequence[float], acked_at: Array) -> float:
    """Return the longest time from a start to the next acknowledgement before the next start."""
    took_s = [0.0]
    for start, following in zip(starts, [*starts[1:], np.inf], strict=True):
        first = np.searchsorted(acked_at, start)
        if first < len(acked_at) and acked_at[first] < following:
            took_s.append(float(acked_at[first]) - start)
    return max(took_s)


def _percentiles(seconds: Sequence[float]) -> tuple[float, float]:
    """Return median and 99th percentile in milliseconds."""
    if not seconds:
        return float("nan"), float("nan")
    low, high = np.percentile(seconds, [50, 99]) * 1000
    return float(low), float(high)
