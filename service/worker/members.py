"""Samples that entered the replay memory and are in no checkpoint yet.

They are written to Redis only with the next checkpoint: most of a busy stream's samples are evicted
again before it.
"""

from collections.abc import Sequence

from service.engine.protocol import Array, Label, MemberId
from service.store.entry import Entry

BUFFERED_BYTES = 64 * 2**20
"""Bytes above which those evicted meanwhile are let go."""


class NewMembers:
    """The samples by member id."""

    def __init__(self) -> None:
        self.samples: dict[MemberId, tuple[Array, Label | None]] = {}
        self.nbytes = 0
        self._limit = BUFFERED_BYTES

    @property
    def too_many(self) -> bool:
        """Whether it is time for `keep_only`."""
        return self.nbytes > self._limit

    def add(self, entry: Entry, indexes: Sequence[int]) -> None:
        """Add samples of an entry."""
        for index in indexes:
            # A copy, as a view would hold the whole mini-batch for the sake of one sample.
            x = entry.x[index].copy()
            self.samples[entry.number, index] = (x, entry.label(index))
            self.nbytes += x.nbytes

    def keep_only(self, ids: frozenset[MemberId]) -> None:
        """Let go of all but those named."""
        self.samples = {id_: sample for id_, sample in self.samples.items() if id_ in ids}
        self.nbytes = sum(x.nbytes for x, _ in self.samples.values())
        # Doubling keeps the cost of this linear in the samples, however large the memory is.
        self._limit = max(BUFFERED_BYTES, 2 * self.nbytes)

    def clear(self) -> None:
        """Let go of all."""
        self.keep_only(frozenset())
