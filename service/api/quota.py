"""What each key may ask for: a token bucket for its rate, a count of what is in flight.

In memory and of this process alone: several API processes grant their sum.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from service.errors import TooMany
from service.store.keys import Key

MOST_OWED_S = 5.0
"""Longest time for which a stream of batches waits for its turn; half of what its client may."""


class Quota:
    """How much one key has used."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._tokens = math.inf  # a full bucket, whatever its size
        self._at = clock()
        self._in_flight = 0

    @contextmanager
    def taken(self, key: Key) -> Iterator[None]:
        """Hold one request of a key while it runs.

        Raises:
            TooMany: `too_many_in_flight`, `rate_limited`; nothing is taken.
        """
        if key.in_flight is not None and self._in_flight >= key.in_flight:
            raise TooMany(
                "too_many_in_flight",
                f"key {key.id} may have {key.in_flight} requests at the same time",
                retry_after_s=1,
            )
        if key.rate is not None:
            self._take_token(key, key.rate)
        self._in_flight += 1
        try:
            yield
        finally:
            self._in_flight -= 1

    def owed_s(self, key: Key) -> float:
        """Take one more batch of a request that is under way; return the seconds until its turn.

        Raises:
            TooMany: `rate_limited`, its turn is far away; nothing is taken.
        """
        if key.rate is None:
            return 0.0
        self._take_token(key, key.rate, ahead=key.rate * MOST_OWED_S)
        return max(0.0, -self._tokens / key.rate)

    def _take_token(self, key: Key, rate: float, *, ahead: float = 0.0) -> None:
        """Take a token, or one of the first `ahead` that are not there yet."""
        now = self._clock()
        burst = key.burst or max(1, math.ceil(rate))
        self._tokens = min(burst, self._tokens + (now - self._at) * rate)
        self._at = now
        if self._tokens + ahead < 1:
            raise TooMany(
                "rate_limited",
                f"key {key.id} may send {rate:g} requests a second, {burst} at once",
                retry_after_s=math.ceil((1 - self._tokens) / rate),
            )
        self._tokens -= 1
