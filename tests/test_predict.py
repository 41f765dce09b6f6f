"""POST /predict and GET /experts: the served model's answers."""

import time

import httpx
import numpy as np
import pytest

from service.api.body import SAFETENSORS
from service.settings import Settings
from service.store.entry import encode
from tests.served import (
    DOCUMENT,
    PIXELS,
    UNANSWERED,
    assert_problem,
    publish,
    running_api,
    stored,
    until_served,
)


async def test_before_the_first_model_predict_is_not_ready(api: httpx.AsyncClient) -> None:
    assert_problem(await api.post("/predict", json={"x": PIXELS.tolist()}), 503, "not_ready")


async def test_a_bad_request_is_told_so_even_before_the_first_model(
    api: httpx.AsyncClient,
) -> None:
    await api.post("/observe", json=DOCUMENT)

    assert_problem(await api.post("/predict", json={"x": [[0.5]]}), 422, "schema_mismatch")
    assert_problem(await api.post("/predict", json=DOCUMENT), 422, "unknown_field")


async def test_a_prediction_is_one_row_per_sample(serving: httpx.AsyncClient) -> None:
    x = np.zeros((3, 8, 8), int)
    x[:, 0, 0] = [0, 1, UNANSWERED]

    answer = await serving.post("/predict", json={"x": x.tolist()})

    assert answer.status_code == 200
    assert answer.json() == {
        "labels": [5, 6, None],
        "probabilities": [[0.123, 0.1, 0.1], [0.123, 0.1, 0.1], []],
        "classes": [[5, 6, 7], [6, 5, 7], []],
        "experts": [3, 3, 3],
        "novelty": [0.0, 0.016, 3.984],
        "model_version": 1,
        "position": "7-0",
    }


async def test_a_large_prediction_keeps_the_order(api_settings: Settings) -> None:
    publish(api_settings.state_dir, classes=[*range(200)])
    x = np.broadcast_to(np.arange(200, dtype=np.uint8)[:, None, None], (200, 8, 8))
    settings = api_settings.model_copy(update={"max_batch": 1024})

    async with running_api(settings) as client:
        await until_served(client)
        answer = await client.post(
            "/predict", content=encode(x, None), headers={"Content-Type": SAFETENSORS}
        )

    assert answer.json()["labels"] == [*range(200)]


async def test_predictions_store_nothing(serving: httpx.AsyncClient, redis_server: str) -> None:
    await serving.post("/predict", json={"x": PIXELS.tolist()})

    assert stored(redis_server) == []


async def test_a_batch_of_another_schema_than_the_model_is_refused(
    serving: httpx.AsyncClient,
) -> None:
    assert_problem(await serving.post("/predict", json={"x": [[0.5]]}), 422, "schema_mismatch")


async def test_a_new_model_answers_soon_after_it_is_published(
    serving: httpx.AsyncClient, api_settings: Settings
) -> None:
    publish(api_settings.state_dir, classes=["a", "b"], position="9-0")
    await until_served(serving, version=2)

    said = (await serving.post("/predict", json={"x": PIXELS[:1].tolist()})).json()

    assert (said["labels"], said["model_version"], said["position"]) == (["a"], 2, "9-0")


async def test_experts_are_those_of_the_served_model(serving: httpx.AsyncClient) -> None:
    said = (await serving.get("/experts")).json()

    assert (said["model_version"], said["position"], said["step"]) == (1, "7-0", 5)
    assert said["classes"] == [5, 6, 7]
    assert said["published_at"] == pytest.approx(time.time(), abs=60)


async def test_before_the_first_model_there_are_no_experts(api: httpx.AsyncClient) -> None:
    said = (await api.get("/experts")).json()

    assert (said["model_version"], said["experts"]) == (0, [])
