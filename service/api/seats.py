"""Places for those who listen for long: so many at the same time, and no more."""

from collections.abc import Iterator
from contextlib import contextmanager

from service.errors import TooMany


class Seats:
    """So many places; lives on one event loop."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._taken = 0

    @contextmanager
    def seat(self) -> Iterator[None]:
        """Hold a place among the listeners.

        Raises:
            TooMany: `too_many_listeners`.
        """
        if self._taken >= self._most:
            raise TooMany(
                "too_many_listeners",
                f"a stream has at most {self._most} listeners at the same time",
                retry_after_s=5,
            )
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1
