"""Micro-batching: requests share passes, and neither wait for nor fail with each other."""

import asyncio
import threading
from collections.abc import AsyncIterator

import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from service.api.batcher import Batcher
from service.api.predictor import Answer
from service.engine.protocol import Array
from service.errors import Unavailable
from service.metrics import ApiMetrics
from service.settings import Settings
from service.store.snapshots import SnapshotInfo
from tests.served import PixelPredictor

INFO = SnapshotInfo(version=1, position="7-0", step=5, quarantined=0, published_at=0.0, summary={})
POISON = 99
SETTINGS = Settings(predict_max_batch=8, predict_queue=20)


class Model:
    """A predictor that can be held up, fails on one pixel value and remembers its passes."""

    def __init__(self) -> None:
        self.free = threading.Event()
        self.free.set()
        self.passes: list[Array] = []
        self._predictor = PixelPredictor([*range(64)])

    def __call__(self, x: Array) -> Answer:
        self.free.wait()
        self.passes.append(x)
        if (x == POISON).any():
            raise RuntimeError("the forward pass broke")
        return Answer.of(self._predictor.predict(x), INFO, top_k=1)

    @property
    def sizes(self) -> list[int]:
        return [len(x) for x in self.passes]


def samples(*pixels: int, dtype: type = np.uint8) -> Array:
    return np.array(pixels, dtype).reshape(-1, 1, 1, 1) * np.ones((8, 8, 1), dtype)


def said(answer: Answer) -> list[int]:
    return [int(label) for label in answer.top[:, 0]]


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
async def batcher(model: Model) -> AsyncIterator[Batcher]:
    batcher = Batcher(model, SETTINGS, ApiMetrics(CollectorRegistry()).of("default"))
    batcher.start()
    yield batcher
    model.free.set()
    await batcher.stop()


async def behind_a_pass(
    batcher: Batcher, model: Model, *requests: Array
) -> list[asyncio.Task[Answer]]:
    """Let `requests` queue up while the model is held up by one of its own."""
    model.free.clear()
    first = asyncio.create_task(batcher.predict(samples(0)))
    await asyncio.sleep(0.01)  # now it is in the inference thread
    waiting = [asyncio.create_task(batcher.predict(x)) for x in requests]
    await asyncio.sleep(0)  # now they are in the queue
    return [first, *waiting]


async def test_what_waits_shares_one_pass_and_each_gets_its_rows(
    batcher: Batcher, model: Model
) -> None:
    tasks = await behind_a_pass(batcher, model, samples(1), samples(2, 3), samples(4))

    model.free.set()
    answers = await asyncio.gather(*tasks)

    assert [said(answer) for answer in answers] == [[0], [1], [2, 3], [4]]
    assert model.sizes == [1, 4]


async def test_a_pass_has_no_more_samples_than_the_setting(batcher: Batcher, model: Model) -> None:
    tasks = await behind_a_pass(batcher, model, *(samples(i, i, i) for i in range(1, 6)))

    model.free.set()
    await asyncio.gather(*tasks)

    assert model.sizes == [1, 6, 6, 3]


async def test_a_request_larger_than_a_pass_is_answered_whole(
    batcher: Batcher, model: Model
) -> None:
    answer = await batcher.predict(samples(*range(30)))

    assert said(answer) == [*range(30)]
    assert model.sizes == [30]


async def test_pixels_of_two_kinds_do_not_share_a_pass(batcher: Batcher, model: Model) -> None:
    tasks = await behind_a_pass(batcher, model, samples(1), samples(2, dtype=np.float32))

    model.free.set()
    await asyncio.gather(*tasks)

    assert [x.dtype.name for x in model.passes] == ["uint8", "uint8", "float32"]


async def test_a_request_that_breaks_the_pass_fails_alone(batcher: Batcher, model: Model) -> None:
    tasks = await behind_a_pass(batcher, model, samples(1), samples(POISON), samples(2))

    model.free.set()
    with capture_logs() as logs:
        _, good, bad, also_good = await asyncio.gather(*tasks, return_exceptions=True)

    assert isinstance(bad, Unavailable)
    assert bad.code == "prediction_failed"
    assert isinstance(good, Answer)
    assert isinstance(also_good, Answer)
    assert (said(good), said(also_good)) == ([1], [2])
    assert [entry["event"] for entry in logs] == ["forward_failed"]


async def test_after_a_broken_pass_the_next_is_answered(batcher: Batcher, model: Model) -> None:
    with capture_logs(), pytest.raises(Unavailable):
        await batcher.predict(samples(POISON))

    assert said(await batcher.predict(samples(5))) == [5]


async def test_a_full_queue_is_refused_with_503(batcher: Batcher, model: Model) -> None:
    tasks = await behind_a_pass(batcher, model, samples(*range(20)))

    with pytest.raises(Unavailable, match=r"at most 20 samples .* got 21") as refused:
        await batcher.predict(samples(1))

    assert (refused.value.code, refused.value.retry_after_s) == ("overloaded", 1)
    model.free.set()
    await asyncio.gather(*tasks)


async def test_a_client_that_has_gone_costs_no_pass(batcher: Batcher, model: Model) -> None:
    first, gone, stays = await behind_a_pass(batcher, model, samples(1), samples(2))

    gone.cancel()
    await asyncio.sleep(0)
    model.free.set()
    await asyncio.gather(first, stays)

    assert [x[:, 0, 0, 0].tolist() for x in model.passes] == [[0], [2]]


async def test_room_that_a_gone_client_held_is_free_again(batcher: Batcher, model: Model) -> None:
    first, gone = await behind_a_pass(batcher, model, samples(*range(20)))
    gone.cancel()
    model.free.set()
    await first

    assert said(await batcher.predict(samples(3))) == [3]


async def test_stopping_answers_what_runs_and_refuses_what_waits(
    batcher: Batcher, model: Model
) -> None:
    running, waiting = await behind_a_pass(batcher, model, samples(1))

    stopped = asyncio.create_task(batcher.stop())
    await asyncio.sleep(0)
    model.free.set()
    await stopped

    assert said(await running) == [0]
    with pytest.raises(Unavailable, match="stopping"):
        await waiting
    with pytest.raises(Unavailable, match="stopping"):
        await batcher.predict(samples(1))


async def test_as_many_passes_run_at_a_time_as_the_setting_says() -> None:
    """Each of them waits for the other."""
    meeting = threading.Barrier(2)

    def forward(x: Array) -> Answer:
        meeting.wait(10)
        return Answer.of(PixelPredictor([*range(64)]).predict(x), INFO, top_k=1)

    metrics = ApiMetrics(CollectorRegistry()).of("default")
    batcher = Batcher(forward, Settings(api_threads=2, predict_max_batch=1), metrics)
    batcher.start()

    answers = await asyncio.gather(*(batcher.predict(samples(pixel)) for pixel in (3, 4, 5, 6)))
    await batcher.stop()

    assert [said(answer) for answer in answers] == [[3], [4], [5], [6]]
