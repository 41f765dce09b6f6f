"""The API over HTTP: what it answers, what it refuses, and that a refusal leaves no trace."""

import asyncio
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from service.api.app import check_exposure, create_app
from service.api.codec import JSON, SAFETENSORS
from service.engine.protocol import Engines
from service.errors import SettingsError
from service.settings import Settings
from service.store import names
from service.store.entry import Entry, encode
from service.store.link import connect
from service.store.server import EmbeddedServer, bundled_binary
from tests.bad_bodies import BAD_JSON, BAD_TENSORS
from tests.conftest import MakeSettings
from tests.served import UNANSWERED, load_pixel_engines, publish, running_api

PIXELS = np.arange(128, dtype=np.uint8).reshape(2, 8, 8)
DOCUMENT = {"x": PIXELS.tolist(), "y": [1, None]}
KEY = {"Idempotency-Key": "0123456789abcdef"}
MAX_BODY = 150_000


@pytest.fixture
def api_settings(settings: MakeSettings) -> Settings:
    return settings(insecure=True, max_batch=16, max_body_bytes=MAX_BODY)


@pytest.fixture
async def api(api_settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    async with running_api(api_settings) as client:
        yield client


@pytest.fixture
async def serving(api_settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    """An API that serves a model."""
    publish(api_settings.state_dir, classes=[5, 6, 7])
    async with running_api(api_settings) as client:
        await until_served(client)
        yield client


async def until_served(client: httpx.AsyncClient) -> None:
    while (await client.get("/experts")).json()["model_version"] == 0:  # noqa: ASYNC110  HTTP has no event
        await asyncio.sleep(0.01)


def stored(url: str) -> list[str]:
    """Return everything that Redis holds, by name."""
    redis = connect(url)
    try:
        found: Any = redis.keys()
        return sorted(name.decode() for name in found)
    finally:
        redis.close()


def logged(url: str) -> list[Entry]:
    """Return the entries of the log."""
    redis = connect(url)
    try:
        found: Any = redis.xrange(names.LOG)
        return [
            Entry.from_fields(number, position.decode(), fields)
            for number, (position, fields) in enumerate(found, 1)
        ]
    finally:
        redis.close()


def assert_problem(answer: httpx.Response, status: int, code: str) -> None:
    said = answer.json()
    assert (answer.status_code, said["status"], said["code"]) == (status, status, code)
    assert answer.headers["content-type"] == "application/problem+json"
    assert set(said) == {"type", "title", "status", "code", "detail"}
    assert ("Retry-After" in answer.headers) == (status == 503)


# Observe


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


@pytest.mark.parametrize("batch_id", ["0" * 32, "x", "0" * 33, "..%2f..%2fetc", "%00", "%ff%fe"])
async def test_an_unknown_batch_is_404(api: httpx.AsyncClient, batch_id: str) -> None:
    answer = await api.get(f"/observations/{batch_id}")

    assert answer.json()["code"] in ("unknown_batch", "not_found")  # %2f makes another route
    assert_problem(answer, 404, answer.json()["code"])


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


# Refusals


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


@pytest.mark.parametrize("path", ["/observe", "/predict"])
@pytest.mark.parametrize(
    ("code", "headers"),
    [
        pytest.param("unsupported_type", {}, id="no type"),
        pytest.param("unsupported_type", {"Content-Type": "text/plain"}, id="text"),
        pytest.param("unsupported_type", {"Content-Type": "application/x-npz"}, id="npz"),
        pytest.param("unsupported_type", {"Content-Type": "multipart/form-data"}, id="form"),
        pytest.param(
            "unsupported_type", {"Content-Type": "application/json; charset=utf-16"}, id="utf-16"
        ),
        pytest.param(
            "unsupported_encoding", {"Content-Type": JSON, "Content-Encoding": "gzip"}, id="gzip"
        ),
    ],
)
async def test_other_media_are_refused(
    api: httpx.AsyncClient, path: str, code: str, headers: dict[str, str]
) -> None:
    assert_problem(await api.post(path, content=b"{}", headers=headers), 415, code)


@pytest.mark.parametrize("content_type", ["application/json; charset=UTF-8", "Application/JSON"])
async def test_json_may_say_that_it_is_utf_8(api: httpx.AsyncClient, content_type: str) -> None:
    answer = await api.post(
        "/observe", content=b'{"x": [[0.5]]}', headers={"Content-Type": content_type}
    )

    assert answer.status_code == 202


async def _chunks(size: int) -> AsyncIterator[bytes]:
    for _ in range(0, size, 1000):
        yield b" " * 1000


@pytest.mark.parametrize("path", ["/observe", "/predict"])
@pytest.mark.parametrize("chunked", [False, True], ids=["declared", "chunked"])
async def test_a_body_over_the_limit_is_refused(
    api: httpx.AsyncClient, path: str, *, chunked: bool
) -> None:
    size = MAX_BODY + 1000
    content = _chunks(size) if chunked else b" " * size

    answer = await api.post(path, content=content, headers={"Content-Type": JSON})

    assert_problem(answer, 413, "body_too_large")


async def test_a_body_at_the_limit_is_read(api: httpx.AsyncClient) -> None:
    body = b'{"x": [[0.5]]}'.ljust(MAX_BODY)

    answer = await api.post("/observe", content=body, headers={"Content-Type": JSON})

    assert answer.status_code == 202


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("POST", "/observe/", 404, "not_found"),
        ("GET", "/observe", 405, "method_not_allowed"),
        ("DELETE", "/experts", 405, "method_not_allowed"),
    ],
)
async def test_the_router_refuses_in_the_same_form(
    api: httpx.AsyncClient, method: str, path: str, status: int, code: str
) -> None:
    assert_problem(await api.request(method, path), status, code)


