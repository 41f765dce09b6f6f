"""Conformal p-values, online: the rank of every new score among all earlier ones of its scorer.

    p = (number of earlier scores greater + U (number of equal ones + 1)) / (n + 1),  U on (0, 1]

Vovk, Gammerman & Shafer 2005, "Algorithmic Learning in a Random World", theorem 8.2 (smoothed): if
the scores are exchangeable, the p-values are independent and uniform. Small means unusually large.
A fixed calibration set would bias every later p-value alike; so each score is ranked, then kept.

State is bounded: with `capacity` scores kept the ranks begin anew from none. This stays exact
(exchangeable scores are so given all that came before), but a change that falls among the last or
first few dozen scores of such a round is not seen, for there is little to rank against.
Dimension key: N kept scores in order, M recent ones, B batch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Generator, Tensor

_RECENT = 512  # scores kept unsorted before they are merged; from 128 to 2,048 it costs the same


def _no_scores() -> Tensor:
    return torch.empty(0)


@dataclass(frozen=True, slots=True)
class ConformalRanks:
    """The earlier scores of one frozen scorer; never changed, so an undo is to keep the old one.

    Vovk et al. 2005; the bounded, merged order is ours.
    """

    capacity: int = 100_000
    """Scores kept, 4 bytes each, at least 1; about the horizon of who reads the p-values."""
    sorted_N: Tensor = field(default_factory=_no_scores)
    """Ascending, float32, on the CPU; never written to."""
    recent_M: Tensor = field(default_factory=_no_scores)
    """The newest, in order of arrival; likewise."""

    def __len__(self) -> int:
        """Return the number of scores kept, 0 to capacity."""
        return len(self.sorted_N) + len(self.recent_M)

    def ranked(self, scores_B: Tensor, generator: Generator) -> tuple[Tensor, "ConformalRanks"]:
        """Return the p-value of each score, float64 [B] in (0, 1], and the ranks that know them.

        Scores are ranked one after another, so that the p-values and the ranks have the same bits
        however the stream is cut into batches, one draw of the generator per score.

        Args:
            scores_B: finite, at least one, of the same scorer as all before; compared as float32.
            generator: on the CPU.
        """
        rest = scores_B.to("cpu", torch.float32)
        u_B = 1 - torch.rand(len(rest), dtype=torch.float64, generator=generator)
        ranks, above = self, []
        while len(rest):
            if len(ranks) == ranks.capacity:
                ranks = type(self)(self.capacity)
            room = min(_RECENT - len(ranks.recent_M), ranks.capacity - len(ranks))
            piece, rest = rest[:room], rest[room:]
            above.append(_counted(ranks, piece))
            ranks = _joined(ranks, piece)
        greater_B, equal_B, n_B = torch.cat(above, 1)
        return (greater_B + u_B * (equal_B + 1)) / (n_B + 1), ranks

    def fresh(self) -> Self:
        """Return ranks without a score, for a scorer that has changed."""
        return type(self)(self.capacity)

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors of the state by name."""
        return {"sorted": self.sorted_N, "recent": self.recent_M}

    @classmethod
    def restored(cls, capacity: int, tensors: Mapping[str, Tensor]) -> Self:
        """Return the ranks that `tensors` were taken from; KeyError if one is missing."""
        return cls(capacity, tensors["sorted"], tensors["recent"])


def _counted(ranks: ConformalRanks, piece_B: Tensor) -> Tensor:
    """Return for each score the earlier ones that are greater, equal, and all; float64 [3, B]."""
    n, m, b = len(ranks.sorted_N), len(ranks.recent_M), len(piece_B)
    to_B = torch.searchsorted(ranks.sorted_N, piece_B, right=True)
    from_B = torch.searchsorted(ranks.sorted_N, piece_B)
    newer, own = torch.cat([ranks.recent_M, piece_B]), piece_B[:, None]
    earlier = torch.ones(b, m + b, dtype=torch.bool).tril_(m - 1)  # row i: all recent, i of its own
    greater_B = (n - to_B) + ((newer > own) & earlier).sum(1)
    equal_B = (to_B - from_B) + ((newer == own) & earlier).sum(1)
    return torch.stack([greater_B, equal_B, torch.arange(b) + (n + m)]).double()


def _joined(ranks: ConformalRanks, piece_B: Tensor) -> ConformalRanks:
    """Return the ranks with these scores; merged as soon as `_RECENT` are unsorted."""
    recent_M = torch.cat([ranks.recent_M, piece_B])
    if len(recent_M) < _RECENT:
        return replace(ranks, recent_M=recent_M)
    sorted_N = _merged(ranks.sorted_N, recent_M.sort().values)
    return replace(ranks, sorted_N=sorted_N, recent_M=_no_scores())


def _merged(old_N: Tensor, new_M: Tensor) -> Tensor:
    """Return two ascending rows as one; a tenth of the time of sorting them together."""
    places_M = torch.searchsorted(old_N, new_M) + torch.arange(len(new_M))
    is_old = torch.ones(len(old_N) + len(new_M), dtype=torch.bool)
    is_old[places_M] = False
    merged = torch.empty(len(is_old))
    merged[places_M], merged[is_old] = new_M, old_N
    return merged
