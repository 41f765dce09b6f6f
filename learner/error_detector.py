"""When labels come to mean something else: bets against "errors are no more frequent than before".

Summed as in `learner.detector` (Shiryaev-Roberts; Shin, Ramdas & Rinaldo 2024); the reference rate,
estimated from the past with a margin, is ours.
Dimension key: B batch.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from math import sqrt
from typing import Any, Self

from torch import Tensor

RISES = (0.05, 0.1, 0.2, 0.4, 0.8)
"""Bets 1 + d (error / m - 1) that the error rate is m + d (1 - m)."""
SLOW = 0.9998  # what an error weighs in the reference against the next one: a memory of 5,000
SURE = 3.0  # standard deviations that the reference lies above the measured rate,
MARGIN = 0.01  # and the rise, in errors per sample, that never matters


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
