"""Waits between tries: each up to twice as long as the one before, drawn so that clients part."""

import random
import time

from service.client.models import ApiError

_FIRST_S, _LONGEST_S = 0.05, 2.0


class Pauses:
    """Waits between tries of one thing, until the time for it is over."""

    def __init__(self, within_s: float, *, longest_s: float = _LONGEST_S) -> None:
        """Begin to count.

        Args:
            within_s: time for all tries together.
            longest_s: bound on one wait, unless a longer one is asked for.
        """
        self._deadline = time.monotonic() + within_s
        self._next_s = min(_FIRST_S, longest_s)
        self._longest_s = longest_s

    def next_s(self, at_least_s: float = 0.0) -> float | None:
        """Return how long to wait before the next try, or None where the time would be over.

        Args:
            at_least_s: the wait that the other side asks for; up to a tenth is put on top.
        """
        drawn = random.random()  # noqa: S311  spreads load, hides nothing
        wait_s = max(self._next_s * (1 + drawn) / 2, at_least_s * (1 + drawn / 10))
        self._next_s = min(2 * self._next_s, self._longest_s)
        return None if time.monotonic() + wait_s > self._deadline else wait_s

    def after(self, refusal: ApiError) -> float:
        """Return how long to wait before a request that was refused is tried again.

        Raises:
            ApiError: the refusal, as it will not pass, or not in time.
        """
        wait_s = self.next_s(refusal.retry_after_s) if refusal.may_pass else None
        if wait_s is None:
            raise refusal
        return wait_s
