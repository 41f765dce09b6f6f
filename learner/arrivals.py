"""Mini-batches as they came, kept until the encoder can be fitted. Ours.

Dimension key: B samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from learner.scaler import unit

Origin = tuple[int | None, int]
"""Number of an entry, None: the step; and who sent it."""


@dataclass(frozen=True, slots=True)
class Arrivals:
    """Samples, their classes (-1 for none) and their ids (entry number, index)."""

    x: Tensor
    y_B: Tensor
    ids_B2: Tensor
    first_B: Tensor
    """bool, on the CPU: False where a sample was here before, without its label."""
    source_B: Tensor
    """int32, on the CPU: who sent it."""

    @classmethod
    def of(cls, x: Tensor, y_B: Tensor, origin: tuple[int, int], *, first: bool) -> "Arrivals":
        """Return the samples of an entry; `origin` is its number and who sent it."""
        n, (number, source) = len(x), origin
        ids_B2 = torch.stack([torch.full((n,), number), torch.arange(n)], 1)
        source_B = torch.full((n,), source, dtype=torch.int32)
        return cls(x, y_B, ids_B2, torch.full((n,), first), source_B)

    @property
    def first(self) -> int:
        """How many have never been here before."""
        return int(self.first_B.sum())

    @classmethod
    def joined(cls, many: Sequence["Arrivals"]) -> "Arrivals":
        """Return several as one; uint8 images become floats where others are."""
        mixed = len({part.x.dtype for part in many}) > 1
        return cls(
            torch.cat([unit(part.x) if mixed else part.x for part in many]),
            torch.cat([part.y_B for part in many]),
            torch.cat([part.ids_B2 for part in many]),
            torch.cat([part.first_B for part in many]),
            torch.cat([part.source_B for part in many]),
        )

    def split(self, source: int) -> tuple["Arrivals", "Arrivals"]:
        """Return the samples of a source, and the others."""
        theirs_B = self.source_B == source
        return self._some(theirs_B), self._some(~theirs_B)

    def _some(self, which_B: Tensor) -> "Arrivals":
        here_B = which_B.to(self.x.device)
        plain = (self.ids_B2, self.first_B, self.source_B)
        return Arrivals(self.x[here_B], self.y_B[here_B], *(part[which_B] for part in plain))
