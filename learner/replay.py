"""The replay memory of preset `paper`: a window of the newest samples, cleared at expansion.

Beside each raw sample lies what the frozen experts make of it (posterior means and features),
computed once when it arrives: frozen experts do not change, so neither do these.
Dimension key: M members, C capacity, J frozen experts, D width, Z latent size, B batch.
"""

import torch
from torch import Generator, Tensor

from learner.config import LearnerConfig
from learner.samples import UNLABELLED
from learner.scaler import unit


class WindowMemory:
    """First in, first out, at most `capacity` samples (LEViT); a ring over fixed arrays."""

    def __init__(self, config: LearnerConfig, device: torch.device) -> None:
        self.capacity = config.replay.capacity
        self.latent, self.width = config.vae.latent, config.network.width
        self.x = torch.zeros(self.capacity, *config.input_shape, dtype=torch.uint8, device=device)
        self.y_M = torch.full((self.capacity,), UNLABELLED, device=device)
        self.ids_M2 = torch.zeros(self.capacity, 2, dtype=torch.int64)
        self.clear(frozen=0)

    def __len__(self) -> int:
        """Return the number of members, 0 to capacity."""
        return self.count

    @property
    def full(self) -> bool:
        """Whether the window holds `capacity` samples."""
        return self.count == self.capacity

    def clear(self, *, frozen: int) -> None:
        """Forget all members; from now on `frozen` experts have a say about each sample."""
        self.count = self.cursor = 0
        self.means_MJZ = self.x.new_zeros(self.capacity, frozen, self.latent, dtype=torch.float32)
        self.features_MJD = self.x.new_zeros(self.capacity, frozen, self.width, dtype=torch.float32)

    def add(
        self, x: Tensor, y_B: Tensor, ids_B2: Tensor, means_BJZ: Tensor, features_BJD: Tensor
    ) -> list[int]:
        """Take in a mini-batch, dropping the oldest members beyond capacity.

        Args:
            x: samples as they arrived, uint8 or float32 [B, ...].
            y_B: class indexes, -1 for none.
            ids_B2: member ids (entry number, index), int64 on the CPU.
            means_BJZ: posterior means under the frozen encoders.
            features_BJD: features A_j(T) of the frozen experts.

        Returns the indexes into the batch of the samples that are now members: all, or the last
        `capacity` of a larger batch.
        """
        kept = range(max(0, len(x) - self.capacity), len(x))
        if x.dtype != self.x.dtype and x.dtype == torch.float32:
            self.x = unit(self.x)  # lossless; from now on the window holds floats
        x = x if x.dtype == self.x.dtype else unit(x)
        slots = (torch.arange(len(kept)) + self.cursor) % self.capacity
        self.ids_M2[slots] = ids_B2[kept.start :]
        slots = slots.to(self.x.device)
        self.x[slots] = x[kept.start :]
        self.y_M[slots] = y_B[kept.start :]
        self.means_MJZ[slots] = means_BJZ[kept.start :]
        self.features_MJD[slots] = features_BJD[kept.start :]
        self.cursor = (self.cursor + len(kept)) % self.capacity
        self.count = min(self.capacity, self.count + len(kept))
        return list(kept)

    def draw(self, n: int, generator: Generator) -> Tensor:
        """Return n member indexes, [n]: whole passes in random order, the last one partial.

        An empty window gives none.
        """
        if self.count == 0 or n == 0:
            return torch.empty(0, dtype=torch.int64)
        passes = -(-n // self.count)
        orders = [torch.randperm(self.count, generator=generator) for _ in range(passes)]
        return torch.cat(orders)[:n]
