"""The replay buffer of preset `default`: a uniform sample of the whole past, never cleared.

Bottom-k sampling (Cohen & Kaplan 2007): a sample's key is a hash of its id, and the members are
the samples of the smallest keys seen. So the members do not depend on the order of arrival, taking
a sample in again changes nothing, and every sample of the past is a member with the same chance.
The hash is SplitMix64 (Steele, Lea & Flood 2014), chained over salt, entry number and index.
Dimension key: S storage slots, M members, B batch, C samples that are no members yet, E evicted.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from learner.samples import UNLABELLED
from learner.scaler import unit

_SMALLEST_STORAGE = 256  # slots; then doubled as members come
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # the constants of SplitMix64, as int64
_FIRST = 0xBF58476D1CE4E5B9 - 2**64
_SECOND = 0x94D049BB133111EB - 2**64


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
    columns: Mapping[str, Tensor]
    keys_M: Tensor
    slots_M: Tensor
    endangered_E: Tensor
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
        device: torch.device | None = None,
    ) -> None:
        self.capacity, self.salt = capacity, salt
        self.device = device or torch.device("cpu")
        self.x = torch.zeros(0, *input_shape, dtype=torch.uint8, device=self.device)
        """Samples by slot: uint8 until a float32 one comes, then float32."""
        self.y_S = torch.full((0,), UNLABELLED, device=self.device)
        """Class indexes by slot, -1 for none."""
        self.ids_S2 = torch.zeros(0, 2, dtype=torch.int64)
        """Ids by slot (entry number, index), on the CPU."""
        self.columns: dict[str, Tensor] = {}
        """What is derived from each sample, by name and slot; no part of the durable state."""
        self._keys_M = torch.empty(0, dtype=torch.int64)  # ascending; replaced, never changed
        self._slots_M = torch.empty(0, dtype=torch.int64)  # of the same members; likewise

    def __len__(self) -> int:
        """Return the number of members, 0 to capacity."""
        return len(self._keys_M)

    @property
    def nbytes(self) -> int:
        """Bytes held: samples, derived columns, and slots for members to come."""
        return sum(array.nbytes for array in (*self._arrays(), self._keys_M, self._slots_M))

    def register(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        """Add a derived column of values of this shape, zero for the members there are."""
        self.columns[name] = torch.zeros(len(self.x), *shape, dtype=dtype, device=self.device)

    def add(self, x: Tensor, y_B: Tensor, ids_B2: Tensor, **columns: Tensor) -> AddReport:
        """Take in the samples with small enough keys; one that is a member is not taken in again.

        Args:
            x: samples as they arrived, uint8 or float32 [B, ...].
            y_B: class indexes, -1 for none.
            ids_B2: (entry number, index), int64 on the CPU, each once.
            columns: the values [B, ...] of every registered column.
        """
        keys_B = sample_keys(ids_B2, self.salt)
        added, kept = self._admitted(keys_B)
        evicted_E = self._slots_M[kept:]
        report = AddReport(added, self.ids_S2[evicted_E])
        if len(added) == 0:
            return report
        fresh = torch.arange(len(self), len(self) + len(added) - len(evicted_E))
        slots = torch.cat([evicted_E, fresh])
        self._make_room(len(self) + len(fresh))
        if x.dtype == torch.float32:
            self.x = unit(self.x)  # lossless; from now on the buffer holds floats
        rows = x[added] if x.dtype == self.x.dtype else unit(x[added])
        derived = (columns[name][added] for name in self.columns)
        for array, value in zip(
            self._arrays(), (rows, y_B[added], ids_B2[added], *derived), strict=True
        ):
            array[slots] = value.to(array.device, array.dtype)
        self._insert(keys_B[added], slots, kept)
        return report

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

    def undo_point(self, n: int) -> ReplayPoint:
        """Return what `undo` needs after n more samples; copies at most n rows."""
        M = len(self)
        excess = min(M, max(0, M + n - self.capacity))
        endangered_E = self._slots_M[M - excess :]
        rows = tuple(array[endangered_E] for array in self._arrays())
        return ReplayPoint(
            self.x,
            self.y_S,
            self.ids_S2,
            dict(self.columns),
            self._keys_M,
            self._slots_M,
            endangered_E,
            rows,
        )

    def undo(self, point: ReplayPoint) -> None:
        """Put the members and their columns back to `point`, bit for bit."""
        self.x, self.y_S, self.ids_S2 = point.x, point.y_S, point.ids_S2
        self.columns = dict(point.columns)
        self._keys_M, self._slots_M = point.keys_M, point.slots_M
        for array, rows in zip(self._arrays(), point.rows, strict=True):
            array[point.endangered_E] = rows

    def tensors(self) -> dict[str, Tensor]:
        """Return the durable state by name, in slot order; views, valid until the next `add`."""
        M = len(self)
        return {"x": self.x[:M], "y": self.y_S[:M], "ids": self.ids_S2[:M]}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Become the buffer of the same capacity and salt whose `tensors` these are.

        Drawing and adding go on as there, bit for bit; derived columns start at zero.

        Raises:
            KeyError: one is missing.
        """
        M = len(tensors["ids"])
        self.x = self.x[:0].to(tensors["x"].dtype)
        self._make_room(M)
        self.x[:M], self.y_S[:M], self.ids_S2[:M] = (tensors[name] for name in ("x", "y", "ids"))
        self._keys_M, self._slots_M = sample_keys(tensors["ids"], self.salt).sort()

    def _admitted(self, keys_B: Tensor) -> tuple[Tensor, int]:
        """Return the indexes of the samples to take in, and how many members stay."""
        M = len(self)
        place_B = torch.searchsorted(self._keys_M, keys_B).clamp(max=max(0, M - 1))
        known_B = self._keys_M[place_B] == keys_B if M else torch.zeros(len(keys_B)).bool()
        candidates = (~known_B).nonzero()[:, 0]
        keys_C = keys_B[candidates]
        if len(keys_C) == 0:
            return candidates, M
        threatened = self._keys_M[max(0, M - len(keys_C)) :]  # each drives out one at most
        rivals = torch.cat([threatened, keys_C]).sort().values
        last = rivals[len(rivals) - 1 - max(0, M + len(keys_C) - self.capacity)]
        return candidates[keys_C <= last], M - int((threatened > last).sum())

    def _insert(self, keys_C: Tensor, slots_C: Tensor, kept: int) -> None:
        """Replace the members after the first `kept` with these."""
        keys_C, order = keys_C.sort()
        place_C = torch.searchsorted(self._keys_M[:kept], keys_C)
        self._keys_M = _spliced(self._keys_M[:kept], keys_C, place_C)
        self._slots_M = _spliced(self._slots_M[:kept], slots_C[order], place_C)

    def _make_room(self, members: int) -> None:
        """Have at least this many slots: the smallest storage, doubled as often as needed."""
        if members <= len(self.x):
            return
        slots = _SMALLEST_STORAGE
        while slots < members:
            slots *= 2
        more = min(slots, self.capacity) - len(self.x)
        arrays = (torch.cat([a, a.new_zeros(more, *a.shape[1:])]) for a in self._arrays())
        self.x, self.y_S, self.ids_S2, *columns = arrays
        self.columns = dict(zip(self.columns, columns, strict=True))

    def _arrays(self) -> tuple[Tensor, ...]:
        return self.x, self.y_S, self.ids_S2, *self.columns.values()


