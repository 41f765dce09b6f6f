"""When to expand: bets against "nothing changed", summed until chance cannot explain them.

On an exchangeable stream conformal p-values are independent and uniform, so every bet e_n fixed
before p_n arrives, e_n >= 0 with mean 1, gives a Shiryaev-Roberts sum R_n = (1 + R_(n-1)) e_n for
which R_n - n is a martingale; so is the average of several. R_n is then a nonnegative submartingale
with E[R_N] = N, and Doob's inequality gives P(R_n >= N / alpha for some n <= N) <= alpha. Unlike
one test martingale, the sum starts a new bet with every sample: a long quiet phase costs no power.

Vovk, Petej, Nouretdinov, Ahlberg, Carlsson & Gammerman 2021, "Retrain or not retrain" (arXiv
2102.10439; see Vovk 2020, "Testing for concept shift online", 2012.14246); Shin, Ramdas & Rinaldo
2024, "E-detectors" (2203.03532, where mixtures are averaged). By the same martingale the mean time
between false alarms is at least N / alpha. On autocorrelated scores no bound holds: there
every bet is damped to e^calm, calm <= 1 fixed before p_n arrives, which Jensen's inequality keeps
valid on an exchangeable stream and which costs next to no power there.

Which bets is ours, by median delay after a change 1,000 scores in (60 streams of normal scores):

    change of the scores          +0.5 sd  +1 sd  +2 sd  +4 sd  1 in 10 +4 sd  -1 sd  twice as wide
    three powers, histogram           166     42     10      5            152     75             93
    all powers in one, histogram      211     60     13      6           none     71            104
    three powers                      160     40     10      5            142   none            115

The second row bets the closed-form integral of all powers at each step. A histogram that remembers
200 p-values is slower by 20 where it matters.
Dimension key: B batch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import sqrt
from typing import Any, Self

from torch import Generator, Tensor

from learner.conformal import ConformalRanks

POWERS = (0.1, 0.3, 0.6)
"""Bets a p^(a - 1) on small p-values: from few and extreme to many and moderate ones."""
BINS = 10
"""Of the histogram, which bets that p-values fall where they lately fell, in whatever shape."""
KEEP = 0.99
"""What a p-value weighs in the histogram against the next one: a memory of 100."""
LATELY = 0.998
"""What a p-value weighs in their autocorrelation against the next one: a memory of 500."""
_SURE = 3.0  # standard errors that vouch for an autocorrelation
_FEW = 50  # p-values before they are called autocorrelated
_FULL = 2.0**64  # scaling by a power of two keeps every bit


@dataclass(frozen=True, slots=True)
class ChangeVerdict:
    """What the detector makes of a mini-batch of scores; ours."""

    alarm: int | None
    """Index of the first sample at which the evidence is at the threshold, else None."""
    p_B: Tensor
    """Conformal p-values, float64 in (0, 1]; small for unusually large scores."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeDetector:
    """Says when scores stop being exchangeable; never changed, so an undo is to keep the old one.

    Shin, Ramdas & Rinaldo 2024 over the p-values of Vovk et al. 2021. An alarm rings on, and bets
    rest, until `restarted`.
    """

    alpha: float = 0.01
    """Chance of a false alarm within `horizon` samples, in (0, 1)."""
    horizon: int = 100_000
    """N, samples, at least 1."""
    ranks: ConformalRanks = field(default_factory=ConformalRanks)
    sums: tuple[float, ...] = (0.0,) * (len(POWERS) + 1)
    """R of each power, then of the histogram."""
    counts: tuple[float, ...] = (0.0,) * BINS
    """Weights of earlier p-values by tenths."""
    weight: float = 1.0
    """Of the newest p-value, 1 / KEEP of the one before it."""
    lags: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0, 0.0)
    """Faded count, sum, squares and lag-one products of p-values, and the newest one."""

    @property
    def calm(self) -> float:
        """((1 - r) / (1 + r))^2 for the p-values' autocorrelation r at lag one, in (0, 1].

        What share of them is news, squared: one factor let a wandering stream (r = 0.9) alarm 11
        times in 20,000 samples, two let it alarm twice, none 135 times. Only what three standard
        errors vouch for counts as r.
        """
        return _calm(self.lags)

    @property
    def threshold(self) -> float:
        """The evidence that alarms, N / alpha."""
        return self.horizon / self.alpha

    @property
    def evidence(self) -> float:
        """The average of the sums, 0 or more; n after n exchangeable samples in expectation."""
        return sum(self.sums) / len(self.sums)

    def observed(self, scores_B: Tensor, generator: Generator) -> tuple[ChangeVerdict, Self]:
        """Return the verdict on a mini-batch of scores and the detector that has seen them.

        The same bits however the stream is cut into batches.

        Args:
            scores_B: finite, at least one, large for unfamiliar, all by one frozen scorer.
            generator: on the CPU; breaks ties.
        """
        p_B, ranks = self.ranks.ranked(scores_B, generator)
        alarm, after = self.judged(p_B)
        return ChangeVerdict(alarm, p_B), replace(after, ranks=ranks)

    def judged(self, p_B: Tensor) -> tuple[int | None, Self]:
        """Return the index of the alarm, if any, and the detector that has bet on p_B up to it."""
        few, some, many, shape = self.sums  # plain floats and no lists: a microsecond per p-value
        counts, weight, enough = list(self.counts), self.weight, self.threshold * len(self.sums)
        lags = self.lags
        if few + some + many + shape >= enough:
            return 0, self
        alarm = None
        for i, p in enumerate(p_B.tolist()):
            tenth = min(int(p * BINS), BINS - 1)
            calm = _calm(lags)
            few = (1 + few) * (POWERS[0] * p ** (POWERS[0] - 1)) ** calm
            some = (1 + some) * (POWERS[1] * p ** (POWERS[1] - 1)) ** calm
            many = (1 + many) * (POWERS[2] * p ** (POWERS[2] - 1)) ** calm
            believed = (counts[tenth] + weight) / (sum(counts) + BINS * weight)  # one more in each
            shape = (1 + shape) * (BINS * believed) ** calm
            n, total, square, product, last = (LATELY * part for part in lags)
            lags = (n + 1, total + p, square + p * p, product + p * last / LATELY, p)
            weight /= KEEP
            counts[tenth] += weight
            if weight > _FULL:
                weight, counts = weight / _FULL, [count / _FULL for count in counts]
            if few + some + many + shape >= enough:
                alarm = i
                break
        sums = (few, some, many, shape)
        return alarm, replace(self, sums=sums, counts=tuple(counts), weight=weight, lags=lags)

    def refreshed(self) -> Self:
        """Return the detector for a new scorer: no ranks, the evidence kept.

        The bound stays: a scorer made of what came before leaves what comes exchangeable.
        """
        return replace(self, ranks=self.ranks.fresh())

    def restarted(self) -> Self:
        """Return the detector without ranks and evidence, as after an expansion.

        How autocorrelated the stream is remains known.
        """
        fresh = type(self)(alpha=self.alpha, horizon=self.horizon, ranks=self.ranks.fresh())
        return replace(fresh, lags=self.lags)

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors of the state by name."""
        return self.ranks.tensors()

    def values(self) -> dict[str, Any]:
        """Return the rest of the state; JSON keeps every bit of it."""
        names = ("alpha", "horizon", "sums", "counts", "weight", "lags")
        return {name: getattr(self, name) for name in names} | {"capacity": self.ranks.capacity}

    @classmethod
    def restored(cls, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> Self:
        """Return the detector that the state was taken from; KeyError if something is missing."""
        return cls(
            alpha=values["alpha"],
            horizon=values["horizon"],
            ranks=ConformalRanks.restored(values["capacity"], tensors),
            sums=tuple(values["sums"]),
            counts=tuple(values["counts"]),
            weight=values["weight"],
            lags=tuple(values["lags"]),
        )


def _calm(lags: tuple[float, ...]) -> float:
    n, total, square, product, _ = lags
    if n < _FEW:
        return 1.0
    mean = total / n
    variance = square / n - mean * mean
    r = (product / n - mean * mean) / variance if variance > 0 else 0.0
    r = min(max(r - _SURE / sqrt(n), 0.0), 0.95)
    return ((1 - r) / (1 + r)) ** 2
