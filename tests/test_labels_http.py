"""POST /labels and /predict?keep=true: what is in the log, what is refused, what becomes of it."""

import asyncio
from typing import Any

import httpx
import numpy as np
import pytest
from structlog.testing import capture_logs

from service.api import keyring
from service.api.body import JSON, LINES
from service.client import Client
from service.settings import Settings
from service.store.entry import Entry
from service.store.keys import create_key
from tests.bad_bodies import BAD_LABELS
from tests.served import (
    DOCUMENT,
    PIXELS,
    UNANSWERED,
    assert_problem,
    logged,
    publish,
    running_api,
    until_served,
)

KEY = {"Idempotency-Key": "0123456789abcdef"}
UNLABELLED: dict[str, Any] = {"x": PIXELS.tolist()}
NOBODY = f"{'0' * 32}:0"


# Ids of samples


@pytest.mark.parametrize(
    ("y", "waiting"),
    [
        pytest.param(None, [0, 1], id="no labels"),
        pytest.param([None, 7], [0], id="one label"),
        pytest.param(["a", None], [1], id="one string"),
        pytest.param([3, 4], [], id="all labels"),
    ],
)
async def test_samples_without_a_label_are_told_their_ids(
    api: httpx.AsyncClient, y: list[Any] | None, waiting: list[int]
) -> None:
    said = (await api.post("/observe", json={"x": PIXELS.tolist(), "y": y})).json()

    ids = [f"{said['batch_id']}:{i}" if i in waiting else None for i in range(2)]
    assert said["sample_ids"] == (ids if waiting else [])


async def test_the_lines_of_a_stream_are_told_theirs(api: httpx.AsyncClient) -> None:
    line = b'{"x": [[0.5, 1.0]]}\n'

    answer = await api.post("/observe", content=line * 2, headers={"Content-Type": LINES})

    said = [httpx.Response(200, content=one).json() for one in answer.text.splitlines()]
    assert [one["sample_ids"] for one in said] == [[f"{one['batch_id']}:0"] for one in said]


# What goes into the log


async def test_late_labels_are_an_entry_in_the_order_they_were_told(
    api: httpx.AsyncClient, redis_server: str
) -> None:
    said = (await api.post("/observe", json=UNLABELLED)).json()
    given = {said["sample_ids"][1]: 7, said["sample_ids"][0]: 5, NOBODY: 7}

    answer = await api.post("/labels", json={"labels": given})

    told = answer.json()
    _, entry = logged(redis_server)
    assert answer.status_code == 202
    assert list(entry.given.items()) == list(given.items())
    assert (entry.kind, entry.n, entry.batch_id) == ("labels", 3, told["batch_id"])
    assert told == {
        "batch_id": entry.batch_id,
        "n": 3,
        "position": entry.position,
        "backlog": 2,
        "state": "queued",
        "status_url": f"/observations/{entry.batch_id}",
        "idempotent": False,
        "durability": "always",
    }


async def test_a_retry_of_late_labels_is_one_entry(
    api: httpx.AsyncClient, redis_server: str
) -> None:
    await api.post("/observe", json=UNLABELLED)

    first, second = [
        await api.post("/labels", json={"labels": {NOBODY: 7}}, headers=KEY) for _ in range(2)
    ]
    other = await api.post("/labels", json={"labels": {NOBODY: 8}}, headers=KEY)

    assert "Idempotent-Replayed" not in first.headers
    assert second.headers["Idempotent-Replayed"] == "true"
    assert first.json()["batch_id"] == second.json()["batch_id"]
    assert_problem(other, 422, "idempotency_key_reused")
    assert len(logged(redis_server)) == 2
    counted = (await api.get("/metrics")).text
    for outcome in ("accepted", "replayed", "refused"):
        told = f'levit_label_requests_total{{outcome="{outcome}",stream="default"}} 1.0'
        assert told in counted


@pytest.mark.parametrize(
    ("status", "code", "body"), [pytest.param(*row, id=what) for what, *row in BAD_LABELS]
)
async def test_what_is_no_labels_is_refused_and_leaves_no_trace(
    api: httpx.AsyncClient, redis_server: str, status: int, code: str, body: bytes
) -> None:
    await api.post("/observe", json=DOCUMENT)

    answer = await api.post("/labels", content=body, headers={"Content-Type": JSON})

    assert_problem(answer, status, code)
    assert len(logged(redis_server)) == 1


