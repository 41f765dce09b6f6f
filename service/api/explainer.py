"""Explanations of answers: computed beside the batcher, one request at a time.

The served model is asked in a thread of its own, so that neither the event loop nor other
predictions wait. What the replay memory holds is read once for each model that is asked.
Dimension key: B batch, M members of the replay memory, D features.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from service.api.predictor import Answer, Follower, Served, not_ready
from service.api.schemas_explain import Neighbour, told
from service.engine.explanation import Explanation
from service.engine.protocol import Array
from service.errors import TooLarge, Unavailable
from service.store.replay_view import Member, ReplayView

MOST_EXPLAINED: Final = 16
"""Samples of one request."""
NEAREST: Final = 5
"""Members that are told of each sample."""
MOST_WAITING: Final = 8
"""Requests that wait for their explanation; more are refused."""


_NO_REDIS: Final = "redis does not answer"


@dataclass(slots=True)
class _Remembered:
    """Members of the replay memory as one model sees them."""

    version: int
    members: list[Member]
    _features_MD: NDArray[np.float32] | None = None
    _answers_M: NDArray[np.int64] | None = None

    @property
    def x(self) -> Array:
        """The members, [M, ...]."""
        return np.stack([one.x for one in self.members])

    def features(self, served: Served) -> NDArray[np.float32]:
        """Return what they are to the model, [M, D]; computed once."""
        if self._features_MD is None:
            self._features_MD = served.predictor.features(self.x)
        return self._features_MD

    def answers(self, served: Served) -> NDArray[np.int64]:
        """Return the ids of the experts that answer them, [M]; computed once."""
        if self._answers_M is None:
            none = np.empty(0, np.int64)
            self._answers_M = served.predictor.predict(self.x).experts if self.members else none
        return self._answers_M


class Explainer:
    """Explains answers of one stream; lives on one event loop."""

    def __init__(self, follower: Follower, view: ReplayView, *, top_k: int) -> None:
        self._follower = follower
        self._view = view
        self._top_k = top_k
        self._turn = asyncio.Lock()
        self._waiting = 0
        self._remembered: _Remembered | None = None

    async def of_expert(self, served: Served, expert: int, n: int) -> list[Member] | str:
        """Return up to n members that a model lets an expert answer, or why there are none.

        Raises:
            Unavailable: `overloaded`, too many wait. Not where Redis is away.
        """
        async with self._taking_turns():
            try:
                remembered = await self._of(served)
            except Unavailable:
                return _NO_REDIS
            answers_M = await asyncio.to_thread(remembered.answers, served)
        chosen = np.flatnonzero(answers_M == expert)
        places = np.linspace(0, len(chosen) - 1, min(n, len(chosen))).round().astype(int)
        return [remembered.members[m] for m in chosen[places].tolist()]

    async def explain(self, x: Array) -> tuple[Answer, list[dict[str, Any]]]:
        """Return the answers for samples [B, ...], and why, both of one model.

        Raises:
            TooLarge: `batch_too_large`.
            Unavailable: `not_ready`; `overloaded`, too many wait. Not where Redis is away.
        """
        check_explained(len(x))
        async with self._taking_turns():
            return await self._explained(x)

    @asynccontextmanager
    async def _taking_turns(self) -> AsyncIterator[None]:
        if self._waiting >= MOST_WAITING:
            raise Unavailable(
                "overloaded",
                f"expected at most {MOST_WAITING} requests waiting for explanations, "
                f"got {self._waiting + 1}",
                retry_after_s=1,
            )
        self._waiting += 1
        try:
            async with self._turn:
                yield
        finally:
            self._waiting -= 1

    async def _explained(self, x: Array) -> tuple[Answer, list[dict[str, Any]]]:
        served = self._follower.current
        if served is None:
            raise not_ready()
        answer, explanation = await asyncio.to_thread(self._asked, served, x)
        nearest = await self._nearest(served, x)
        return answer, told(explanation, answer.experts, nearest)

    def _asked(self, served: Served, x: Array) -> tuple[Answer, Explanation]:
        predictor = served.predictor
        answer = Answer.of(predictor.predict(x), served.info, top_k=self._top_k)
        return answer, predictor.explain(x)

    async def _nearest(self, served: Served, x: Array) -> list[list[Neighbour]] | str:
        """Return the members that are nearest to each sample, or why there are none."""
        try:
            remembered = await self._of(served)
        except Unavailable:
            return _NO_REDIS
        if not remembered.members:
            return "the replay memory is empty"
        return await asyncio.to_thread(_neighbours, served, remembered, x)

    async def _of(self, served: Served) -> _Remembered:
        """Return what the served model remembers, read once."""
        known = self._remembered
        if known is None or known.version != served.info.version or not known.members:
            known = _Remembered(served.info.version, await self._view.look())
            self._remembered = known
        return known

    async def close(self) -> None:
        """Close the connection to Redis."""
        await self._view.close()


def check_explained(n: int) -> None:
    """Check how many samples are to be explained.

    Raises:
        TooLarge: `batch_too_large`.
    """
    if n > MOST_EXPLAINED:
        raise TooLarge(
            "batch_too_large", f"expected at most {MOST_EXPLAINED} samples to explain, got {n}"
        )


def _neighbours(served: Served, remembered: _Remembered, x: Array) -> list[list[Neighbour]]:
    told_B, features_MD = [], remembered.features(served)
    for feature_D in served.predictor.features(x):
        distance_M = np.linalg.norm(features_MD - feature_D, axis=1)
        near = np.argsort(distance_M, kind="stable")[:NEAREST].tolist()
        told_B.append([_neighbour(remembered.members[m], float(distance_M[m])) for m in near])
    return told_B


def _neighbour(member: Member, distance: float) -> Neighbour:
    return Neighbour(sample_id=member.name, distance=round(distance, 3), label=member.label)
