"""Mini-batches as they came, kept until the encoder can be fitted. Ours.

Dimension key: B samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from learner.scaler import unit


@dataclass(frozen=True, slots=True)
class Arrivals:
    """Samples, their classes (-1 for none) and their ids (entry number, index)."""

    x: Tensor
    y_B: Tensor
    ids_B2: Tensor
    first_B: Tensor
    """bool, on the CPU: False where a sample was here before, without its label."""

    @classmethod
    def of(cls, x: Tensor, y_B: Tensor, number: int, *, first: bool) -> "Arrivals":
        """Return the samples of the entry of that number."""
        n = len(x)
        ids_B2 = torch.stack([torch.full((n,), number), torch.arange(n)], 1)
        return cls(x, y_B, ids_B2, torch.full((n,), first))

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
        )
