"""Keys at the door: who gets in, who is refused how, and what is written down of it."""

import asyncio
import io
import json
from collections.abc import AsyncIterator
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog
from starlette.types import Receive, Scope, Send
from structlog.testing import capture_logs

from service import logs
from service.api import keyring, streams
from service.api.access import SCOPE_OF
from service.api.auth import Authentication
from service.api.keyring import Keyring
from service.api.quota import Quota
from service.errors import TooMany
from service.scopes import SCOPES
from service.store.keys import FILE, Key, create_key, revoke_key
from tests.conftest import MakeSettings
from tests.served import (
    DOCUMENT,
    PIXELS,
    assert_problem,
    logged,
    publish,
    running_api,
    until_served,
)

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "BREW")
OPEN = {path for (_, path), needed in SCOPE_OF.items() if needed == "open"}
PATHS = [
    *sorted({path for _, path in SCOPE_OF}),
    "/nowhere",
    "/observe/",
    "/docs/oauth2-redirect",
]
QUESTION = {"x": PIXELS.tolist()}


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def key_of(state_dir: Path, *scopes: str, **chosen: object) -> dict[str, str]:
    """Return the header of a new key."""
    asked: dict[str, Any] = {"name": "of a test", "scopes": scopes} | chosen
    return bearer(create_key(state_dir, **asked)[1])


def path_of(template: str) -> str:
    """Return a path whose answer comes to an end."""
    filled = template.replace("/events", "/events?after=x")
    filled = filled.replace("{batch_id}", "0" * 32).replace("{seq}", "1").replace("{expert}", "3")
    return filled.replace("{stream}", "default").replace("{name}", "page.js")


@pytest.fixture
async def closed(settings: MakeSettings, state_dir: Path) -> AsyncIterator[httpx.AsyncClient]:
    """An API that serves a model to those who have a key; there is one that nobody knows."""
    create_key(state_dir, name="first", scopes=["read"])
    publish(state_dir, classes=[5, 6, 7])
    async with running_api(settings()) as client:
        client.headers.update(key_of(state_dir, "read"))
        await until_served(client)
        del client.headers["Authorization"]
        yield client


@pytest.fixture(autouse=True)
def _look_always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Notice a new key with the next request, not after half a second."""
    monkeypatch.setattr(keyring, "LOOK_S", 0.0)


@pytest.fixture(autouse=True)
def _no_seats(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse whoever GET /live lets in: its answer has no end."""
    monkeypatch.setattr(streams, "MOST_LISTENERS", 0)


# Who gets in


@pytest.mark.parametrize("path", PATHS)
async def test_without_a_key_everything_is_401_but_what_is_open(
    closed: httpx.AsyncClient, path: str
) -> None:
    answers = {method: await closed.request(method, path_of(path)) for method in METHODS}

    statuses = {method: answer.status_code for method, answer in answers.items()}
    assert {m for m, s in statuses.items() if s != 401} == (
        {"GET", "HEAD"} if path in OPEN else set()
    )
    assert all("WWW-Authenticate" in a.headers for a in answers.values() if a.status_code == 401)


@pytest.mark.parametrize(("method", "path"), sorted(SCOPE_OF))
async def test_a_key_with_all_scopes_but_one_is_403_exactly_there(
    closed: httpx.AsyncClient, state_dir: Path, method: str, path: str
) -> None:
    needed = SCOPE_OF[method, path]
    others = key_of(state_dir, *(SCOPES - {needed}))

    answer = await closed.request(method, path_of(path), headers=others)

    if needed == "open":
        assert answer.status_code == 200
    elif needed == "any":
        assert answer.status_code not in {401, 403}
    else:
        assert answer.status_code == 403
        assert "foreign_scope" in answer.text


@pytest.mark.parametrize(("method", "path"), sorted(SCOPE_OF))
async def test_a_key_with_the_one_scope_gets_in(
    closed: httpx.AsyncClient, state_dir: Path, method: str, path: str
) -> None:
    needed = SCOPE_OF[method, path]
    scope = "metrics" if needed == "any" else needed
    alone = {} if needed == "open" else key_of(state_dir, scope)

    answer = await closed.request(method, path_of(path), headers=alone)

    assert answer.status_code not in {401, 403}


async def test_without_the_middleware_the_matrix_fails(
    closed: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def open_door(self: Authentication, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)

    monkeypatch.setattr(Authentication, "__call__", open_door)

    assert (await closed.get("/experts")).status_code == 200


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer ",
        "Bearer levit_",
        "Bearer " + "x" * 7000,
        "Basic {token}",
        "{token}",
        "Bearer {token}x",
        "Bearer {token} {token}",
        "Bearer \xff\xfe",
    ],
)
async def test_what_is_no_key_is_401(
    closed: httpx.AsyncClient, state_dir: Path, header: str
) -> None:
    _, token = create_key(state_dir, name="of a test", scopes=["read"])
    value = header.format(token=token).encode("latin-1")

    assert_problem(
        await closed.get("/experts", headers={b"Authorization": value}), 401, "unauthorized"
    )


