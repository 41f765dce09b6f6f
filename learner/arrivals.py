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

    @classmethod
    def joined(cls, many: Sequence["Arrivals"]) -> "Arrivals":
        """Return several as one; uint8 images become floats where others are."""
        mixed = len({part.x.dtype for part in many}) > 1
        return cls(
            torch.cat([unit(part.x) if mixed else part.x for part in many]),
            torch.cat([part.y_B for part in many]),
            torch.cat([part.ids_B2 for part in many]),
        )
