"""Micro-batching: concurrent requests share one forward pass.

    request -> queue (bounded) -> an inference thread takes all that waits -> its rows to each

There are `api_threads` such threads, each of which waits for its pass. A request is never split
over two passes, so that one model answers all of it; none waits for company either: what has
arrived while the passes were running makes up the next.
Dimension key: B batch.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import structlog

from service.api.predictor import Answer
from service.engine.protocol import Array
from service.errors import ServiceError, Unavailable
from service.metrics import RequestMetrics
from service.settings import Settings

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    """One request: its samples, and where its answer goes."""

    x: Array
    answer: asyncio.Future[Answer]


class Batcher:
    """Answers requests from inference threads; lives on one event loop."""

    def __init__(
        self, forward: Callable[[Array], Answer], settings: Settings, metrics: RequestMetrics
    ) -> None:
        """Prepare; `start` begins to answer.

        Args:
            forward: returns the answers for samples [B, ...]; called in an inference thread.
            settings: passes at a time, most samples in a shared one and in the queue.
            metrics: sizes and durations of the passes go here.
        """
        self._forward = forward
        self._max_batch = settings.predict_max_batch
        self._max_waiting = settings.predict_queue
        self._metrics = metrics
        self._waiting: deque[_Waiting] = deque()
        self._samples_waiting = 0
        self._arrived = asyncio.Event()
        self._passes = settings.api_threads
        self._inference = ThreadPoolExecutor(self._passes, thread_name_prefix="inference")
        self._stopping = False
        self._drains: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to answer, on the running event loop."""
        self._drains = [asyncio.create_task(self._answer_forever()) for _ in range(self._passes)]

    async def stop(self) -> None:
        """Answer what is being computed, refuse what waits and all that comes later."""
        self._stopping = True
        self._arrived.set()
        await asyncio.gather(*self._drains)
        for request in self._waiting:
            _refuse(request, _stopping())
        self._inference.shutdown()

    async def predict(self, x: Array) -> Answer:
        """Return the answers for `x` [B, *shape of the schema], in its own order.

        Raises:
            Unavailable: `overloaded`, the queue is full; `not_ready`, there is no model;
                `prediction_failed`, the model could not answer this request; `stopping`.
        """
        if self._stopping:
            raise _stopping()
        # A queue that is empty takes any request: one larger than the bound could never pass.
        if self._waiting and self._samples_waiting + len(x) > self._max_waiting:
            raise Unavailable(
                "overloaded",
                f"expected at most {self._max_waiting} samples waiting for a prediction, "
                f"got {self._samples_waiting + len(x)}",
                retry_after_s=1,
            )
        request = _Waiting(x, asyncio.get_running_loop().create_future())
        self._waiting.append(request)
        self._samples_waiting += len(x)
        self._arrived.set()
        return await request.answer

    async def _answer_forever(self) -> None:
        while not self._stopping:
            if requests := self._take():
                await self._answer(requests)
            else:
                self._arrived.clear()
                await self._arrived.wait()

    def _take(self) -> list[_Waiting]:
        """Return the requests of the next pass: alike, in order, none whose client has gone."""
        taken: list[_Waiting] = []
        size = 0
        while self._waiting:
            request = self._waiting[0]
            fits = not taken or (
                size + len(request.x) <= self._max_batch and request.x.dtype == taken[0].x.dtype
            )
            if not fits:
                break
            self._waiting.popleft()
            self._samples_waiting -= len(request.x)
            if not request.answer.cancelled():
                taken.append(request)
                size += len(request.x)
        return taken

    async def _answer(self, requests: list[_Waiting]) -> None:
        """Run one pass and hand out its rows; where it fails, every request has its own."""
        loop = asyncio.get_running_loop()
        x = requests[0].x if len(requests) == 1 else np.concatenate([r.x for r in requests])
        passed = loop.run_in_executor(self._inference, self._timed_forward, x)
        await asyncio.wait([passed])
        error = passed.exception()
        if error is None:
            _hand_out(passed.result(), requests)
        elif len(requests) == 1:
            _refuse(requests[0], error)
        else:
            for request in requests:
                await self._answer([request])

    def _timed_forward(self, x: Array) -> Answer:
        started = time.perf_counter()
        answer = self._forward(x)
        self._metrics.forward_duration.observe(time.perf_counter() - started)
        self._metrics.predict_batch_size.observe(len(x))
        return answer


def _stopping() -> Unavailable:
    return Unavailable("stopping", "the service is stopping", retry_after_s=1)


def _hand_out(answer: Answer, requests: list[_Waiting]) -> None:
    """Give every request its rows."""
    start = 0
    for request in requests:
        stop = start + len(request.x)
        if not request.answer.done():
            request.answer.set_result(answer.rows(start, stop))
        start = stop


def _refuse(request: _Waiting, error: BaseException) -> None:
    """Give the request a refusal; an error that nobody raised on purpose is logged whole."""
    if not isinstance(error, ServiceError):
        _log.error("forward_failed", samples=len(request.x), exc_info=error)
        error = Unavailable(
            "prediction_failed", "the model could not answer this request", retry_after_s=1
        )
    if not request.answer.done():
        request.answer.set_exception(error)