def _spliced(values_M: Tensor, more_C: Tensor, place_C: Tensor) -> Tensor:
    """Return values with each of more put before the place given, ascending."""
    first, *others = values_M.tensor_split(place_C)
    pairs = zip(more_C.split(1), others, strict=True)
    return torch.cat([first, *(part for pair in pairs for part in pair)])


def sample_keys(ids_B2: Tensor, salt: int) -> Tensor:
    """Return the hash of each id, [B] int64, evenly spread over its whole range.

    With h(s, i) the i-th number that SplitMix64 gives after seed s: h(h(h(salt, 0), entry), index).
    """
    key = torch.tensor(salt)
    for part in (torch.tensor(0), *ids_B2.unbind(1)):
        key = _mixed(key + (part + 1) * _GOLDEN)
    return key


def _mixed(z: Tensor) -> Tensor:
    z = (z ^ _shifted(z, 30)) * _FIRST
    z = (z ^ _shifted(z, 27)) * _SECOND
    return z ^ _shifted(z, 31)


def _shifted(z: Tensor, bits: int) -> Tensor:
    """Return int64 bits shifted right, zeros moved in."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _distinct(n: int, size: int, generator: Generator) -> Tensor:
    """Return n different numbers below size, any ordered choice as likely; O(n)."""
    if 2 * n >= size:
        return torch.randperm(size, generator=generator)[:n]
    chosen = dict[int, None]()
    while len(chosen) < n:  # first occurrences of one sequence of independent draws
        draws = torch.randint(size, (n - len(chosen),), generator=generator)
        chosen |= dict.fromkeys(draws.tolist())
    return torch.tensor(list(chosen), dtype=torch.int64)
