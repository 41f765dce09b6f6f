"""What is now of one stream: looked up at most once a second, however many watch.

Lives on one event loop.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from service.api.predictor import Follower
from service.api.schemas_live import Now
from service.errors import Unavailable
from service.store.append import Appender

EVERY_S: Final = 1.0
"""Between two looks."""
_MEMORY_S = 60.0  # after which an answer weighs 1 / e in the shares of the experts
_FEWEST = 0.5  # faded answers of which shares are told
_RATE_S = 10  # over which the speed of learning is taken


class Pulse:
    """What is now, and which experts lately answered."""

    def __init__(
        self, follower: Follower, appender: Appender, staleness_s: Callable[[], Awaitable[float]]
    ) -> None:
        """Prepare.

        Args:
            follower: of the served model.
            appender: to the stream's log.
            staleness_s: of the served model; raises Unavailable.
        """
        self._follower = follower
        self._appender = appender
        self._staleness_s = staleness_s
        self._answers = np.zeros(0)
        self._faded_at = time.monotonic()
        self._learned: deque[tuple[float, int]] = deque(maxlen=_RATE_S)
        self._now: Now | None = None
        self._looking = asyncio.Lock()
        self._looked_at = -math.inf

    def answered(self, experts: NDArray[np.int64]) -> None:
        """Count answers.

        Args:
            experts: [B] ids of those who gave them.
        """
        counts = np.bincount(experts, minlength=len(self._answers)).astype(np.float64)
        self._fade()
        counts[: len(self._answers)] += self._answers
        self._answers = counts

    async def now(self) -> Now:
        """Return what is now, or was less than a second ago."""
        async with self._looking:  # whoever comes meanwhile waits for the same look
            if self._now is None or time.monotonic() - self._looked_at >= EVERY_S:
                self._looked_at = time.monotonic()
                self._now = await self._look()
            return self._now

    async def _look(self) -> Now:
        self._fade()
        now = Now(answered_by=self._shares())
        if (served := self._follower.facts) is not None:
            summary = served.summary
            now.model_version, now.position, now.step = served.version, served.position, served.step
            now.experts = len(summary["experts"])
            now.accuracy = summary["prequential_accuracy"]
            now.novelty, now.threshold = summary["novelty"], summary["threshold"]
            now.samples = summary["samples_learned"]
            now.samples_per_s = self._speed(now.samples)
        try:
            facts = await self._appender.facts()
            now.backlog = await self._appender.backlog()
            now.staleness_s = await self._staleness_s()
        except Unavailable as error:
            now.worker, now.problem = "unknown", error.message
        else:
            now.problem = facts.worker_problem
            now.worker = "learning" if now.problem is None else "stopped"
        return now

    def _fade(self) -> None:
        then, self._faded_at = self._faded_at, time.monotonic()
        self._answers *= math.exp((then - self._faded_at) / _MEMORY_S)

    def _shares(self) -> dict[int, float]:
        """Return what share of the answers each expert gave; nothing where there were too few."""
        total = float(self._answers.sum())
        if total < _FEWEST:
            return {}
        return {k: round(n / total, 4) for k, n in enumerate(self._answers.tolist()) if n > 0}

    def _speed(self, samples: int) -> float | None:
        """Return how many samples a second the served models lately learned."""
        now = time.monotonic()
        if self._learned and now - self._learned[-1][0] > _RATE_S:
            self._learned.clear()  # nobody watched in between
        self._learned.append((now, samples))
        began_at, before = self._learned[0]
        return None if now - began_at < EVERY_S else (samples - before) / (now - began_at)