async def test_more_labels_than_a_batch_may_have_are_refused(
    api: httpx.AsyncClient, api_settings: Settings
) -> None:
    await api.post("/observe", json=DOCUMENT)
    most = api_settings.max_batch

    fits, beyond = [
        await api.post("/labels", json={"labels": {f"{'a' * 32}:{i}": 1 for i in range(n)}})
        for n in (most, most + 1)
    ]

    assert fits.status_code == 202
    assert_problem(beyond, 413, "batch_too_large")


async def test_labels_before_any_sample_are_refused(api: httpx.AsyncClient) -> None:
    answer = await api.post("/labels", json={"labels": {NOBODY: 7}})

    assert_problem(answer, 422, "nothing_to_label")


async def test_labels_of_another_type_are_refused(api: httpx.AsyncClient) -> None:
    answer = await api.post("/labels", content=b"{}", headers={"Content-Type": LINES})

    assert_problem(answer, 415, "unsupported_type")


# Predicted and kept


async def test_a_kept_answer_is_the_plain_one_and_lies_in_the_log(
    serving: httpx.AsyncClient, redis_server: str
) -> None:
    x = PIXELS.copy()
    x[1, 0, 0] = UNANSWERED
    plain = (await serving.post("/predict", json={"x": x.tolist()})).json()
    assert logged(redis_server) == []

    answer = await serving.post("/predict", params={"keep": "true"}, json={"x": x.tolist()})

    said = answer.json()
    [entry] = logged(redis_server)
    receipt = said.pop("kept")
    assert answer.status_code == 200
    assert said.pop("sample_ids") == [f"{entry.batch_id}:0", f"{entry.batch_id}:1"]
    assert said == plain
    assert (receipt["batch_id"], receipt["position"]) == (entry.batch_id, entry.position)
    assert (entry.kind, entry.n, entry.model_version) == ("predicted", 2, plain["model_version"])
    np.testing.assert_array_equal(entry.x, x[..., np.newaxis])
    assert answers_of(entry) == [plain["labels"][0], -1]
    assert entry.labels is None


async def test_answers_of_strings_are_kept_as_strings(
    api_settings: Settings, redis_server: str
) -> None:
    publish(api_settings.state_dir, classes=["a", "b"])
    x = PIXELS.copy()
    x[1, 0, 0] = UNANSWERED
    async with running_api(api_settings) as client:
        await until_served(client)

        await client.post("/predict?keep=true", json={"x": x.tolist()})

    [entry] = logged(redis_server)
    assert answers_of(entry) == ["a", ""]


async def test_a_retry_of_what_is_kept_is_one_entry(
    serving: httpx.AsyncClient, api_settings: Settings, redis_server: str
) -> None:
    first = await serving.post("/predict?keep=true", json=UNLABELLED, headers=KEY)
    publish(api_settings.state_dir, classes=["other"])
    await until_served(serving, version=2)

    second = await serving.post("/predict?keep=true", json=UNLABELLED, headers=KEY)

    [entry] = logged(redis_server)
    assert second.headers["Idempotent-Replayed"] == "true"
    assert first.json()["sample_ids"] == second.json()["sample_ids"]
    assert second.json()["labels"] != first.json()["labels"]
    assert answers_of(entry) == first.json()["labels"]


def answers_of(entry: Entry) -> list[Any]:
    assert entry.answers is not None
    return entry.answers.tolist() if isinstance(entry.answers, np.ndarray) else [*entry.answers]


