"""POST /predict?explain=true: why, for whom, of how many samples, and beside whom."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import httpx
import numpy as np
import pytest

from service.api.body import SAFETENSORS
from service.engine.explanation import Explanation
from service.engine.protocol import Array, Engines, EngineState
from service.settings import Settings
from service.store.entry import encode
from service.store.keys import create_key
from service.store.replay_view import MOST_BYTES, MOST_SEEN, ReplayView
from tests.conftest import MakeSettings
from tests.images import as_file, as_text
from tests.patience import BUSY
from tests.served import (
    PIXELS,
    PixelEngines,
    PixelPredictor,
    assert_problem,
    publish,
    remember,
    running_api,
    stored,
    until_served,
)

QUESTION = {"x": PIXELS.tolist()}
EXPLAINED = "/predict?explain=true"
MEMBERS = {
    (number, index): (np.full((8, 8, 1), 10 * number + index, np.uint8), number)
    for number in (1, 2, 3)
    for index in (0, 1, 2)
}


def bearer(state_dir: Path, *scopes: str) -> dict[str, str]:
    token = create_key(state_dir, name="of a test", scopes=scopes)[1]
    return {"Authorization": f"Bearer {token}"}


async def test_an_explained_answer_is_the_plain_one_and_why(
    serving: httpx.AsyncClient, redis_server: str
) -> None:
    remember(redis_server, MEMBERS)
    plain = (await serving.post("/predict", json=QUESTION)).json()

    said = (await serving.post(EXPLAINED, json=QUESTION)).json()

    why = said.pop("explanations")
    assert said == plain
    assert "explanations" not in plain
    assert why[0].pop("nearest") == [
        {"sample_id": name, "distance": distance, "label": int(name[0])}
        for name, distance in nearest_by_hand(PIXELS[0])
    ]
    assert why[0] == {
        "expert": 3,
        "weights": {"1": 0.333, "3": 0.667},
        "parts": {"network": 1.0},
        "novelty": 31.5,
        "heat": {"kind": "attention", "rows": [[1.0, 0.0], [0.0, 1.0]]},
        "nearest_reason": None,
    }
    assert len(why) == len(PIXELS)


def nearest_by_hand(pixels: Array) -> list[tuple[str, float]]:
    far = {
        f"{number}:{index}": float(np.sqrt(((x[..., 0] - pixels.astype(float)) ** 2).sum()))
        for (number, index), (x, _) in MEMBERS.items()
    }
    return [(name, round(far[name], 3)) for name in sorted(far, key=far.__getitem__)[:5]]


@pytest.mark.parametrize("form", ["json", "safetensors", "image", "images"])
async def test_every_form_of_samples_is_explained(serving: httpx.AsyncClient, form: str) -> None:
    body: dict[str, dict[str, Any]] = {
        "json": {"json": QUESTION},
        "safetensors": {"content": encode(PIXELS, None), "headers": {"Content-Type": SAFETENSORS}},
        "image": {"content": as_file(PIXELS[0]), "headers": {"Content-Type": "image/png"}},
        "images": {"json": {"x": [as_text(as_file(PIXELS[0]))]}},
    }

    answer = await serving.post(EXPLAINED, **body[form])

    assert answer.status_code == 200
    assert len(answer.json()["explanations"]) == len(answer.json()["labels"])


async def test_explanations_are_there_for_every_stream(serving: httpx.AsyncClient) -> None:
    answer = await serving.post(f"/streams/default{EXPLAINED}", json=QUESTION)

    assert len(answer.json()["explanations"]) == 2


async def test_an_empty_replay_memory_is_the_reason_for_no_neighbours(
    serving: httpx.AsyncClient,
) -> None:
    why = (await serving.post(EXPLAINED, json=QUESTION)).json()["explanations"]

    reasons = {(one["nearest"], one["nearest_reason"]) for one in why}
    assert reasons == {(None, "the replay memory is empty")}


async def test_more_than_16_samples_are_not_explained(api_settings: Settings) -> None:
    publish(api_settings.state_dir, classes=[5, 6, 7])
    sixteen, more = ({"x": [PIXELS[0].tolist()] * n} for n in (16, 17))

    async with running_api(api_settings.model_copy(update={"max_batch": 32})) as client:
        await until_served(client)
        explained = await client.post(EXPLAINED, json=sixteen)
        refused = await client.post(EXPLAINED, json=more)
        plain = await client.post("/predict", json=more)

    assert (explained.status_code, plain.status_code) == (200, 200)
    assert_problem(refused, 413, "batch_too_large")
    assert refused.json()["detail"] == "expected at most 16 samples to explain, got 17"


@pytest.mark.parametrize("scopes", [["predict"], ["read"], ["predict", "read"]], ids="+".join)
async def test_only_who_may_predict_and_read_is_told_why(
    settings: MakeSettings, state_dir: Path, scopes: list[str]
) -> None:
    publish(state_dir, classes=[5, 6, 7])
    reader, asker = bearer(state_dir, "read"), bearer(state_dir, *scopes)

    async with running_api(settings()) as client:
        client.headers.update(reader)
        await until_served(client)
        answer = await client.post(EXPLAINED, json=QUESTION, headers=asker)

    if len(scopes) == 2:
        assert answer.status_code == 200
        return
    assert_problem(answer, 403, "foreign_scope")
    missing = {"predict": "read", "read": "predict"}[scopes[0]]
    assert answer.json()["detail"].endswith(f"has no scope {missing}")


async def test_before_the_first_model_nothing_is_explained(api: httpx.AsyncClient) -> None:
    assert_problem(await api.post(EXPLAINED, json=QUESTION), 503, "not_ready")


async def test_explaining_stores_nothing(serving: httpx.AsyncClient, redis_server: str) -> None:
    await serving.post(EXPLAINED, json=QUESTION)

    assert stored(redis_server) == []


class SlowPredictor(PixelPredictor):
    """Explains for as long as it is held up, and counts whose features it is asked for."""

    def __init__(self, classes: list[Any]) -> None:
        super().__init__(classes)
        self.go_on = threading.Event()
        self.asked: list[int] = []

    def explain(self, x: Array) -> Explanation:
        self.go_on.wait(20)
        return super().explain(x)

    def features(self, x: Array) -> Array:
        self.asked.append(len(x))
        return super().features(x)


class SlowEngines(PixelEngines):
    def __init__(self) -> None:
        self.made: list[SlowPredictor] = []

    def predictor(self, state: EngineState) -> SlowPredictor:
        self.made.append(SlowPredictor(state.values["classes"]))
        return self.made[-1]


@pytest.fixture
async def slow(api_settings: Settings) -> AsyncIterator[tuple[httpx.AsyncClient, SlowEngines]]:
    """An API whose explanations wait until they are let go."""
    publish(api_settings.state_dir, classes=[5, 6, 7])
    engines = SlowEngines()
    async with running_api(api_settings, lambda: cast(Engines, engines)) as client:
        await until_served(client)
        yield client, engines
        engines.made[0].go_on.set()


async def test_plain_predictions_do_not_wait_for_explanations_and_few_may_wait(
    slow: tuple[httpx.AsyncClient, SlowEngines],
) -> None:
    client, engines = slow
    explained = [asyncio.create_task(client.post(EXPLAINED, json=QUESTION)) for _ in range(8)]
    await asyncio.sleep(0.1)

    started = time.monotonic()
    plain = await client.post("/predict", json=QUESTION)
    elapsed_s = time.monotonic() - started
    ninth = await client.post(EXPLAINED, json=QUESTION)
    engines.made[0].go_on.set()

    assert plain.status_code == 200
    assert elapsed_s < BUSY * 2
    assert_problem(ninth, 503, "overloaded")
    assert {answer.status_code for answer in await asyncio.gather(*explained)} == {200}


async def test_members_are_looked_at_once_for_each_model_and_never_for_plain_answers(
    slow: tuple[httpx.AsyncClient, SlowEngines], api_settings: Settings, redis_server: str
) -> None:
    client, engines = slow
    remember(redis_server, MEMBERS)
    engines.made[0].go_on.set()

    await client.post("/predict", json=QUESTION)
    assert engines.made[0].asked == []
    for _ in range(3):
        await client.post(EXPLAINED, json=QUESTION)
    assert engines.made[0].asked == [len(MEMBERS), 2, 2, 2]

    publish(api_settings.state_dir, classes=[5, 6, 7])
    await until_served(client, version=2)
    engines.made[1].go_on.set()
    await client.post(EXPLAINED, json=QUESTION)
    assert engines.made[1].asked == [len(MEMBERS), 2]


async def test_a_look_at_the_replay_memory_is_bounded_and_spread_over_it(
    redis_server: str,
) -> None:
    many = {(number, 0): (np.zeros((2, 2, 1), np.uint8), None) for number in range(3 * MOST_SEEN)}
    remember(redis_server, many)
    view = ReplayView(redis_server)

    seen = await view.look()

    assert [one.id[0] for one in seen] == [*range(0, 3 * MOST_SEEN, 3)]
    await view.close()


async def test_a_look_at_large_members_ends_with_its_bytes(redis_server: str) -> None:
    large = np.zeros((128, 128, 4), np.uint8)
    for start in range(0, 400, 40):
        remember(redis_server, {(number, 1): (large, None) for number in range(start, start + 40)})
    view = ReplayView(redis_server)

    seen = await view.look()
    await view.close()

    assert MOST_BYTES < sum(one.x.nbytes for one in seen) <= MOST_BYTES + 50 * large.nbytes
    assert len(seen) < 400
