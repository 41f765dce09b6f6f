"""Who listens to the events of a stream: so many at most, each on a connection of its own to Redis.

A listener is told until the process stops, its key counts no more, or Redis is away; then its
stream ends, and it goes on elsewhere or later behind the last id that it was told.
"""

from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from typing import Final

from service.api.seats import Seats
from service.errors import Unauthorized, Unavailable
from service.store.events import Event
from service.store.feed import Beginning, Feed

MOST_LISTENERS: Final = 16
"""Of one stream in one process; below `link.API_CONNECTIONS`."""


class Audience:
    """The listeners of one stream; lives on one event loop."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self._seats = Seats(MOST_LISTENERS)
        self.seat = self._seats.seat
        """Holds a place among the listeners; raises TooMany."""
        self._stopping = False

    async def begin(self, after: str | None) -> Beginning:
        """Return where a listener begins; raises Unavailable."""
        return await self._feed.begin(after)

    async def events(self, after: str, check: Callable[[], object]) -> AsyncGenerator[Event]:
        """Yield the events behind an id, those to come included, until there is a reason to end.

        Args:
            after: the id.
            check: raises Unauthorized once the listener may not be told any more.
        """
        with suppress(Unavailable, Unauthorized):
            while not self._stopping:
                check()
                for event in await self._feed.read(after):
                    yield event
                    after = event.id

    def stop(self) -> None:
        """Tell nobody anything any more."""
        self._stopping = True

    async def close(self) -> None:
        """Close the connections."""
        await self._feed.close()
