"""The durable copy of the replay memory: raw samples in Redis, by member id.

A checkpoint names members and does not hold them, so members are written before the checkpoint
that names them and deleted only when no kept checkpoint names them any more: a worker that went
back would otherwise draw from a newer memory than its weights. Writing a member again changes
nothing.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from redis.client import Pipeline

from service.engine.protocol import Array, Label, MemberId, Members
from service.store.fence import Fence
from service.store.link import redis_errors
from service.store.member import decode, encode, member_id, member_name

CHUNK = 256
"""Members sent to Redis, or asked of it, at once: at most 50 MB of the largest images."""


class ReplayStore:
    """The members in Redis; every method may raise `Unavailable`."""

    def __init__(self, fence: Fence) -> None:
        self._fence = fence
        self._redis: Any = fence.redis
        self._name = fence.names.replay

    def ids(self) -> set[MemberId]:
        """Return the ids of all members stored."""
        with redis_errors():
            fields: Any = self._redis.hkeys(self._name)
        return {member_id(field) for field in fields}

    def put(self, members: Mapping[MemberId, tuple[Array, Label | None]]) -> None:
        """Store members; storing one again changes nothing."""
        ids = list(members)
        for start in range(0, len(ids), CHUNK):
            chunk = ids[start : start + CHUNK]
            values: dict[Any, Any] = {member_name(id_): encode(*members[id_]) for id_ in chunk}
            self._fence.write(partial(_hset, self._name, values))

    def fetch(self, ids: Sequence[MemberId]) -> Members:
        """Return the members named, in the order named.

        Raises:
            CorruptState: one of them is not stored, or cannot be read.
        """
        decoded: list[tuple[Array, Label | None]] = []
        for start in range(0, len(ids), CHUNK):
            chunk = ids[start : start + CHUNK]
            with redis_errors():
                values: Any = self._redis.hmget(self._name, [member_name(id_) for id_ in chunk])
            decoded += [decode(id_, value) for id_, value in zip(chunk, values, strict=True)]
        return Members(x=[x for x, _ in decoded], labels=[label for _, label in decoded])

    def delete(self, ids: Iterable[MemberId]) -> None:
        """Drop members; ids that are not stored are passed over."""
        fields = [member_name(id_) for id_ in ids]
        for start in range(0, len(fields), CHUNK):
            chunk = fields[start : start + CHUNK]
            self._fence.write(partial(_hdel, self._name, chunk))


def _hset(name: str, values: Mapping[Any, Any], pipe: Pipeline) -> None:
    pipe.hset(name, mapping=values)


def _hdel(name: str, fields: Sequence[str], pipe: Pipeline) -> None:
    pipe.hdel(name, *fields)
