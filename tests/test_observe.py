"""POST /observe: what it accepts is in the log, what it refuses leaves no trace."""

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest

from service.api.body import JSON, SAFETENSORS
from service.store.entry import encode
from tests.bad_bodies import BAD_JSON, BAD_TENSORS
from tests.served import (
    DOCUMENT,
    PIXELS,
    assert_problem,
    logged,
    stored,
)

KEY = {"Idempotency-Key": "0123456789abcdef"}


async def test_an_accepted_batch_is_in_the_log(api: httpx.AsyncClient, redis_server: str) -> None:
    answer = await api.post("/observe", json=DOCUMENT)

    said = answer.json()
    [entry] = logged(redis_server)
    assert answer.status_code == 202
    assert said == {
        "batch_id": entry.batch_id,
        "n": 2,
        "position": entry.position,
        "backlog": 1,
        "state": "queued",
        "status_url": f"/observations/{entry.batch_id}",
        "idempotent": False,
        "durability": "always",
        "sample_ids": [None, f"{entry.batch_id}:1"],
    }
    assert str(entry.schema) == "image:8x8x1"
    np.testing.assert_array_equal(entry.schema.canonical(entry.x), PIXELS[..., None])


async def test_a_safetensors_body_is_logged_as_it_came(
    api: httpx.AsyncClient, redis_server: str
) -> None:
    body = encode(PIXELS, ["a", ""])

    answer = await api.post("/observe", content=body, headers={"Content-Type": SAFETENSORS})

    assert answer.status_code == 202
    assert [entry.payload for entry in logged(redis_server)] == [body]


async def test_the_status_url_tells_that_the_batch_is_queued(api: httpx.AsyncClient) -> None:
    accepted = (await api.post("/observe", json=DOCUMENT)).json()

    said = (await api.get(accepted["status_url"])).json()

    assert (said["batch_id"], said["state"], said["n"]) == (accepted["batch_id"], "queued", 2)


async def test_an_unknown_batch_is_404(api: httpx.AsyncClient) -> None:
    assert_problem(await api.get(f"/observations/{'0' * 32}"), 404, "unknown_batch")


@pytest.mark.parametrize("batch_id", ["x", "0" * 33, "A" * 32, "%00", "%ff%fe", "%0d%0a"])
async def test_a_malformed_batch_id_is_refused(api: httpx.AsyncClient, batch_id: str) -> None:
    answer = await api.get(f"/observations/{batch_id}")

    assert_problem(answer, 422, "bad_batch_id")


async def test_a_retry_with_its_key_is_recognised(
    api: httpx.AsyncClient, redis_server: str
) -> None:
    first = await api.post("/observe", json=DOCUMENT, headers=KEY)
    again = await api.post("/observe", json=DOCUMENT, headers=KEY)

    assert again.status_code == 202
    assert again.json()["batch_id"] == first.json()["batch_id"]
    assert again.json()["idempotent"] is True
    assert "Idempotent-Replayed" not in first.headers
    assert again.headers["Idempotent-Replayed"] == "true"
    assert len(logged(redis_server)) == 1


async def test_without_a_key_a_retry_is_a_second_batch(
    api: httpx.AsyncClient, redis_server: str
) -> None:
    await api.post("/observe", json=DOCUMENT)
    await api.post("/observe", json=DOCUMENT)

    assert len(logged(redis_server)) == 2


async def test_a_key_with_another_body_is_refused(api: httpx.AsyncClient) -> None:
    await api.post("/observe", json=DOCUMENT, headers=KEY)

    answer = await api.post("/observe", json={"x": PIXELS.tolist()}, headers=KEY)

    assert_problem(answer, 422, "idempotency_key_reused")


@pytest.mark.parametrize("key", ["short", "a" * 65, "0123456789abcdef!", "0123456789abcde\tf"])
async def test_a_malformed_key_is_refused(
    api: httpx.AsyncClient, redis_server: str, key: str
) -> None:
    answer = await api.post("/observe", json=DOCUMENT, headers={"Idempotency-Key": key})

    assert_problem(answer, 400, "bad_idempotency_key")
    assert stored(redis_server) == []


@pytest.mark.parametrize(
    "x",
    [
        pytest.param(PIXELS, id="without channel"),
        pytest.param(PIXELS[..., None], id="with channel"),
        pytest.param(PIXELS[..., None].astype(np.float32) / 255, id="floats"),
    ],
)
async def test_one_stream_takes_every_spelling_of_its_images(
    api: httpx.AsyncClient, x: np.ndarray[Any, Any]
) -> None:
    await api.post("/observe", json=DOCUMENT)

    answer = await api.post("/observe", json={"x": x.tolist()})

    assert answer.status_code == 202


@pytest.mark.parametrize(
    ("code", "document"),
    [
        pytest.param("schema_mismatch", {"x": np.zeros((1, 9, 9), int).tolist()}, id="shape"),
        pytest.param("schema_mismatch", {"x": [[0.5, 1.5]]}, id="kind"),
        pytest.param("label_kind_mismatch", {"x": PIXELS.tolist(), "y": ["a", "b"]}, id="labels"),
    ],
)
async def test_what_the_first_batch_settled_holds_for_all(
    api: httpx.AsyncClient, redis_server: str, code: str, document: dict[str, Any]
) -> None:
    await api.post("/observe", json=DOCUMENT)

    answer = await api.post("/observe", json=document)

    assert_problem(answer, 422, code)
    assert len(logged(redis_server)) == 1


@pytest.mark.parametrize(
    ("media_type", "status", "code", "body"),
    [
        *(pytest.param(JSON, *row[1:], id=f"JSON: {row[0]}") for row in BAD_JSON),
        *(pytest.param(SAFETENSORS, *row[1:], id=f"tensors: {row[0]}") for row in BAD_TENSORS),
    ],
)
async def test_a_bad_body_is_refused_and_leaves_no_trace(
    api: httpx.AsyncClient, redis_server: str, media_type: str, status: int, code: str, body: bytes
) -> None:
    answer = await api.post("/observe", content=body, headers={"Content-Type": media_type})

    assert_problem(answer, status, code)
    assert stored(redis_server) == []


async def test_many_clients_are_served_at_once(
    serving: httpx.AsyncClient, redis_server: str
) -> None:
    requests: list[Callable[[], Any]] = [
        lambda: serving.post("/predict", json={"x": PIXELS[:1].tolist()}),
        lambda: serving.post("/observe", json=DOCUMENT),
    ]

    answers = await asyncio.gather(*(requests[i % 2]() for i in range(60)))

    assert {answer.status_code for answer in answers[0::2]} == {200}
    assert {answer.status_code for answer in answers[1::2]} <= {202, 409}
    accepted = sum(answer.status_code == 202 for answer in answers)
    assert len(logged(redis_server)) == accepted
