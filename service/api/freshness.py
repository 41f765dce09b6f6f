"""Read your writes: a request can wait for a model that has learned up to a position of the log.

The thread that swaps models says so to the event loop, once a swap, and whoever waits looks again.
Nobody asks Redis, so waiting works while it is away.
"""

import asyncio
from contextlib import suppress
from typing import Final

from service.api.predictor import Follower
from service.errors import Unavailable
from service.store.stream_ids import START, order

POSITION: Final = r"^[0-9]{1,20}-[0-9]{1,20}$"
"""What a position looks like."""
LONGEST_WAIT_S: Final = 30.0


class Freshness:
    """Who waits for newer models of one stream; lives on one event loop."""

    def __init__(self, follower: Follower) -> None:
        """Prepare; `start` begins to listen to the follower."""
        self._follower = follower
        self._swapped = asyncio.Event()
        self._stopping = False

    def start(self) -> None:
        """Let the follower's thread wake this event loop from now on."""
        loop = asyncio.get_running_loop()
        self._follower.on_swap = lambda: loop.call_soon_threadsafe(self._wake)

    def stop(self) -> None:
        """Let nobody wait any longer."""
        self._follower.on_swap = None
        self._stopping = True
        self._wake()

    async def until(self, position: str, within_s: float) -> None:
        """Wait until the served model has learned up to `position`, or set aside what it has not.

        Raises:
            Unavailable: `not_learned_yet`, not within `within_s` or before the end of the process.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while not self._stopping and order(self._reached) < order(position):
                    await self._swapped.wait()
        check_learned(position, self._reached)

    @property
    def _reached(self) -> str:
        facts = self._follower.facts
        return START if facts is None else facts.position

    def _wake(self) -> None:
        self._swapped.set()
        self._swapped = asyncio.Event()


def check_learned(position: str, reached: str) -> None:
    """Check that a model has learned up to `position`.

    Raises:
        Unavailable: `not_learned_yet`, it has only `reached` another.
    """
    if order(reached) < order(position):
        raise Unavailable(
            "not_learned_yet",
            f"expected a model that has learned up to {position}, got one that has reached "
            f"{reached}",
            retry_after_s=1,
        )
