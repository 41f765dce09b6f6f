"""The events of one stream, as whoever listens reads them: behind an id, waiting for the next."""

from dataclasses import dataclass
from typing import Any, Final

from service.store.events import Event
from service.store.link import connect_async, redis_answers
from service.store.names import DEFAULT, Names
from service.store.stream_ids import START, order

MOST_READ: Final = 64
"""Events of one read."""
WAIT_MS: Final = 1000
"""Longest wait of one read; below `link.TIMEOUT_S`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Beginning:
    """Where a listener begins."""

    after: str
    """Id of the event behind which it reads."""
    gap: bool
    """Whether events behind that one may be gone."""


class Feed:
    """Reads the events of a stream; every method may raise `Unavailable`."""

    def __init__(self, url: str, names: Names = DEFAULT) -> None:
        self._redis: Any = connect_async(url)  # its types are a union over protocols
        self._names = names

    async def begin(self, after: str | None) -> Beginning:
        """Return where to begin: behind an event, or behind the newest one without an id.

        Only an id that is older than all that is kept has a gap behind it; the very first has none.
        """
        async with redis_answers():
            if after is None:
                newest = await self._redis.xrevrange(self._names.events, count=1)
                return Beginning(after=newest[0][0].decode() if newest else START, gap=False)
            oldest = await self._redis.xrange(self._names.events, count=1)
        after = after if "-" in after else f"{after}-0"
        known = bool(oldest) and order(oldest[0][0].decode()) <= order(after)
        return Beginning(after=after, gap=order(after) > order(START) and not known)

    async def read(self, after: str) -> list[Event]:
        """Return the next events behind an id, oldest first; none where none came in `WAIT_MS`."""
        async with redis_answers():
            found = await self._redis.xread(
                {self._names.events: after}, count=MOST_READ, block=WAIT_MS
            )
        return [Event.from_raw(id_, fields) for _, rows in found or [] for id_, fields in rows]

    async def close(self) -> None:
        """Close the connections."""
        await self._redis.aclose()
