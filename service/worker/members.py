"""The samples of the replay memory: those in no checkpoint yet, and those in Redis.

New ones are written to Redis only with the next checkpoint: most of a busy stream's samples are
evicted again before it.
"""

from collections.abc import Sequence

from service.engine.protocol import Array, Engine, EngineState, Label, MemberId, Members
from service.store.entry import Entry
from service.store.fence import Fence
from service.store.replay import ReplayStore
from service.worker.checkpoints import member_ids

BUFFERED_BYTES = 64 * 2**20
"""Bytes above which those evicted meanwhile are let go."""


class NewMembers:
    """Samples that are in no checkpoint yet, by member id."""

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


class ReplayMembers:
    """The replay memory's samples on their way to Redis and in it."""

    def __init__(self, fence: Fence) -> None:
        self._store = ReplayStore(fence)
        self._stored: set[MemberId] = set()
        self.new = NewMembers()

    def know_stored(self) -> None:
        """Learn which samples Redis has; before that none is dropped from it."""
        self._stored = self._store.ids()

    def of(self, state: EngineState) -> Members:
        """Return the samples that a state names.

        Raises:
            CorruptState: one of them is not stored, or not what was written.
        """
        return self._store.fetch([(number, index) for number, index in state.members.tolist()])

    def take(self, entry: Entry, indexes: Sequence[int], engine: Engine) -> None:
        """Add samples of an entry that `engine` has just learned."""
        self.new.add(entry, indexes)
        if self.new.too_many:
            self.new.keep_only(member_ids(engine.dump()))

    def put(self, state: EngineState) -> None:
        """Store those new samples that a state names."""
        self.new.keep_only(member_ids(state))
        self._stored |= self.new.samples.keys()
        self._store.put(self.new.samples)

    def drop_all_but(self, ids: frozenset[MemberId]) -> None:
        """Drop from Redis what nobody names any more."""
        dropped = self._stored - ids
        self._store.delete(dropped)
        self._stored -= dropped