async def test_two_keys_in_one_request_are_none(closed: httpx.AsyncClient, state_dir: Path) -> None:
    key = key_of(state_dir, "read")["Authorization"]

    answer = await closed.get(
        "/experts", headers=[("Authorization", key), ("Authorization", "Bearer x")]
    )

    assert answer.status_code == 401


async def test_the_scheme_is_of_any_case(closed: httpx.AsyncClient, state_dir: Path) -> None:
    _, token = create_key(state_dir, name="of a test", scopes=["read"])

    answer = await closed.get("/experts", headers={"Authorization": f"bEARER  {token}"})

    assert answer.status_code == 200


async def test_a_key_in_the_query_is_none(closed: httpx.AsyncClient, state_dir: Path) -> None:
    _, token = create_key(state_dir, name="of a test", scopes=["read"])

    assert (await closed.get("/experts", params={"key": token})).status_code == 401


async def test_who_has_a_key_is_told_what_does_not_exist(
    closed: httpx.AsyncClient, state_dir: Path
) -> None:
    key = key_of(state_dir, "read")

    assert_problem(await closed.get("/nowhere", headers=key), 404, "not_found")
    refused = await closed.delete("/observe", headers=key)
    assert_problem(refused, 405, "method_not_allowed")
    assert refused.headers["Allow"] == "POST"


async def test_readiness_is_one_word_and_its_reasons_are_for_readers(
    closed: httpx.AsyncClient, state_dir: Path
) -> None:
    assert (await closed.get("/readyz")).json() == {"status": "ready"}
    found = (await closed.get("/readyz", headers=key_of(state_dir, "predict"))).json()
    assert found == {"status": "ready"}
    found = (await closed.get("/readyz", headers=key_of(state_dir, "read"))).json()
    assert found == {"status": "ready", "problems": []}


# Streams


async def test_a_key_of_other_streams_is_403(closed: httpx.AsyncClient, state_dir: Path) -> None:
    other = key_of(state_dir, "predict", streams=["har"])
    right = key_of(state_dir, "predict", streams=["har", "default"])

    assert_problem(
        await closed.post("/predict", json=QUESTION, headers=other), 403, "foreign_stream"
    )
    assert (await closed.post("/predict", json=QUESTION, headers=right)).status_code == 200


@pytest.mark.parametrize("stream", ["default", "absent", "har%0A", "HAR", "..%2fhar"])
async def test_a_foreign_stream_is_403_whether_it_exists_or_not(
    closed: httpx.AsyncClient, state_dir: Path, stream: str
) -> None:
    key = key_of(state_dir, "predict", streams=["har"])

    answer = await closed.post(f"/streams/{stream}/predict", json=QUESTION, headers=key)

    assert answer.status_code == 404 if "%2f" in stream else 403


