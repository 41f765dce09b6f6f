"""The replay memory of preset `paper`: a window of the newest samples, cleared at expansion.

Beside each raw sample lies what the frozen experts make of it (posterior means and features),
computed once when it arrives: frozen experts do not change, so neither do these.
Dimension key: M members, J frozen experts, D width, Z latent size, B batch.
"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from learner.arrivals import Arrivals
from learner.config import LearnerConfig
from learner.samples import UNLABELLED
from learner.scaler import unit


@dataclass(frozen=True, slots=True)
class MemoryPoint:
    """What brings the memory back to an earlier moment. Ours."""

    arrays: tuple[Tensor, ...]
    slots: Tensor
    rows: tuple[Tensor, ...]
    count: int
    cursor: int


class WindowMemory:
    """First in, first out, at most `capacity` samples (LEViT); a ring over fixed arrays."""

    def __init__(self, config: LearnerConfig, device: torch.device) -> None:
        self.capacity = config.replay.capacity
        self.input_shape = config.input_shape
        self.latent, self.width = config.vae.latent, config.network.width
        self.device = device
        self.y_M = torch.full((self.capacity,), UNLABELLED, device=device)
        self.ids_M2 = torch.zeros(self.capacity, 2, dtype=torch.int64)
        self.source_M = torch.zeros(self.capacity, dtype=torch.int32)
        self.clear(frozen=0)

    def __len__(self) -> int:
        """Return the number of members, 0 to capacity."""
        return self.count

    @property
    def full(self) -> bool:
        """Whether the window holds `capacity` samples."""
        return self.count == self.capacity

    def clear(self, *, frozen: int) -> None:
        """Forget all members; from now on `frozen` experts have a say about each sample.

        Images are held as uint8 until a float one comes, vectors as float32.
        """
        M, dtype = self.capacity, torch.float32 if len(self.input_shape) == 1 else torch.uint8
        self.count = self.cursor = 0
        self.x = torch.zeros(M, *self.input_shape, dtype=dtype, device=self.device)
        self.means_MJZ = torch.zeros(M, frozen, self.latent, device=self.device)
        self.features_MJD = torch.zeros(M, frozen, self.width, device=self.device)

    def add(self, arrivals: Arrivals, known: tuple[Tensor, Tensor]) -> range:
        """Take in a mini-batch, dropping the oldest members beyond capacity.

        Args:
            arrivals: samples as they arrived, uint8 or float32.
            known: posterior means under the frozen encoders, [B, J, Z], and features A_j(T) of the
                frozen experts, [B, J, D].

        Returns the indexes into the batch of the samples that are now members: all, or the last
        `capacity` of a larger batch.
        """
        x, ids_B2 = arrivals.x, arrivals.ids_B2
        kept = range(max(0, len(x) - self.capacity), len(x))
        if x.dtype == torch.float32:
            self.x = unit(self.x)  # lossless; from now on the window holds floats
        slots, rows = self._slots(len(kept)), slice(kept.start, kept.stop)
        self.ids_M2[slots], self.source_M[slots] = ids_B2[rows], arrivals.source_B[rows]
        slots = slots.to(self.device)
        self.x[slots] = x[rows] if x.dtype == self.x.dtype else unit(x[rows])
        self.y_M[slots] = arrivals.y_B[rows]
        self.means_MJZ[slots], self.features_MJD[slots] = (part[rows] for part in known)
        self.cursor = (self.cursor + len(kept)) % self.capacity
        self.count = min(self.capacity, self.count + len(kept))
        return kept

    def drop(self, source: int) -> int:
        """Drop all members of a source, and return how many; not undoable.

        The others keep their order.
        """
        oldest_first = self._slots(self.capacity) if self.full else torch.arange(self.count)
        kept = oldest_first[self.source_M[oldest_first] != source]
        dropped = self.count - len(kept)
        if dropped:
            for array in self._arrays():
                array[: len(kept)] = array[kept.to(array.device)]
            self.count = self.cursor = len(kept)
        return dropped

    def draw(self, n: int, generator: Generator) -> Tensor:
        """Return n member indexes, [n]: whole passes in random order, the last one partial.

        An empty window gives none.
        """
        if self.count == 0 or n == 0:
            return torch.empty(0, dtype=torch.int64)
        passes = -(-n // self.count)
        orders = [torch.randperm(self.count, generator=generator) for _ in range(passes)]
        return torch.cat(orders)[:n]

    def undo_point(self, n: int) -> MemoryPoint:
        """Return what `undo` needs after a mini-batch of n samples; copies n rows."""
        slots = self._slots(min(n, self.capacity))
        arrays = self._arrays()
        rows = tuple(array[slots.to(array.device)] for array in arrays)
        return MemoryPoint(arrays, slots, rows, self.count, self.cursor)

    def undo(self, point: MemoryPoint) -> None:
        """Put the members back to `point`."""
        self.x, self.y_M, self.ids_M2, self.source_M, *known = point.arrays
        self.means_MJZ, self.features_MJD = known
        for array, rows in zip(point.arrays, point.rows, strict=True):
            array[point.slots.to(array.device)] = rows
        self.count, self.cursor = point.count, point.cursor

    def _slots(self, n: int) -> Tensor:
        return (torch.arange(n) + self.cursor) % self.capacity

    def _arrays(self) -> tuple[Tensor, ...]:
        return self.x, self.y_M, self.ids_M2, self.source_M, self.means_MJZ, self.features_MJD
