"""The replay memory of one stream as the API looks at it: a bounded, even choice, read only."""

from dataclasses import dataclass
from typing import Any, Final

from service.engine.protocol import Array, Label, MemberId
from service.errors import CorruptState
from service.store.link import connect_async, redis_answers
from service.store.member import decode, member_id, member_name
from service.store.names import DEFAULT, Names

MOST_SEEN: Final = 500
"""Members of one look."""
MOST_BYTES: Final = 16 * 2**20
"""Of all members of one look, as they lie in Redis."""
_CHUNK = 50


@dataclass(frozen=True, slots=True)
class Member:
    """One sample of the replay memory."""

    id: MemberId
    x: Array
    label: Label | None

    @property
    def name(self) -> str:
        """How it is called where it is told: `<number of its entry in the log>:<index there>`."""
        return member_name(self.id)


class ReplayView:
    """Looks at the replay memory; may raise `Unavailable`."""

    def __init__(self, url: str, names: Names = DEFAULT) -> None:
        self._redis: Any = connect_async(url)  # its types are a union over protocols
        self._name = names.replay

    async def look(self) -> list[Member]:
        """Return every n-th member by age, n such that they are at most `MOST_SEEN`, oldest first.

        Fewer where they would be more than `MOST_BYTES`. Members that left meanwhile, and those of
        another shape or type than the first, are passed over.
        """
        async with redis_answers():
            ids = sorted(member_id(field) for field in await self._redis.hkeys(self._name))
        chosen = ids[:: -(-len(ids) // MOST_SEEN)] if ids else []
        found: list[Member] = []
        for start in range(0, len(chosen), _CHUNK):
            found += await self._read(chosen[start : start + _CHUNK])
            if sum(one.x.nbytes for one in found) > MOST_BYTES:
                break
        return [one for one in found if (one.x.shape, one.x.dtype) == _form(found[0])]

    async def close(self) -> None:
        """Close the connection."""
        await self._redis.aclose()

    async def _read(self, ids: list[MemberId]) -> list[Member]:
        async with redis_answers():
            pipe = self._redis.pipeline(transaction=False)
            for id_ in ids:
                pipe.hget(self._name, member_name(id_))
            values = await pipe.execute()
        found = []
        for id_, value in zip(ids, values, strict=True):
            try:
                found.append(Member(id_, *decode(id_, value)))
            except CorruptState:  # the worker reads it, too, and says so
                continue
        return found


def _form(one: Member) -> tuple[Any, Any]:
    return one.x.shape, one.x.dtype