async def test_a_key_of_one_stream_looks_at_the_service_but_does_not_administer_it(
    closed: httpx.AsyncClient, state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from service.api import access

    key = key_of(state_dir, "admin", "metrics", streams=["har"])
    monkeypatch.setitem(access._METHODS["/livez"], "POST", "admin")

    assert (await closed.get("/metrics", headers=key)).status_code == 200
    assert_problem(await closed.post("/livez", headers=key), 403, "foreign_stream")


# Changes of the file while the service runs


async def test_a_key_counts_and_is_revoked_without_a_restart(
    closed: httpx.AsyncClient, state_dir: Path
) -> None:
    key, token = create_key(state_dir, name="new", scopes=["read"])
    assert (await closed.get("/experts", headers=bearer(token))).status_code == 200

    revoke_key(state_dir, key.id)

    assert (await closed.get("/experts", headers=bearer(token))).status_code == 401


def test_a_revoked_key_counts_for_less_than_a_second(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    key, token = create_key(state_dir, name="new", scopes=["read"])
    now = 0.0
    ring = Keyring(state_dir, insecure=False, clock=lambda: now)
    revoke_key(state_dir, key.id)
    now = 0.99

    assert ring.find(token) is None


@pytest.mark.parametrize("content", [None, b"", b"{}"], ids=["gone", "empty", "other"])
async def test_a_damaged_file_lets_nobody_in_until_it_is_mended(
    closed: httpx.AsyncClient, state_dir: Path, content: bytes | None
) -> None:
    key = key_of(state_dir, *SCOPES)
    whole = (state_dir / FILE).read_bytes()
    (state_dir / FILE).unlink()
    if content is not None:
        (state_dir / FILE).write_bytes(content)

    with capture_logs() as lines:
        answers = [await closed.get("/experts", headers=key) for _ in range(3)]
        ready = await closed.get("/readyz", headers=key)
        alive = await closed.get("/livez", headers=key)

    for answer in answers:
        assert_problem(answer, 503, "keys_unreadable")
    assert (ready.status_code, ready.json()) == (503, {"status": "not_ready"})
    assert alive.status_code == 200
    assert [line["event"] for line in lines] == ["keys_unreadable"]
    assert FILE in lines[0]["problem"]

    (state_dir / FILE).write_bytes(whole)
    assert (await closed.get("/experts", headers=key)).status_code == 200


async def test_a_service_starts_with_a_damaged_file_and_lets_nobody_in(
    settings: MakeSettings, state_dir: Path
) -> None:
    (state_dir / FILE).write_bytes(b"?")

    async with running_api(settings(insecure=True)) as client:
        assert_problem(await client.get("/experts"), 503, "keys_unreadable")
        assert (await client.get("/readyz")).status_code == 503


async def test_an_insecure_service_is_open_until_the_first_key_and_never_again(
    settings: MakeSettings, state_dir: Path
) -> None:
    async with running_api(settings(insecure=True)) as client:
        assert (await client.get("/experts")).status_code == 200

        key = key_of(state_dir, "read")
        assert (await client.get("/experts")).status_code == 401
        assert (await client.get("/experts", headers=key)).status_code == 200

        (state_dir / FILE).unlink()
        assert (await client.get("/experts")).status_code == 503


# Quotas


async def test_beyond_its_rate_a_key_is_429_and_others_are_not(
    closed: httpx.AsyncClient, state_dir: Path
) -> None:
    slow, other = (key_of(state_dir, "read", rate=0.1, burst=3) for _ in range(2))

    statuses = [(await closed.get("/experts", headers=slow)).status_code for _ in range(5)]
    refused = await closed.get("/experts", headers=slow)

    assert statuses == [200, 200, 200, 429, 429]
    assert refused.json()["code"] == "rate_limited"
    assert 1 <= int(refused.headers["Retry-After"]) <= 10
    assert (await closed.get("/experts", headers=other)).status_code == 200


async def test_what_is_refused_costs_its_key_too(
    closed: httpx.AsyncClient, state_dir: Path
) -> None:
    key = key_of(state_dir, "read", rate=0.1, burst=2)

    statuses = [
        (await closed.request(method, path, headers=key)).status_code
        for method, path in (("POST", "/predict"), ("GET", "/nowhere"), ("GET", "/experts"))
    ]

    assert statuses == [403, 404, 429]


async def test_more_requests_at_once_than_a_key_may_have_are_429(
    closed: httpx.AsyncClient, state_dir: Path
) -> None:
    key = key_of(state_dir, "observe", in_flight=1)
    arrived, go_on = asyncio.Event(), asyncio.Event()

    async def slowly() -> AsyncIterator[bytes]:
        arrived.set()
        await go_on.wait()
        yield json.dumps(DOCUMENT).encode()

    headers = key | {"Content-Type": "application/json"}
    first = asyncio.create_task(closed.post("/observe", content=slowly(), headers=headers))
    await arrived.wait()
    second = await closed.post("/observe", json=DOCUMENT, headers=key)
    go_on.set()

    assert (second.status_code, second.json()["code"]) == (429, "too_many_in_flight")
    assert second.headers["Retry-After"] == "1"
    assert (await first).status_code == 202
    assert (await closed.post("/observe", json=DOCUMENT, headers=key)).status_code == 202


def _limited(**chosen: object) -> Key:
    facts: dict[str, Any] = {"id": "0" * 12, "name": "me", "sha256": "", "scopes": ["read"]}
    absent = dict.fromkeys(("streams", "expires", "revoked", "rate", "burst", "in_flight"))
    return Key.model_validate(facts | absent | {"created": 0.0} | chosen)


def test_a_rate_is_kept_in_the_long_run_and_a_burst_at_once() -> None:
    now = 0.0
    quota, key, passed = Quota(lambda: now), _limited(rate=10.0, burst=20), 0

    for step in range(10_000):
        now = step / 1000
        try:
            with quota.taken(key):
                passed += 1
        except TooMany:
            continue

    assert passed == 20 + 99  # the burst, then ten a second for not quite ten seconds


def test_a_key_without_limits_has_none() -> None:
    quota, key = Quota(), _limited()

    for _ in range(1000):
        with quota.taken(key):
            pass


def test_quotas_of_revoked_keys_are_forgotten(state_dir: Path) -> None:
    ring = Keyring(state_dir, insecure=True)
    for _ in range(5):
        key, token = create_key(state_dir, name="new", scopes=["read"])
        assert ring.find(token)
        ring.quota_of(key)
        revoke_key(state_dir, key.id)
        ring.find(token)

    assert ring._quotas == {}


# Idempotency-Keys


async def test_an_idempotency_key_is_of_the_key_that_sent_it(
    closed: httpx.AsyncClient, state_dir: Path, redis_server: str
) -> None:
    keys = [create_key(state_dir, name="one of two", scopes=["observe"]) for _ in range(2)]
    retried = {"Idempotency-Key": "the-same-for-both"}

    answers = [
        await closed.post("/observe", json=DOCUMENT, headers=retried | bearer(token))
        for _, token in keys * 2
    ]

    assert [answer.headers.get("Idempotent-Replayed") for answer in answers[2:]] == ["true"] * 2
    assert len({answer.json()["batch_id"] for answer in answers}) == 2
    assert [entry.key_id for entry in logged(redis_server)] == [key.id for key, _ in keys]
    assert {entry.idempotency_key for entry in logged(redis_server)} == {"the-same-for-both"}


async def test_another_clients_idempotency_key_tells_nothing_of_its_body(
    closed: httpx.AsyncClient, state_dir: Path
) -> None:
    first, second = (key_of(state_dir, "observe") for _ in range(2))
    retried = {"Idempotency-Key": "the-same-for-both"}
    await closed.post("/observe", json=DOCUMENT, headers=retried | first)

    answer = await closed.post("/observe", json=QUESTION, headers=retried | second)

    assert (answer.status_code, answer.json()["idempotent"]) == (202, True)
    assert "Idempotent-Replayed" not in answer.headers


# What is written down


def audit(lines: list[Any]) -> list[Any]:
    return [line for line in lines if line["event"] == "audit"]


async def test_each_write_of_a_key_is_one_line_without_what_was_sent(
    closed: httpx.AsyncClient, state_dir: Path
) -> None:
    key, token = create_key(state_dir, name="new", scopes=["observe", "read", "predict"])

    with capture_logs() as lines:
        answer = await closed.post("/observe", json=DOCUMENT, headers=bearer(token))
        await closed.post("/observe", json={}, headers=bearer(token))
        await closed.post("/predict", json=QUESTION, headers=bearer(token))
        await closed.get("/quarantine", headers=bearer(token))
        await closed.post("/resync", json={}, headers=bearer(token))

    told = {"key_id": key.id, "method": "POST", "stream": "default", "log_level": "info"}
    assert audit(lines) == [
        told
        | {"event": "audit", "route": route, "scope": scope, "batch_id": batch_id, "status": status}
        for route, scope, batch_id, status in (
            ("/observe", "observe", answer.json()["batch_id"], 202),
            ("/observe", "observe", None, 422),
            ("/resync", "admin", None, 403),
        )
    ]


CANARY = "c4nary"


@pytest.mark.slow
async def test_hostile_requests_add_no_series_and_leave_no_trace_of_keys(
    settings: MakeSettings, state_dir: Path
) -> None:
    _, token = create_key(state_dir, name="of a test", scopes=["read", "metrics", "observe"])
    written = io.StringIO()
    with redirect_stderr(written):
        logs.configure("api")
        async with running_api(settings()) as client:
            before = (await client.get("/metrics", headers=bearer(token))).text
            answers = [await _hostile(client, number, token) for number in range(10_000)]
            after = (await client.get("/metrics", headers=bearer(token))).text
        structlog.reset_defaults()

    assert {status for status, _ in answers} <= {400, 401, 403, 404, 405, 415, 422}
    assert series(after) == series(before)
    told = "".join(text for _, text in answers) + after + written.getvalue()
    assert token not in told
    assert CANARY not in told
    assert "\r" not in written.getvalue()
    assert all(json.loads(line) for line in written.getvalue().splitlines())


def series(text: str) -> set[str]:
    return {line.rpartition(" ")[0] for line in text.splitlines() if not line.startswith("#")}


async def _hostile(client: httpx.AsyncClient, number: int, token: str) -> tuple[int, str]:
    """Return status and text of the answer to one of many requests that are all different."""
    wrong = f"levit_{number:012x}_{CANARY:x<43}"
    path, headers = (
        (f"/{number}/%0d%0aevil:%20{number}", bearer(wrong)),
        (f"/streams/%0d%0a{number}/observe", bearer(token)),
        (f"/observations/%0d%0a{number}", bearer(token)),
        (f"/observe?label={number}", bearer(token) | {"Idempotency-Key": f"{number}\t" * 9}),
        (f"/predict?{number}", bearer(wrong)),
    )[number % 5]
    method = ("GET", "POST", "DELETE", f"X{number}")[number // 5 % 4]
    answer = await client.request(method, path, headers=headers, content=b'{"y": ["\\r\\n"]}')
    return answer.status_code, answer.text


def test_a_new_series_would_be_noticed() -> None:
    assert series('a_total{path="/x"} 1.0\n') != series('a_total{path="/y"} 1.0\n')
