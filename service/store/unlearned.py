"""How long the oldest entry of a log has been waiting that a served model has not learned."""

from typing import Any

from service.store.link import connect_async, redis_answers
from service.store.names import DEFAULT, Names
from service.store.stream_ids import START, order


class Unlearned:
    """Looks behind the position of a model; every method may raise `Unavailable`."""

    def __init__(self, url: str, names: Names = DEFAULT) -> None:
        self._redis: Any = connect_async(url)  # its types are a union over protocols
        self._names = names
        self._behind = START, ""

    async def age_s(self, position: str) -> float:
        """Return the age of the oldest entry behind `position` in seconds; 0 without one.

        Both ends are of the clock of Redis: a position begins with the milliseconds at which its
        entry was appended, and `TIME` says what time it is there. Where that clock was set back,
        entries get the highest time that it ever had, so the age is too low until it is there
        again.
        """
        async with redis_answers():
            oldest = await self._oldest(position)
            if oldest is None:
                return 0.0
            seconds, microseconds = await self._redis.time()
        now_s = float(seconds) + float(microseconds) / 1e6
        return max(0.0, now_s - order(oldest)[0] / 1e3)

    async def close(self) -> None:
        """Close the connection."""
        await self._redis.aclose()

    async def _oldest(self, position: str) -> str | None:
        """Return the first position behind another; read once, as it comes with its payload."""
        known_of, known = self._behind
        if known and known_of == position:
            return known
        found = await self._redis.xrange(self._names.log, f"({position}", count=1)
        if not found:
            return None
        self._behind = position, found[0][0].decode()
        return self._behind[1]
