"""The worker's side of the ingest log: plain XREAD behind a position, one reader, no group.

The position lies in the checkpoint, not in Redis: a consumer group's pending list would be a
second truth beside it. The log is trimmed by MINID behind the oldest kept checkpoint only; MAXLEN
would drop unread entries in silence. Every write goes through the fence.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from redis.client import Pipeline

from service.errors import Misused
from service.store.aside import SetAside, queue_again
from service.store.entry import BatchStatus
from service.store.events import Facts, Mark, News, queue_event
from service.store.fence import Fence
from service.store.link import redis_errors
from service.store.names import Names
from service.store.ranges import CHUNK
from service.store.records import forget_old, queue_record
from service.store.stream_ids import START, RawEntry, following


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one entry, as checkpoints remember it until it has been told."""

    number: int
    """Ordinal of the entry in its stream."""
    status: BatchStatus
    idempotency_key: str | None
    """As the service knows it: of its client."""
    born: Sequence[Facts] = field(default_factory=list)
    """The experts that it made the mixture grow by."""

    @property
    def member(self) -> str:
        """Its member of `names.done`: the batch id and, behind a space, the Idempotency-Key."""
        key = self.idempotency_key
        return self.status.batch_id if key is None else f"{self.status.batch_id} {key}"


_NO_STREAM = {"entries-added": 0, "length": 0}


class Log:
    """The stream and its records as the worker sees them; every method may raise `Unavailable`.

    What writes also raises `StateDirectoryBusy` once a later worker has started.
    """

    def __init__(self, fence: Fence) -> None:
        self._fence = fence
        self._redis: Any = fence.redis
        self._names = fence.names
        self._trimmed = START

    def identity(self) -> str | None:
        """Return the name of this log, or None before it has one."""
        with redis_errors():
            found = self._redis.get(self._names.identity)
        return None if found is None else found.decode()

    def identify(self, identity: str, stream: Facts) -> None:
        """Give this log its name, and tell that its stream, which is so, begins."""
        self._fence.write(partial(_begin, self._names, identity, stream))

    def read(self, after: str, *, count: int, block_ms: int | None) -> list[RawEntry]:
        """Return up to `count` entries behind a position, waiting for one unless it is None."""
        with redis_errors():
            answer = self._redis.xread({self._names.log: after}, count=count, block=block_ms)
        return [
            (position.decode(), fields) for _, entries in answer for position, fields in entries
        ]

    def trim(self, position: str) -> None:
        """Drop the entries up to and with `position`, where nobody needs them any more."""
        if position == self._trimmed:
            return
        minid = following(position)
        self._fence.write(lambda pipe: pipe.xtrim(self._names.log, minid=minid, approximate=False))
        self._trimmed = position

    def gap(self, trimmed: int, consumed: int) -> int:
        """Return how many entries are missing; anything but 0 is loss.

        Redis counts the entries ever added and those present; their difference must be `trimmed`.
        Entries behind the trimmed ones were deleted (positive), or the log was deleted and began
        anew, or its end was lost (negative).

        Args:
            trimmed: number of the entry up to which the log was trimmed.
            consumed: number of the last entry read.
        """
        with redis_errors():
            exists = self._redis.exists(self._names.log)
            info: Any = self._redis.xinfo_stream(self._names.log) if exists else _NO_STREAM
        added, present = int(info["entries-added"]), int(info["length"])
        return added - present - trimmed or min(0, added - consumed)

    def set_aside(self, entries: Sequence[SetAside]) -> None:
        """Keep quarantined entries, each with its reason, beyond the trimming.

        Idempotent; one that was kept before and has been released or dropped stays so.
        """
        for one in entries:
            self._fence.write(partial(_keep, self._names, one))

    def release(self, positions: Sequence[str]) -> int:
        """Append entries that were set aside to the log again; return how many there were."""
        released = 0
        for position in positions:
            with redis_errors():
                record = self._redis.hget(self._names.quarantine, position)
            if record:
                again = SetAside.from_record(position, record)
                self._fence.write(partial(queue_again, self._names, again))
                released += 1
        return released

    def check_room_for(self, after: str, until: str) -> None:
        """Check that Redis has room for a second copy of the entries behind `after` to `until`.

        Raises:
            Misused: naming the bytes that it takes and those that are left.
        """
        redis, needed = self._redis, 0
        with redis_errors():
            memory = redis.info("memory")
            while chunk := redis.xrange(self._names.log, f"({after}", until, count=CHUNK):
                needed += sum(len(fields.get(b"payload", b"")) for _, fields in chunk)
                after = chunk[-1][0].decode()
        left = memory["maxmemory"] - memory["used_memory"]
        if memory["maxmemory"] and needed > left:
            raise Misused(
                f"later entries cannot be set aside: expected {needed} bytes left in redis, got "
                f"{max(0, left)}; nothing was changed"
            )

    def told(self) -> int:
        """Return the number of the checkpoint that was told last; 0 before the first."""
        with redis_errors():
            return int(self._redis.hget(self._names.progress, "checkpoint") or 0)

    def mark(self) -> Mark | None:
        """Return how far the events tell; None before the first were told."""
        with redis_errors():
            record: Any = self._redis.hget(self._names.progress, "told")
        return None if record is None else Mark.from_record(record)

    def tell(
        self,
        position: str,
        consumed: int,
        outcomes: Sequence[Outcome],
        news: News,
        *,
        checkpoint: int = 0,
    ) -> None:
        """Say what became of entries that are now in a checkpoint; idempotent.

        Args:
            position: up to where the checkpoint reaches.
            consumed: number of the entry there.
            outcomes: of the entries since the checkpoint before.
            news: what whoever listens is told.
            checkpoint: its number.
        """
        progress: dict[Any, Any] = {
            "position": position,
            "consumed": consumed,
            "checkpoint": checkpoint,
            "told": news.mark.to_record(),
        }
        self._fence.write(partial(_tell, self._names, progress, outcomes, news))
        forget_old(self._fence)

    def tell_state(self, state: str, problem: str = "") -> None:
        """Say whether the worker learns (`learning`), or why it has stopped (`stopped`)."""
        facts: dict[Any, Any] = {"state": state, "problem": problem, "epoch": self._fence.epoch}
        with redis_errors():
            told: Any = self._redis.hmget(self._names.worker, "state", "problem")
        before = [(one or b"").decode() for one in told]

        def queue(pipe: Pipeline) -> None:
            """Queue it; whoever listens is told of a change."""
            pipe.hset(self._names.worker, mapping=facts)
            if state == "stopped" and before != [state, problem]:
                queue_event(self._names, pipe, "stopped", {"problem": problem})
            elif state == "learning" and before[0] == "stopped":
                queue_event(self._names, pipe, "recovered", {})

        self._fence.write(queue)


def _keep(names: Names, one: SetAside, pipe: Pipeline) -> None:
    pipe.hsetnx(names.quarantine, one.position, one.to_record())


def _begin(names: Names, identity: str, stream: Facts, pipe: Pipeline) -> None:
    pipe.set(names.identity, identity)
    queue_event(names, pipe, "stream_created", stream)


def _tell(
    names: Names,
    progress: dict[Any, Any],
    outcomes: Sequence[Outcome],
    news: News,
    pipe: Pipeline,
) -> None:
    pipe.hset(names.progress, mapping=progress)
    for kind, facts in news.events:
        queue_event(names, pipe, kind, facts)
    for outcome in outcomes:
        queue_record(names, pipe, outcome.status, outcome.member)
