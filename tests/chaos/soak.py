"""Undisturbed load for a long time: what grows that must not."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from service.store.link import connect
from service.store.names import DEFAULT as names
from tests.chaos.checker import Verdict, check
from tests.chaos.clients import Prober, RetryingClient, finish_all
from tests.chaos.parts import TOY_WORKER, Service, chaos_settings
from tests.chaos.workload import Workload

WARM_UP_SHARE = 0.4
"""Of the time, before growth is measured: allocators, caches and rings fill at first."""
EVERY_S = 1.0
MOST_MB_PER_MINUTE = 2.0
MOST_DESCRIPTORS = 5
"""By which the number of open files may differ."""
MOST_ENTRIES = 1000
"""Of the log that may be left for the oldest checkpoint kept, once all is learned."""
CLIENTS = 2
LONG_S = 900.0
"""By when all records that are ever kept are there; a shorter soak has a worker that keeps few."""
FEW_ENTRIES = 500
"""That wait for late labels in a shorter soak."""
PAUSE_S = 0.02
"""Between two batches of a client: steady, not as much as it takes."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One process at one moment."""

    at_s: float
    rss_mb: float
    descriptors: int
    threads: int

    @classmethod
    def of(cls, pid: int, at_s: float) -> "Sample":
        """Return what the kernel says of a process; Linux only."""
        home = Path(f"/proc/{pid}")
        lines = (home / "status").read_text().splitlines()
        said = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
        rss_mb = int(said["VmRSS"].split()[0]) / 1024
        return cls(at_s, rss_mb, len(list((home / "fd").iterdir())), int(said["Threads"]))


@dataclass(kw_only=True)
class Grown:
    """How much one process grew after the warm-up."""

    rss_mb: tuple[float, float]
    """Median of the first and of the last fifth measured."""
    slope_mb_per_minute: float
    descriptors: int
    """Difference between the least and the most."""
    threads: int


@dataclass(kw_only=True)
class Soaked:
    """What a soak found."""

    seconds: float
    verdict: Verdict
    grown: dict[str, Grown]
    redis_left: dict[str, int]
    """Entries, members and bytes in Redis at the end, everything learned."""
    redis_mb: float
    violations: list[str] = field(default_factory=list)


def soak(
    seconds: float,
    home: Path,
    binary: Path,
    *,
    seed: int = 0,
    told: Callable[[float], object] | None = None,
) -> Soaked:
    """Return what grew in worker, API and Redis during so many seconds of load."""
    home.mkdir(parents=True, exist_ok=True)
    brief = seconds <= LONG_S
    settings = chaos_settings(
        home,
        **({"label_window": FEW_ENTRIES} if brief else {}),
        checkpoint_interval_s=1.0,
        snapshot_interval_s=1.0,
        redis_maxmemory_bytes=64 * 2**20,  # so that its share of records is reached
        replay_bytes=16 * 2**20,
    )
    workload = Workload(seed=seed)
    worker = (*TOY_WORKER, "brief") if brief else TOY_WORKER
    with Service(settings, binary, worker=worker) as service:
        clients = [
            RetryingClient(n, settings.port, workload, pause_s=PAUSE_S) for n in range(CLIENTS)
        ]
        prober = Prober(settings.port, service.api, workload)
        for thread in (*clients, prober):
            thread.start()
        samples = _watch(service, seconds, told)
        finish_all(clients, service.tend)
        service.drain()
        prober.finish()
        prober.join()
        redis: Any = connect(service.redis.url)
        left, redis_mb = _left(redis)
        redis.close()
        service.stop()
    verdict = check(settings, workload, clients)
    grown = {name: _grown(of) for name, of in samples.items()}
    found = Soaked(
        seconds=seconds, verdict=verdict, grown=grown, redis_left=left, redis_mb=redis_mb
    )
    found.violations = [*verdict.violations, *service.unexpected, *prober.found.failures]
    if (entries := left["log"]) > MOST_ENTRIES:
        found.violations.append(f"{entries} entries left in the log")
    found.violations += [problem for name, one in grown.items() for problem in _problems(name, one)]
    return found


def _watch(
    service: Service, seconds: float, told: Callable[[float], object] | None
) -> dict[str, list[Sample]]:
    samples: dict[str, list[Sample]] = {name: [] for name in service.parts}
    started_at = time.monotonic()
    while (at_s := time.monotonic() - started_at) < seconds:
        service.tend()
        for name, part in service.parts.items():
            samples[name].append(Sample.of(part.pid, at_s))
        if told is not None:
            told(at_s)
        time.sleep(EVERY_S)
    return samples


def _grown(samples: Sequence[Sample]) -> Grown:
    warm = samples[int(len(samples) * WARM_UP_SHARE) :]
    fifth = max(1, len(warm) // 5)
    slope = np.polyfit([one.at_s / 60 for one in warm], [one.rss_mb for one in warm], 1)[0]
    descriptors = [one.descriptors for one in warm]
    threads = [one.threads for one in warm]
    return Grown(
        rss_mb=(
            float(np.median([one.rss_mb for one in warm[:fifth]])),
            float(np.median([one.rss_mb for one in warm[-fifth:]])),
        ),
        slope_mb_per_minute=float(slope),
        descriptors=max(descriptors) - min(descriptors),
        threads=max(threads) - min(threads),
    )


def _left(redis: Any) -> tuple[dict[str, int], float]:  # noqa: ANN401  redis-py's types are a union
    kinds: dict[str, int] = {}
    for name in redis.scan_iter(count=1000):
        kind = name.decode().split(":")[2]
        kinds[kind] = kinds.get(kind, 0) + 1
    kinds |= {"log": redis.xlen(names.log), "replay": redis.hlen(names.replay)}
    return kinds, redis.info("memory")["used_memory"] / 2**20


def _problems(name: str, one: Grown) -> list[str]:
    wrong = {
        f"{one.slope_mb_per_minute:.1f} MB a minute": one.slope_mb_per_minute > MOST_MB_PER_MINUTE,
        f"{one.descriptors} open files": one.descriptors > MOST_DESCRIPTORS,
        f"{one.threads} threads": one.threads > 0,
    }
    return [f"{name} grew by {what}" for what, is_wrong in wrong.items() if is_wrong]


def table(found: Soaked) -> Table:
    """Return the closing table."""
    made = Table(
        "part", "MB", "MB a minute", "open files", "threads", title=f"soak, {found.seconds:.0f} s"
    )
    for name, one in found.grown.items():
        mb = "{:.0f} to {:.0f}".format(*one.rss_mb)
        counts = (f"±{one.descriptors}", f"±{one.threads}")
        made.add_row(name, mb, f"{one.slope_mb_per_minute:+.2f}", *counts)
    left = ", ".join(f"{count} {kind}" for kind, count in sorted(found.redis_left.items()))
    made.caption = (
        f"{found.verdict.acked} acknowledged; left in Redis: {left}, {found.redis_mb:.1f} MB; "
        f"violations: {'; '.join(found.violations) or 'none'}"
    )
    return made
