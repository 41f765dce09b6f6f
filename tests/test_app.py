"""The API process: refusals of one form, starting, who may reach it, who watches it."""

import asyncio
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from service.api.app import create_app
from service.api.body import JSON, LINES, SAFETENSORS
from service.engine.protocol import Engines
from service.errors import SettingsError
from service.exposure import check_exposure
from service.settings import Settings
from service.store.link import connect
from tests.served import (
    DOCUMENT,
    PIXELS,
    PixelPredictor,
    assert_problem,
    load_pixel_engines,
    publish,
    running_api,
    until_served,
)

CANARY = "canary-5d1f"
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


async def test_a_client_that_hangs_up_within_its_body_is_no_fault_of_ours(
    api_settings: Settings,
) -> None:
    app = create_app(api_settings, load_pixel_engines)
    arriving: Iterator[dict[str, Any]] = iter(
        [
            {"type": "http.request", "body": b'{"x": ', "more_body": True},
            {"type": "http.disconnect"},
        ]
    )
    answered: list[Any] = []

    async def receive() -> dict[str, Any]:
        return next(arriving)

    async def send(message: Any) -> None:  # noqa: ANN401  ASGI's own type
        answered.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/observe",
        "query_string": b"",
        "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")],
    }
    async with app.router.lifespan_context(app):
        await app(scope, receive, send)

    assert answered[0]["status"] == 400
    assert b"incomplete_body" in answered[1]["body"]


async def test_a_failure_of_ours_says_nothing_of_itself(api_settings: Settings) -> None:
    app = create_app(api_settings, load_pixel_engines)

    async def broken(_: Request) -> Response:
        raise KeyError(CANARY)

    app.router.routes.insert(0, Route("/livez", broken))
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        answer = await client.get("/livez")

    assert_problem(answer, 500, "internal")
    assert CANARY not in answer.text


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


async def test_with_redis_the_service_is_ready(api: httpx.AsyncClient) -> None:
    answer = await api.get("/readyz")

    assert (answer.status_code, answer.json()) == (200, {"status": "ready", "problems": []})


async def test_a_model_whose_process_ended_makes_the_service_not_ready(
    api: httpx.AsyncClient, api_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(api_settings.state_dir, classes=[1, 2])
    await until_served(api)
    assert (await api.get("/readyz")).status_code == 200

    monkeypatch.setattr(PixelPredictor, "lost", True)

    answer = await api.get("/readyz")
    assert answer.status_code == 503
    assert answer.json()["problems"] == ["the model's process has ended and is started again"]


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
        'levit_observations_total{outcome="accepted",stream="default"} 1.0',
        'levit_observations_total{outcome="replayed",stream="default"} 1.0',
        'levit_observations_total{outcome="refused",stream="default"} 1.0',
        'levit_samples_observed_total{labelled="yes",stream="default"} 1.0',
        'levit_samples_observed_total{labelled="no",stream="default"} 1.0',
        'levit_predictions_total{outcome="answered",stream="default"} 1.0',
        'levit_predictions_total{outcome="refused",stream="default"} 1.0',
        'levit_predict_batch_size_count{stream="default"} 1.0',
        'levit_observe_duration_seconds_count{stream="default"} 3.0',
        'levit_stream_backlog{stream="default"} 1.0',
        "levit_redis_ready 1.0",
        'levit_snapshot_version{stream="default"} 1.0',
    ):
        assert line in text


async def test_the_documents_name_every_media_type_and_every_refusal(
    api: httpx.AsyncClient,
) -> None:
    paths = (await api.get("/openapi.json")).json()["paths"]

    images = {"image/png", "image/jpeg"}
    for path, kinds, statuses in (
        ("/observe", {LINES}, {"200", "202", "400", "409", "413", "415", "422", "503"}),
        ("/predict", set(), {"200", "400", "409", "413", "415", "422", "503"}),
    ):
        post = paths[path]["post"]
        assert set(post["requestBody"]["content"]) == {JSON, SAFETENSORS} | images | kinds
        assert set(post["responses"]) == statuses | {"401", "403", "408", "429"}
        assert list(post["responses"]["422"]["content"]) == ["application/problem+json"]


async def test_the_front_page_and_the_documents_are_there(api: httpx.AsyncClient) -> None:
    assert (await api.get("/")).json()["docs"] == "/docs"
    assert (await api.get("/docs")).status_code == 200


async def test_the_page_of_the_documents_lists_every_route_and_loads_nothing(
    api: httpx.AsyncClient,
) -> None:
    document = (await api.get("/openapi.json")).json()
    shown = await api.get("/docs")

    plain = [path for path in document["paths"] if not path.startswith("/streams/{")]
    assert [path for path in plain if f" {path}</code>" not in shown.text] == []
    assert "default-src 'none'" in shown.headers["Content-Security-Policy"]
    assert loaded(shown.text) == []


def loaded(page: str) -> list[str]:
    """Return what a page would run, or load from elsewhere."""
    return re.findall(r"<(?:script|link|img|iframe|object|embed)\b|@import|url\(|//[\w.-]+", page)


def test_what_a_page_loads_would_be_noticed() -> None:
    page = get_swagger_ui_html(openapi_url="/openapi.json", title="x").body

    assert "//cdn.jsdelivr.net" in loaded(bytes(page).decode())
