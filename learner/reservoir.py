"""The replay buffer of preset `default`: a uniform sample of the whole past, never cleared.

Bottom-k sampling (Cohen & Kaplan 2007): a sample's key is a hash of its id, and the members are
the samples of the smallest keys seen. So the members do not depend on the order of arrival, taking
a sample in again changes nothing, and every sample of the past is a member with the same chance.
Where several sources write, none takes room from the others beyond its share; see `share`.
Dimension key: S storage slots, M members, B batch, C samples that are no members yet, E evicted.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from learner.samples import UNLABELLED
from learner.scaler import unit
from learner.share import leaving
from learner.splitmix import sample_keys

_SMALLEST_STORAGE = 256  # slots; then doubled as members come


@dataclass(frozen=True, slots=True)
class AddReport:
    """What one mini-batch changed in the buffer. Ours."""

    added: Tensor
    """Indexes into the batch of the samples that became members, int64, ascending."""
    evicted_E2: Tensor
    """Ids of the members that made room for them, int64."""


@dataclass(frozen=True, slots=True)
class ReplayPoint:
    """What brings the buffer back to an earlier moment. Ours."""

    x: Tensor
    y_S: Tensor
    ids_S2: Tensor
    source_S: Tensor
    columns: Mapping[str, Tensor]
    order: tuple[Tensor, Tensor, Tensor]


class _Overwritten(NamedTuple):
    """Rows of members that were evicted. Ours."""

    arrays: tuple[Tensor, ...]
    slots: Tensor
    rows: tuple[Tensor, ...]


class ReplayBuffer:
    """The `capacity` samples of the smallest keys (Cohen & Kaplan 2007), in slots 0 to len - 1.

    A member stays in its slot until it is evicted; its index is its slot.
    """

    def __init__(
        self,
        capacity: int,
        input_shape: tuple[int, ...],
        *,
        salt: int,
        share: float = 1.0,
        device: torch.device | None = None,
    ) -> None:
        self.capacity, self.salt, self._share = capacity, salt, share
        self.device = device or torch.device("cpu")
        self.x = torch.zeros(0, *input_shape, dtype=torch.uint8, device=self.device)
        """Samples by slot: uint8 until a float32 one comes, then float32."""
        self.y_S = torch.full((0,), UNLABELLED, device=self.device)
        """Class indexes by slot, -1 for none."""
        self.ids_S2 = torch.zeros(0, 2, dtype=torch.int64)
        """Ids by slot (entry number, index), on the CPU."""
        self.source_S = torch.zeros(0, dtype=torch.int32)
        """Who sent the sample, by slot, on the CPU."""
        self.columns: dict[str, Tensor] = {}
        """What is derived from each sample, by name and slot; no part of the durable state."""
        self._keys_M = torch.empty(0, dtype=torch.int64)  # ascending; replaced, never changed
        self._slots_M = torch.empty(0, dtype=torch.int64)  # of the same members; likewise
        self._source_M = torch.empty(0, dtype=torch.int32)
        self._overwritten: list[_Overwritten] | None = None  # since the newest `undo_point`

    def __len__(self) -> int:
        """Return the number of members, 0 to capacity."""
        return len(self._keys_M)

    @property
    def nbytes(self) -> int:
        """Bytes held: samples, derived columns, and slots for members to come."""
        order = (self._keys_M, self._slots_M, self._source_M)
        return sum(array.nbytes for array in (*self._arrays(), *order))

    def register(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        """Add a derived column of values of this shape, zero for the members there are."""
        self.columns[name] = torch.zeros(len(self.x), *shape, dtype=dtype, device=self.device)

    def add(
        self, x: Tensor, y_B: Tensor, ids_B2: Tensor, source_B: Tensor, **columns: Tensor
    ) -> AddReport:
        """Take in the samples with small enough keys; one that is a member is not taken in again.

        Args:
            x: samples as they arrived, uint8 or float32 [B, ...].
            y_B: class indexes, -1 for none.
            ids_B2: (entry number, index), int64 on the CPU, each once.
            source_B: who sent each, small numbers >= 0, int32 on the CPU.
            columns: the values [B, ...] of every registered column.
        """
        keys_B = sample_keys(ids_B2, self.salt)
        added, ranks_E = self._admitted(keys_B, source_B)
        evicted_E = self._slots_M[ranks_E]
        report = AddReport(added, self.ids_S2[evicted_E])
        if len(added) == 0:
            return report
        fresh = torch.arange(len(self), len(self) + len(added) - len(evicted_E))
        slots = torch.cat([evicted_E, fresh])
        self._make_room(len(self) + len(fresh))
        if x.dtype == torch.float32:
            self.x = unit(self.x)  # lossless; from now on the buffer holds floats
        self._note(evicted_E)
        rows = x[added] if x.dtype == self.x.dtype else unit(x[added])
        derived = (columns[name][added] for name in self.columns)
        values = (rows, y_B[added], ids_B2[added], source_B[added], *derived)
        for array, value in zip(self._arrays(), values, strict=True):
            array[slots] = value.to(array.device, array.dtype)
        self._insert(keys_B[added], slots, source_B[added], ranks_E)
        return report

    def drop(self, source: int) -> tuple[Tensor, Tensor, Tensor]:
        """Drop all members of a source; return their samples, class indexes and ids. Not undoable.

        The others keep their order, in slots from 0 on.
        """
        M = len(self)
        theirs_M = self.source_S[:M] == source
        dropped = tuple(a[:M][theirs_M] for a in (self.x, self.y_S, self.ids_S2))
        if theirs_M.any():
            self._hold([array[:M][~theirs_M] for array in self._arrays()])
        x, y_D, ids_D2 = dropped
        return x, y_D, ids_D2

    def draw(self, n: int, generator: Generator) -> Tensor:
        """Return n member indexes, [n]: whole passes in random order, then distinct ones.

        Costs O(n), whatever the number of members; an empty buffer gives none.
        """
        M = len(self)
        if M == 0:
            return torch.empty(0, dtype=torch.int64)
        orders = [torch.randperm(M, generator=generator) for _ in range(n // M)]
        return torch.cat([*orders, _distinct(n % M, M, generator)])

    def below(self, bound: int) -> Tensor:
        """Return the slots of the members whose keys are below a bound, smallest key first."""
        return self._slots_M[: int(torch.searchsorted(self._keys_M, bound))]

    def key_of_rank(self, rank: int) -> int | None:
        """Return the key that `rank` members lie below, or None while there are not as many."""
        return int(self._keys_M[rank]) if rank < len(self) else None

    def undo_point(self) -> ReplayPoint:
        """Return what `undo` needs after any `add`; from here on what is evicted is noted."""
        self._overwritten = []
        return ReplayPoint(
            self.x,
            self.y_S,
            self.ids_S2,
            self.source_S,
            dict(self.columns),
            (self._keys_M, self._slots_M, self._source_M),
        )

    def undo(self, point: ReplayPoint) -> None:
        """Put members and columns back to the newest `undo_point`, bit for bit."""
        for arrays, slots, rows in reversed(self._overwritten or []):
            for array, values in zip(arrays, rows, strict=True):
                array[slots] = values
        self._overwritten = None
        self.x, self.y_S, self.ids_S2 = point.x, point.y_S, point.ids_S2
        self.source_S, self.columns = point.source_S, dict(point.columns)
        self._keys_M, self._slots_M, self._source_M = point.order

    def tensors(self) -> dict[str, Tensor]:
        """Return the durable state by name, in slot order; views, valid until the next `add`."""
        M = len(self)
        return {
            "x": self.x[:M],
            "y": self.y_S[:M],
            "ids": self.ids_S2[:M],
            "source": self.source_S[:M],
        }

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Become the buffer of the same capacity and salt whose `tensors` these are.

        Drawing and adding go on as there, bit for bit; derived columns start at zero.

        Raises:
            KeyError: one is missing.
        """
        held = [tensors[name] for name in ("x", "y", "ids", "source")]
        derived = [c.new_zeros(len(held[0]), *c.shape[1:]) for c in self.columns.values()]
        self._hold([*held, *derived])

    def _admitted(self, keys_B: Tensor, source_B: Tensor) -> tuple[Tensor, Tensor]:
        """Return the indexes of the samples to take in, and the ranks of the members that leave."""
        M = len(self)
        place_B = torch.searchsorted(self._keys_M, keys_B).clamp(max=max(0, M - 1))
        known_B = self._keys_M[place_B] == keys_B if M else torch.zeros(len(keys_B)).bool()
        candidates = (~known_B).nonzero()[:, 0]
        keys_N = torch.cat([self._keys_M, keys_B[candidates]])
        source_N = torch.cat([self._source_M, source_B[candidates]])
        gone = leaving(keys_N, source_N, M, capacity=self.capacity, share=self._share)
        stays_C = torch.ones(len(candidates), dtype=torch.bool)
        stays_C[gone[gone >= M] - M] = False
        return candidates[stays_C], gone[gone < M].sort().values

    def _insert(self, keys_C: Tensor, slots_C: Tensor, source_C: Tensor, ranks_E: Tensor) -> None:
        """Put these in the place of the members of some ranks."""
        members = (self._keys_M, self._slots_M, self._source_M)
        kept = [_without(values_M, ranks_E) for values_M in members]
        keys_C, order = keys_C.sort()
        place_C = torch.searchsorted(kept[0], keys_C)
        new = (keys_C, slots_C[order], source_C[order])
        self._keys_M, self._slots_M, self._source_M = (
            _spliced(values_M, more_C, place_C) for values_M, more_C in zip(kept, new, strict=True)
        )

    def _note(self, slots: Tensor) -> None:
        """Keep what is about to be overwritten, if it may be asked for."""
        if self._overwritten is not None and len(slots):
            arrays = self._arrays()
            rows = tuple(array[slots.to(array.device)] for array in arrays)
            self._overwritten.append(_Overwritten(arrays, slots, rows))

    def _hold(self, arrays: Sequence[Tensor]) -> None:
        """Hold the members whose arrays these are, in this order, and nothing else."""
        M = len(arrays[0])
        self._become([array[:0] for array in arrays])
        self._make_room(M)
        for own, values in zip(self._arrays(), arrays, strict=True):
            own[:M] = values
        self._keys_M, self._slots_M = sample_keys(self.ids_S2[:M], self.salt).sort()
        self._source_M = self.source_S[self._slots_M]
        self._overwritten = None

    def _become(self, arrays: Iterable[Tensor]) -> None:
        self.x, self.y_S, self.ids_S2, self.source_S, *columns = arrays
        self.columns = dict(zip(self.columns, columns, strict=True))

    def _make_room(self, members: int) -> None:
        """Have at least this many slots: the smallest storage, doubled as often as needed."""
        if members <= len(self.x):
            return
        slots = _SMALLEST_STORAGE
        while slots < members:
            slots *= 2
        more = min(slots, self.capacity) - len(self.x)
        self._become(torch.cat([a, a.new_zeros(more, *a.shape[1:])]) for a in self._arrays())

    def _arrays(self) -> tuple[Tensor, ...]:
        return self.x, self.y_S, self.ids_S2, self.source_S, *self.columns.values()


def _spliced(values_M: Tensor, more_C: Tensor, place_C: Tensor) -> Tensor:
    """Return values with each of more put before the place given, ascending."""
    first, *others = values_M.tensor_split(place_C)
    pairs = zip(more_C.split(1), others, strict=True)
    return torch.cat([first, *(part for pair in pairs for part in pair)])


def _without(values_M: Tensor, ranks_E: Tensor) -> Tensor:
    """Return values but for those of some ranks, ascending."""
    first, *others = values_M.tensor_split(ranks_E)
    return torch.cat([first, *(part[1:] for part in others)])


def _distinct(n: int, size: int, generator: Generator) -> Tensor:
    """Return n different numbers below size, any ordered choice as likely; O(n)."""
    if 2 * n >= size:
        return torch.randperm(size, generator=generator)[:n]
    chosen = dict[int, None]()
    while len(chosen) < n:  # first occurrences of one sequence of independent draws
        draws = torch.randint(size, (n - len(chosen),), generator=generator)
        chosen |= dict.fromkeys(draws.tolist())
    return torch.tensor(list(chosen), dtype=torch.int64)
