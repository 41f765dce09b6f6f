"""The expansion rule alone: how often it alarms without a change, and how late after one.

    python -m bench.false_expansions --jobs 2

1. False expansions: simulated exchangeable streams of scores (normal, exponential, with many ties,
   a row in random order), `ChangeDetector` at its defaults; the rate of streams with an alarm and
   its upper 95 % bound (Clopper & Pearson 1934, one-sided).
2. Delay: normal scores that change at a random place; samples from the change to the alarm.
3. Errors: `ErrorDetector` at its defaults on streams of 0 and 1; alarms without a rise of the error
   rate, and delay after one. Bursts repeat the error before with the chance given.
"""

import argparse
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy import stats
from torch import Generator, Tensor

from bench import command
from learner.detector import ChangeDetector
from learner.error_detector import ErrorDetector

BATCH = 1000  # scores handed over at once, which changes nothing
CALM = 20_000  # losses in a stream without a rise
Draw = Callable[[int, Generator], Tensor]


def _normal(n: int, generator: Generator) -> Tensor:
    return torch.randn(n, generator=generator)


def _exponential(n: int, generator: Generator) -> Tensor:
    return torch.empty(n).exponential_(generator=generator)


def _tied(n: int, generator: Generator) -> Tensor:
    return torch.randn(n, generator=generator).round()


def _shuffled(n: int, generator: Generator) -> Tensor:
    return torch.randperm(n, generator=generator).float()


DRAWS: Sequence[Draw] = (_normal, _exponential, _tied, _shuffled)
CHANGES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "up by 0.5 deviations": lambda x: x + 0.5,
    "up by 1": lambda x: x + 1,
    "up by 2": lambda x: x + 2,
    "up by 4": lambda x: x + 4,
    "1 in 10 up by 4": lambda x: x + 4 * (torch.arange(len(x)) % 10 == 0),
    "down by 1": lambda x: x - 1,
    "twice as wide": lambda x: 2 * x,
}


@dataclass(frozen=True, slots=True)
class Delays:
    """How late alarms came after a change; samples."""

    change: str
    streams: int
    early: int
    """Alarms before the change."""
    found: int
    median: float | None


def alarm_at(scores: Tensor, generator: Generator) -> int | None:
    """Return the index of the first alarm of a fresh rule, if any."""
    detector = ChangeDetector()
    for start in range(0, len(scores), BATCH):
        verdict, detector = detector.observed(scores[start : start + BATCH], generator)
        if verdict.alarm is not None:
            return start + verdict.alarm
    return None


