"""A body is read within its limit, and as it was sent."""

import base64
import hashlib
import json
from collections.abc import AsyncIterator

import httpx
import pytest

from service.api.body import JSON, SAFETENSORS
from service.settings import Settings
from service.store.entry import encode
from tests.conftest import MakeSettings
from tests.served import DOCUMENT, PIXELS, assert_problem, logged, running_api, stored

BODY = json.dumps(DOCUMENT).encode()


def said(digest: bytes, algorithm: str = "sha-256") -> str:
    return f"{algorithm}=:{base64.b64encode(digest).decode()}:"


RIGHT = said(hashlib.sha256(BODY).digest())
OTHER = said(hashlib.sha256(BODY + b" ").digest())


@pytest.mark.parametrize(
    "digest",
    [
        pytest.param(RIGHT, id="right"),
        pytest.param(f"{said(b'no', 'sha-512')}, {RIGHT}", id="behind another"),
        pytest.param(f"{OTHER}, {RIGHT}", id="the last counts"),
        pytest.param(said(b"no", "md5"), id="of an algorithm nobody checks"),
    ],
)
async def test_a_body_of_its_digest_is_taken(api: httpx.AsyncClient, digest: str) -> None:
    headers = {"Content-Type": JSON, "Content-Digest": digest}

    assert (await api.post("/observe", content=BODY, headers=headers)).status_code == 202


@pytest.mark.parametrize(
    "digest",
    [
        pytest.param(OTHER, id="of another body"),
        pytest.param("sha-256=:AAAA:", id="too short"),
        pytest.param("sha-256=::", id="empty"),
        pytest.param("sha-256=", id="no value"),
        pytest.param("sha-256=:é:", id="no base64"),
    ],
)
async def test_a_body_of_another_digest_is_refused(
    api: httpx.AsyncClient, redis_server: str, digest: str
) -> None:
    headers = {"Content-Type": JSON, "Content-Digest": digest}

    answer = await api.post("/observe", content=BODY, headers=[*encoded(headers)])

    assert_problem(answer, 400, "digest_mismatch")
    assert stored(redis_server) == []


def encoded(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode()) for name, value in headers.items()]


@pytest.fixture
async def small(settings: MakeSettings) -> AsyncIterator[httpx.AsyncClient]:
    """An API that takes little JSON."""
    bounds: Settings = settings(insecure=True, max_json_bytes=2048, max_body_bytes=4096)
    async with running_api(bounds) as client:
        yield client


@pytest.mark.parametrize("route", ["/observe", "/predict"])
async def test_large_json_is_refused_and_told_what_to_send(
    small: httpx.AsyncClient, route: str
) -> None:
    answer = await small.post(route, json={"x": [[0.5] * 700]})

    assert_problem(answer, 413, "body_too_large")
    assert "at most 2048 bytes, got 2" in answer.json()["detail"]
    assert answer.json()["detail"].endswith(
        "application/x-safetensors, image/png and image/jpeg may be larger"
    )


async def test_safetensors_may_be_as_large_as_any_body(
    small: httpx.AsyncClient, redis_server: str
) -> None:
    body = encode(PIXELS.repeat(20, axis=0), None)

    answer = await small.post("/observe", content=body, headers={"Content-Type": SAFETENSORS})

    assert len(body) > 2048
    assert answer.status_code == 202
    assert [entry.payload for entry in logged(redis_server)] == [body]
