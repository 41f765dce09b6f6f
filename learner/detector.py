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
from dataclasses import asdict, dataclass, field, replace
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
RISES = (0.05, 0.1, 0.2, 0.4, 0.8)
"""Bets 1 + d (error / m - 1) that the error rate is m + d (1 - m)."""
SLOW = 0.9998  # what an error weighs in the reference against the next one: a memory of 5,000
SURE = 3.0  # standard deviations that the reference lies above the measured rate,
MARGIN = 0.01  # and the rise, in errors per sample, that never matters
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
        times in 20,000 samples, two let it alarm twice, none 135 times. Only what `SURE` standard
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
    r = min(max(r - SURE / sqrt(n), 0.0), 0.95)
    return ((1 - r) / (1 + r)) ** 2


@dataclass(frozen=True, slots=True)
class PastErrors:
    """Faded sums over earlier losses, and the reference made of them; ours."""

    n: float = 0.0
    """Samples."""
    losses: float = 0.0
    squares: float = 0.0
    products: float = 0.0
    """Of each loss and the one before it."""
    newest: float = 0.0

    @property
    def calm(self) -> float:
        """(1 - r) / (1 + r) for autocorrelation r at lag one: what share of the losses is news.

        In (0, 1]; r is cut to [0, 0.9].
        """
        n = max(self.n, 1.0)
        square = (self.losses / n) ** 2
        variance = self.squares / n - square
        r = (self.products / n - square) / variance if variance > 0 else 0.0
        r = min(max(r, 0.0), 0.9)
        return (1 - r) / (1 + r)

    def reference(self, calm: float) -> float:
        """Return the error rate m that is not yet a rise, in (0, 1].

        Wilson's upper bound (1927), `SURE` standard deviations up, for n calm samples, and
        `MARGIN`; 1 before the first.
        """
        n, losses, square = self.n * calm, self.losses * calm, SURE * SURE
        spread = losses * (1 - losses / n) if losses else 0.0
        bound = (losses + square / 2 + SURE * sqrt(spread + square / 4)) / (n + square)
        return min(bound + MARGIN, 1.0)

    def joined(self, loss: float) -> Self:
        """Return the sums with one loss more."""
        return type(self)(
            self.n * SLOW + 1,
            self.losses * SLOW + loss,
            self.squares * SLOW + loss * loss,
            self.products * SLOW + loss * self.newest,
            loss,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorDetector:
    """Says when errors on familiar inputs become more frequent: p(y | x) has changed.

    Bets e = (1 + d (loss / m - 1)) ^ calm against "the chance of an error is at most m", summed as
    above: m, d and calm are fixed before the loss comes and calm <= 1, so by Jensen the mean of e
    is at most 1. The bound therefore holds as long as m is not exceeded; that m is estimated, and
    calm for errors that come in bursts, is ours, and only the rates measured by
    `bench/false_expansions.py` are claimed. Wants some two thousand losses of the old concept; an
    alarm rings on, and bets rest, until `restarted`. Never changed: an undo is to keep the old one.
    """

    alpha: float = 0.01
    """Chance of a false alarm within `horizon` samples, in (0, 1)."""
    horizon: int = 100_000
    """N, samples, at least 1."""
    sums: tuple[float, ...] = (0.0,) * len(RISES)
    """R of each rise."""
    past: PastErrors = field(default_factory=PastErrors)

    @property
    def threshold(self) -> float:
        """The evidence that alarms, N / alpha."""
        return self.horizon / self.alpha

    @property
    def evidence(self) -> float:
        """The average of the sums, 0 or more."""
        return sum(self.sums) / len(self.sums)

    def judged(self, losses_B: Tensor) -> tuple[int | None, Self]:
        """Return the index of the alarm, if any, and the detector that has bet up to it.

        The same bits however the stream is cut into batches.

        Args:
            losses_B: in [0, 1], 1 for an error; of the samples that count, predicted before they
                were learned.
        """
        if self.evidence >= self.threshold:
            return 0, self
        after = self
        for i, loss in enumerate(losses_B.tolist()):
            after = replace(
                after, sums=_bet(after.sums, after.past, loss), past=after.past.joined(loss)
            )
            if after.evidence >= after.threshold:
                return i, after
        return None, after

    def restarted(self) -> Self:
        """Return the detector as it was before the first loss, as after an expansion."""
        return type(self)(alpha=self.alpha, horizon=self.horizon)

    def values(self) -> dict[str, Any]:
        """Return the state; JSON keeps every bit of it."""
        return asdict(self)

    @classmethod
    def restored(cls, values: Mapping[str, Any]) -> Self:
        """Return the detector that the state was taken from; KeyError if something is missing."""
        past, sums = PastErrors(**values["past"]), tuple(values["sums"])
        return cls(alpha=values["alpha"], horizon=values["horizon"], sums=sums, past=past)


def _bet(sums: tuple[float, ...], past: PastErrors, loss: float) -> tuple[float, ...]:
    calm = past.calm
    gain = loss / past.reference(calm) - 1
    return tuple((1 + r) * (1 + d * gain) ** calm for d, r in zip(RISES, sums, strict=True))
