"""The API process: refusals of one form, faults of Redis, who may reach it, who watches it."""

import asyncio
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.api.app import check_exposure, create_app
from service.api.codec import JSON, SAFETENSORS
from service.engine.protocol import Engines
from service.errors import SettingsError
from service.settings import Settings
from service.store.link import connect
from service.store.server import EmbeddedServer, bundled_binary
from tests.conftest import MakeSettings
from tests.served import (
    DOCUMENT,
    PIXELS,
    assert_problem,
    load_pixel_engines,
    publish,
    running_api,
    until_served,
)

KEY = {"Idempotency-Key": "0123456789abcdef"}


# Refusals


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
    api: httpx.AsyncClient, api_settings: Settings, path: str, *, chunked: bool
) -> None:
    size = api_settings.max_body_bytes + 1000
    content = _chunks(size) if chunked else b" " * size

    answer = await api.post(path, content=content, headers={"Content-Type": JSON})

    assert_problem(answer, 413, "body_too_large")


async def test_a_body_at_the_limit_is_read(api: httpx.AsyncClient, api_settings: Settings) -> None:
    body = b'{"x": [[0.5]]}'.ljust(api_settings.max_body_bytes)

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
        assert list(post["responses"]["422"]["content"]) == ["application/problem+json"]


async def test_the_front_page_and_the_documents_are_there(api: httpx.AsyncClient) -> None:
    assert (await api.get("/")).json()["docs"] == "/docs"
    assert (await api.get("/docs")).status_code == 200