def falsely_alarmed(seed: int, length: int) -> bool:
    """Say whether the rule alarms on an exchangeable stream."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(seed)
    scores = DRAWS[seed % len(DRAWS)](length, generator)
    return alarm_at(scores, generator) is not None


def upper_bound(alarms: int, streams: int) -> float:
    """Return the one-sided upper 95 % bound of a rate (Clopper & Pearson 1934)."""
    two_sided = stats.binomtest(alarms, streams).proportion_ci(0.9, method="exact")
    return float(two_sided.high)


def delays(change: str, streams: int) -> Delays:
    """Return how late the rule finds a change after 1,000 to 10,000 scores."""
    found: list[int | None] = []
    for seed in range(streams):
        generator = torch.Generator().manual_seed(seed)
        place = int(torch.randint(1000, 10_000, (1,), generator=generator))
        scores = torch.randn(place + 3000, generator=generator)
        scores[place:] = CHANGES[change](scores[place:])
        alarm = alarm_at(scores, generator)
        found.append(None if alarm is None else alarm - place + 1)
    return _summary(change, found)


def _summary(change: str, found: Iterable[int | None]) -> Delays:
    all_found = list(found)
    late = [delay for delay in all_found if delay is not None and delay > 0]
    early = sum(delay is not None and delay <= 0 for delay in all_found)
    # a stream without an alarm counts as later than all others
    ordered = sorted(late) + [math.inf] * (len(all_found) - early - len(late))
    median = statistics.median_low(ordered) if ordered else math.inf
    known = None if math.isinf(median) else median
    return Delays(change, len(all_found), early, len(late), known)


def _bursts(rate: float, again: float, generator: Generator) -> Tensor:
    fresh = (torch.rand(CALM, generator=generator) < rate).tolist()
    repeats = (torch.rand(CALM, generator=generator) < again).tolist()
    for i in range(1, CALM):
        fresh[i] = fresh[i - 1] if repeats[i] else fresh[i]
    return torch.tensor(fresh, dtype=torch.float64)


def _at(rates: Tensor, generator: Generator) -> Tensor:
    return (torch.rand(len(rates), generator=generator) < rates).double()


_T = torch.arange(CALM)
QUIET: Mapping[str, Callable[[Generator], Tensor]] = {
    "10 %": partial(_at, torch.full((CALM,), 0.1)),
    "60 % falling to 5 %": partial(_at, 0.05 + 0.55 * (-_T / 3000).exp()),
    "5 % rising to 15 % slowly": partial(_at, 0.05 + 0.1 * _T / CALM),
    "5 to 15 %, swinging in 500": partial(_at, 0.1 + 0.05 * (2 * math.pi * _T / 500).sin()),
    "5 to 15 %, swinging in 2,000": partial(_at, 0.1 + 0.05 * (2 * math.pi * _T / 2000).sin()),
    "10 %, bursts 0.2": partial(_bursts, 0.1, 0.2),
    "10 %, bursts 0.5": partial(_bursts, 0.1, 0.5),
    "30 %, bursts 0.3": partial(_bursts, 0.3, 0.3),
}
RISES: Sequence[tuple[float, float, int]] = (
    *((0.1, 0.3, place) for place in (500, 2000, 10_000)),
    *((0.02, 0.1, place) for place in (2000, 10_000)),
    *((0.1, 0.2, place) for place in (2000, 10_000)),
    (0.1, 0.9, 500),
)


def quiet_errors(kind: str, streams: int) -> int:
    """Return in how many streams without a lasting rise the error detector alarms."""
    generators = (torch.Generator().manual_seed(seed) for seed in range(streams))
    return sum(ErrorDetector().judged(QUIET[kind](g))[0] is not None for g in generators)


def rises(rise: tuple[float, float, int], streams: int) -> Delays:
    """Return how late the error detector finds a rise (rate before, rate after, place)."""
    before, after, place = rise
    rates = torch.where(torch.arange(place + 3000) < place, before, after)
    found = []
    for seed in range(streams):
        losses = _at(rates, torch.Generator().manual_seed(seed))
        alarm, _ = ErrorDetector().judged(losses)
        found.append(None if alarm is None else alarm - place + 1)
    return _summary(f"{before:.0%} to {after:.0%} after {place:,}", found)


def _table(console: Console, title: str, rows: Iterable[Delays]) -> None:
    table = Table(title, "streams", "alarm too early", "found", "median delay")
    for row in rows:
        delay = "-" if row.median is None else f"{row.median:,.0f}"
        table.add_row(row.change, *map(str, (row.streams, row.early, row.found)), delay)
    console.print(table)


def main() -> None:
    """Simulate, print the rate, its bound and the delays; with --json also write them."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--streams", type=int, default=2000, help="exchangeable streams")
    options.add_argument("--length", type=int, default=100_000, help="scores in each")
    options.add_argument("--changed", type=int, default=100, help="streams per change")
    options.add_argument("--jobs", type=int, default=1, help="processes")
    options.add_argument("--json", type=Path, help="write the numbers here")
    chosen = options.parse_args()
    console, n = Console(), chosen.changed
    with ProcessPoolExecutor(chosen.jobs) as pool:
        one = partial(falsely_alarmed, length=chosen.length)
        each = pool.map(one, range(chosen.streams), chunksize=4)
        alarms = sum(track(each, "exchangeable streams", total=chosen.streams, console=console))
        changed = list(pool.map(partial(delays, streams=n), CHANGES))
        quiet = dict(zip(QUIET, pool.map(partial(quiet_errors, streams=n), QUIET), strict=True))
        risen = list(pool.map(partial(rises, streams=n), RISES))
    bound = upper_bound(alarms, chosen.streams)
    console.print(
        f"false expansions: {alarms} of {chosen.streams} streams of {chosen.length:,} "
        f"({alarms / chosen.streams:.2%}), upper 95 % bound {bound:.4f}"
    )
    _table(console, "scores", changed)
    table = Table("errors without a lasting rise", "streams", "false alarms")
    for kind, false in quiet.items():
        table.add_row(kind, str(n), str(false))
    console.print(table)
    _table(console, "errors", risen)
    numbers = {"streams": chosen.streams, "length": chosen.length, "alarms": alarms}
    delays_found = [asdict(row) for row in (*changed, *risen)]
    command.write_numbers(
        chosen, numbers | {"upper_bound": bound, "quiet_errors": quiet, "delays": delays_found}
    )


if __name__ == "__main__":
    command.run(main)