@pytest.mark.parametrize(
    ("scopes", "status"),
    [(["predict"], 403), (["observe"], 403), (["predict", "observe"], 200)],
    ids=str,
)
async def test_what_is_kept_needs_both_scopes(
    api_settings: Settings,
    redis_server: str,
    monkeypatch: pytest.MonkeyPatch,
    scopes: list[str],
    status: int,
) -> None:
    monkeypatch.setattr(keyring, "LOOK_S", 0.0)
    publish(api_settings.state_dir, classes=[5, 6, 7])
    async with running_api(api_settings) as client:
        await until_served(client)
        token = create_key(api_settings.state_dir, name="one", scopes=scopes)[1]
        headers = {"Authorization": f"Bearer {token}"}

        with capture_logs() as lines:
            answer = await client.post("/predict?keep=true", json=UNLABELLED, headers=headers)
        metrics = create_key(api_settings.state_dir, name="two", scopes=["metrics"])[1]
        shown = await client.get("/metrics", headers={"Authorization": f"Bearer {metrics}"})

    audited = [line for line in lines if line["event"] == "audit"]
    assert [(line["route"], line["status"]) for line in audited] == [("/predict", status)]
    refused = 'levit_requests_refused_total{reason="foreign_scope"} 1.0'
    assert (refused in shown.text) == (status == 403)
    assert answer.status_code == status
    assert len(logged(redis_server)) == (status == 200)
    if status == 403:
        assert answer.json()["code"] == "foreign_scope"


async def test_a_model_that_has_not_learned_the_position_keeps_nothing(
    serving: httpx.AsyncClient, redis_server: str
) -> None:
    asked = {"keep": "true", "wait_for": "8-0", "wait_s": "0"}

    answer = await serving.post("/predict", params=asked, json=UNLABELLED)

    assert_problem(answer, 503, "not_learned_yet")
    assert logged(redis_server) == []


# With a worker


async def settled(client: httpx.AsyncClient, said: dict[str, Any]) -> dict[str, Any]:
    """Return what became of a batch, once the worker has come to it."""
    while True:
        found: dict[str, Any] = (await client.get(said["status_url"])).json()
        if found["state"] != "queued":
            return found
        await asyncio.sleep(0.02)


async def test_each_label_is_told_what_became_of_it(learning: Settings) -> None:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{learning.port}") as client:
        said = (await client.post("/observe", json=DOCUMENT)).json()  # the second waits
        first, second = f"{said['batch_id']}:0", said["sample_ids"][1]
        told = [
            (await client.post("/labels", json={"labels": given})).json()
            for given in ({first: 3, second: 3, NOBODY: 3}, {second: 4})
        ]

        both = [await settled(client, one) for one in told]
        batch = await settled(client, said)

    assert both[0]["results"] == ["doubled", "joined", "unknown"]
    assert both[0]["labels"] == {"joined": 1, "late": 0, "unknown": 1, "doubled": 1}
    assert both[1]["results"] == ["doubled"]
    assert (batch["labels"], batch["results"]) == (None, None)


async def test_a_label_of_another_stream_is_unknown(learning: Settings) -> None:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{learning.port}") as client:
        await client.post("/streams", json={"name": "other", "input": "image:8x8x1"})
        said = (await client.post("/observe", json=UNLABELLED)).json()
        given = {"labels": {said["sample_ids"][0]: 3}}
        await client.post("/streams/other/observe", json=UNLABELLED)

        told = (await client.post("/streams/other/labels", json=given)).json()
        there = await settled(client, told)
        here = await settled(client, (await client.post("/labels", json=given)).json())

    assert told["status_url"].startswith("/streams/other/observations/")
    assert (there["results"], here["results"]) == (["unknown"], ["joined"])


def test_the_answer_that_was_given_is_what_counts(learning: Settings) -> None:
    """Both samples of a class are labelled after the model has learned better."""
    dark, light = np.zeros((1, 8, 8), np.uint8), np.full((1, 8, 8), 200, np.uint8)
    with Client(f"http://127.0.0.1:{learning.port}") as client:
        client.wait_until_learned(client.observe(dark, ["dark"]))
        answers = client.predict(light, keep=True)  # dark is all it knows
        client.wait_until_learned(client.observe(light, ["light"]))
        assert client.predict(light).labels.tolist() == ["light"]

        told = client.wait_until_learned(client.label({answers.sample_ids[0]: "light"}))
        served = client.experts()
        shown = client.metrics()

    assert answers.labels.tolist() == ["dark"]
    assert (told.labels, told.results) == (
        {"joined": 1, "late": 0, "unknown": 0, "doubled": 0},
        ["joined"],
    )
    assert (served["samples_labelled"], served["samples_correct"]) == (3, 0)
    assert 'levit_labels_total{outcome="joined",stream="default"} 1.0' in shown
    assert 'levit_samples_waiting{stream="default"} 0.0' in shown
    assert 'levit_predictions_total{outcome="kept",stream="default"} 1.0' in shown
