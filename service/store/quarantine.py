"""Entries set aside, as administrators see them: listed, shown, released or dropped.

Each keeps its payload until it is released or dropped; then an empty record stays, and the worker
never sets the same entry aside again. Releasing appends the batch to the log under its old id.
"""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Self

from redis.exceptions import WatchError

from service.errors import Conflict, NotFound
from service.store.aside import GONE, SetAside, queue_again
from service.store.entry import BatchStatus
from service.store.events import queue_event
from service.store.link import connect_async, redis_answers, transaction
from service.store.names import DEFAULT, RECORD_LIFETIME_S, Names
from service.store.stream_ids import order

Queue = Callable[[Names, SetAside, Any], object]
"""Queues what settles an entry."""
ATTEMPTS = 5
"""How often a transaction that lost a race is tried before the client is told to retry."""
CHUNK = 256
"""Entries whose sizes are asked for at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quarantined:
    """One entry that was set aside, without its payload."""

    batch_id: str
    number: int
    position: str
    n: int
    reason: str
    bytes: int
    """Of its payload."""

    @classmethod
    def of(cls, one: SetAside) -> Self:
        """Return what a list says of an entry."""
        return cls(
            batch_id=one.batch_id,
            number=one.number,
            position=one.position,
            n=int(one.fields["n"]),
            reason=one.reason,
            bytes=len(one.payload),
        )


class Quarantine:
    """The entries set aside; every method may raise `Unavailable`."""

    def __init__(self, url: str, names: Names = DEFAULT) -> None:
        self._redis: Any = connect_async(url)  # its types are a union over protocols
        self._names = names

    async def page(self, *, limit: int, after: str = "0-0") -> list[Quarantined]:
        """Return up to `limit` entries behind a position, oldest first.

        Those that a checkpoint does not hold yet are left out: the worker may still learn them.
        """
        found: list[Quarantined] = []
        async for position in self._kept(after):
            async with redis_answers():
                record = await self._redis.hget(self._names.quarantine, position)
            if record:
                found.append(Quarantined.of(SetAside.from_record(position, record)))
            if len(found) == limit:
                break
        return found

    async def find(self, batch_id: str) -> SetAside:
        """Return an entry that is set aside.

        Raises:
            NotFound: `unknown_batch`, no record of it is kept.
            Conflict: `not_quarantined`, it is something else, or was released or dropped.
        """
        async with redis_answers():
            return await _find(self._redis, self._names, batch_id)

    async def retry(self, batch_id: str) -> BatchStatus:
        """Append a batch to the log again, under its old id; return what it is from now on.

        Raises:
            NotFound, Conflict: as `find`; also `conflict`, it lost a race five times.
        """
        one = await self._settle(batch_id, queue_again)
        return BatchStatus(batch_id=batch_id, state="queued", n=int(one.fields["n"]))

    async def drop(self, batch_id: str) -> BatchStatus:
        """Throw a batch away for good; return what is told of it for a day.

        Raises:
            NotFound, Conflict: as `retry`.
        """
        return _dropped(await self._settle(batch_id, _queue_drop))

    async def close(self) -> None:
        """Close every connection."""
        await self._redis.aclose()

    async def _kept(self, after: str) -> AsyncIterator[str]:
        """Yield the positions behind `after` that hold an entry, as far as checkpoints reach."""
        async with redis_answers():
            fields = await self._redis.hkeys(self._names.quarantine)
            reached = await self._redis.hget(self._names.progress, "position") or b"0-0"
        first, last = order(after), order(reached.decode())
        positions = sorted((field.decode() for field in fields), key=order)
        positions = [position for position in positions if first < order(position) <= last]
        for start in range(0, len(positions), CHUNK):
            chunk = positions[start : start + CHUNK]
            async with redis_answers(), self._redis.pipeline(transaction=False) as pipe:
                for position in chunk:
                    pipe.hstrlen(self._names.quarantine, position)
                sizes = await pipe.execute()
            for position, size in zip(chunk, sizes, strict=True):
                if size:
                    yield position

    async def _settle(self, batch_id: str, queue: Queue) -> SetAside:
        async with redis_answers():
            for _ in range(ATTEMPTS):
                try:
                    return await self._try(batch_id, queue)
                except WatchError:
                    continue
        raise Conflict("conflict", f"lost the race for batch {batch_id} {ATTEMPTS} times; retry")

    async def _try(self, batch_id: str, queue: Queue) -> SetAside:
        async with transaction(self._redis) as pipe:
            # Everything that settles a batch changes its status, so only one of two can win.
            await pipe.watch(self._names.batch(batch_id))
            one = await _find(pipe, self._names, batch_id)
            pipe.multi()
            queue(self._names, one, pipe)
            await pipe.execute()
        return one


async def _find(redis: Any, names: Names, batch_id: str) -> SetAside:  # noqa: ANN401  redis-py's types are a union over protocols
    record = await redis.get(names.batch(batch_id))
    if record is None:
        raise NotFound("unknown_batch", f"no record of batch {batch_id} is kept")
    status = BatchStatus.from_record(record)
    if status.state != "quarantined" or status.position is None:
        raise Conflict("not_quarantined", f"batch {batch_id} is {status.state}")
    kept = await redis.hget(names.quarantine, status.position)
    if not kept:
        raise Conflict("not_quarantined", f"batch {batch_id} was released or dropped before")
    return SetAside.from_record(status.position, kept)


def _dropped(one: SetAside) -> BatchStatus:
    return BatchStatus(
        batch_id=one.batch_id,
        state="quarantined",
        n=int(one.fields["n"]),
        position=one.position,
        reason=f"{one.reason}; dropped",
    )


def _queue_drop(names: Names, one: SetAside, pipe: Any) -> None:  # noqa: ANN401  redis-py's types are a union over protocols
    """Queue what empties the record of an entry and lets its status be forgotten in time."""
    pipe.hset(names.quarantine, one.position, GONE)
    queue_event(names, pipe, "dropped", one.facts)
    status, lifetime_s = _dropped(one).to_record(), RECORD_LIFETIME_S
    pipe.set(names.batch(one.batch_id), status, ex=lifetime_s)