# Predict


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
    await asyncio.sleep(0.6)

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


# Starting, stopping, faults


async def test_observations_are_accepted_while_the_engines_load(api_settings: Settings) -> None:
    loaded = asyncio.Event()
    loop = asyncio.get_running_loop()

    def load() -> Engines:
        asyncio.run_coroutine_threadsafe(loaded.wait(), loop).result()
        return load_pixel_engines()

    async with running_api(api_settings, load) as client:
        answer = await client.post("/observe", json=DOCUMENT)
        loaded.set()

    assert answer.status_code == 202


def test_importing_the_api_does_not_import_torch() -> None:
    code = "import sys, service.api.app; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.fixture
def mortal_redis(tmp_path: Path) -> Iterator[EmbeddedServer]:
    """A Redis of this test alone, which it may stop."""
    server = EmbeddedServer(Settings(state_dir=tmp_path / "own"), bundled_binary())
    server.start()
    yield server
    server.stop()


@pytest.fixture
def silent_redis() -> Iterator[str]:
    """An address that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"redis://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture(params=["stopped", "silent"])
def absent_redis(
    request: pytest.FixtureRequest, mortal_redis: EmbeddedServer, silent_redis: str
) -> str:
    if request.param == "silent":
        return silent_redis
    mortal_redis.stop()
    return mortal_redis.url


async def test_without_redis_predict_answers_and_observe_is_503_within_three_seconds(
    settings: MakeSettings, state_dir: Path, absent_redis: str
) -> None:
    publish(state_dir, classes=[5, 6, 7])

    async with running_api(settings(insecure=True, redis_url=absent_redis)) as client:
        await until_served(client)
        predicted = await client.post("/predict", json={"x": PIXELS.tolist()})
        started = time.monotonic()
        observed = await client.post("/observe", json=DOCUMENT)
        elapsed_s = time.monotonic() - started
        ready = await client.get("/readyz")
        live = await client.get("/livez")
        metrics = await client.get("/metrics")

    assert predicted.status_code == 200
    assert_problem(observed, 503, "redis_unavailable")
    assert elapsed_s < 3
    assert (ready.status_code, ready.json()["status"]) == (503, "not_ready")
    assert ready.headers["Retry-After"] == "1"
    assert live.status_code == 200
    assert "levit_redis_ready 0.0" in metrics.text


async def test_observe_recovers_when_redis_is_back(
    settings: MakeSettings, mortal_redis: EmbeddedServer
) -> None:
    async with running_api(settings(insecure=True, redis_url=mortal_redis.url)) as client:
        await client.post("/observe", json=DOCUMENT)
        mortal_redis.stop()
        refused = await client.post("/observe", json=DOCUMENT)
        mortal_redis.start()
        accepted = await client.post("/observe", json=DOCUMENT)

    assert refused.status_code == 503
    assert accepted.status_code == 202


async def test_with_redis_the_service_is_ready(api: httpx.AsyncClient) -> None:
    answer = await api.get("/readyz")

    assert (answer.status_code, answer.json()) == (200, {"status": "ready", "problems": []})


async def test_a_weaker_redis_makes_the_service_not_ready(
    api: httpx.AsyncClient, redis_server: str
) -> None:
    redis = connect(redis_server)
    redis.config_set("appendfsync", "everysec")
    try:
        answer = await api.get("/readyz")
    finally:
        redis.config_set("appendfsync", "always")
        redis.close()

    assert answer.status_code == 503
    assert answer.json()["problems"] == ["appendfsync is everysec, expected always"]


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="without --insecure"),
        pytest.param({"insecure": True, "host": "0.0.0.0"}, id="all addresses"),  # noqa: S104
        pytest.param({"insecure": True, "host": "::"}, id="all addresses of IPv6"),
        pytest.param({"insecure": True, "host": "example.org"}, id="a name"),
    ],
)
def test_a_service_open_to_strangers_does_not_start(options: dict[str, Any]) -> None:
    with pytest.raises(SettingsError):
        create_app(Settings(**options), load_pixel_engines)


@pytest.mark.parametrize(
    "options",
    [
        {"host": "127.0.0.1"},
        {"host": "::1"},
        {"host": "localhost"},
        {"host": "0.0.0.0", "published_on_loopback": True},  # noqa: S104
    ],
)
def test_a_service_on_loopback_may_be_insecure(options: dict[str, Any]) -> None:
    check_exposure(Settings(insecure=True, **options))


# Watching


async def test_metrics_count_what_was_accepted_replayed_and_refused(
    serving: httpx.AsyncClient,
) -> None:
    await serving.post("/observe", json=DOCUMENT, headers=KEY)
    await serving.post("/observe", json=DOCUMENT, headers=KEY)
    await serving.post("/observe", json={})
    await serving.post("/predict", json={"x": PIXELS.tolist()})
    await serving.post("/predict", json={})

    text = (await serving.get("/metrics")).text

    for line in (
        'levit_observations_total{outcome="accepted"} 1.0',
        'levit_observations_total{outcome="replayed"} 1.0',
        'levit_observations_total{outcome="refused"} 1.0',
        'levit_samples_observed_total{labelled="yes"} 1.0',
        'levit_samples_observed_total{labelled="no"} 1.0',
        'levit_predictions_total{outcome="answered"} 1.0',
        'levit_predictions_total{outcome="refused"} 1.0',
        "levit_predict_batch_size_count 1.0",
        "levit_observe_duration_seconds_count 3.0",
        "levit_stream_backlog 1.0",
        "levit_redis_ready 1.0",
        "levit_snapshot_version 1.0",
    ):
        assert line in text


async def test_the_documents_name_both_media_types_and_every_refusal(
    api: httpx.AsyncClient,
) -> None:
    paths = (await api.get("/openapi.json")).json()["paths"]

    for path, statuses in {
        "/observe": {"202", "400", "409", "413", "415", "422", "503"},
        "/predict": {"200", "400", "413", "415", "422", "503"},
    }.items():
        post = paths[path]["post"]
        assert set(post["requestBody"]["content"]) == {JSON, SAFETENSORS}
        assert set(post["responses"]) == statuses
        assert "application/problem+json" in post["responses"]["422"]["content"]


async def test_the_front_page_and_the_documents_are_there(api: httpx.AsyncClient) -> None:
    assert (await api.get("/")).json()["docs"] == "/docs"
    assert (await api.get("/docs")).status_code == 200


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
