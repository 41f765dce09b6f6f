"""The quarantine: what is listed, what an administrator may do with it, and only once."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import numpy as np
import pytest
import redis

from service.engine.protocol import Labels
from service.errors import Conflict
from service.store import quarantine
from service.store.aside import SetAside
from service.store.link import connect, transaction
from service.store.names import DEFAULT as names
from service.store.names import Names
from service.store.quarantine import Quarantine
from tests.administered import REASON, set_aside
from tests.served import PIXELS, assert_problem, logged


@pytest.fixture
def server(redis_server: str) -> Iterator[redis.Redis]:
    connected = connect(redis_server)
    yield connected
    connected.close()


@pytest.fixture
async def store(redis_server: str) -> AsyncIterator[Quarantine]:
    store = Quarantine(redis_server)
    yield store
    await store.close()


async def observe(api: httpx.AsyncClient, count: int, y: list[Any] | None = None) -> list[str]:
    """Accept batches; return their ids."""
    document = {"x": PIXELS.tolist()} | ({} if y is None else {"y": y})
    return [(await api.post("/observe", json=document)).json()["batch_id"] for _ in range(count)]


# Looking


async def test_what_was_set_aside_is_listed_oldest_first(
    api: httpx.AsyncClient, redis_server: str
) -> None:
    ids = await observe(api, 4)
    set_aside(redis_server, numbers=frozenset({2, 4}))

    said = (await api.get("/quarantine")).json()

    entries = logged(redis_server)
    assert said == {
        "quarantined": [
            {
                "batch_id": ids[number - 1],
                "number": number,
                "position": entries[number - 1].position,
                "n": 2,
                "reason": REASON,
                "bytes": len(entries[number - 1].payload),
            }
            for number in (2, 4)
        ],
        "after": None,
    }


async def test_a_long_list_comes_in_pages_and_each_batch_once(
    api: httpx.AsyncClient, redis_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quarantine, "CHUNK", 2)
    ids = await observe(api, 7)
    set_aside(redis_server, numbers=frozenset(range(1, 8)))

    pages, after = [], "0-0"
    while after is not None:
        said = (await api.get("/quarantine", params={"limit": 3, "after": after})).json()
        pages.append([one["batch_id"] for one in said["quarantined"]])
        after = said["after"]

    assert pages == [ids[:3], ids[3:6], ids[6:]]


async def test_what_no_checkpoint_holds_yet_is_not_listed(
    api: httpx.AsyncClient, redis_server: str
) -> None:
    ids = await observe(api, 3)
    set_aside(redis_server, numbers=frozenset({1, 3}), told=2)

    said = (await api.get("/quarantine")).json()

    assert [one["batch_id"] for one in said["quarantined"]] == ids[:1]


async def test_an_empty_quarantine_is_an_empty_list(api: httpx.AsyncClient) -> None:
    assert (await api.get("/quarantine")).json() == {"quarantined": [], "after": None}


@pytest.mark.parametrize(
    ("y", "shown"),
    [([1, None], [1, None]), (["a", None], ["a", None]), (None, None)],
    ids=["integers", "strings", "none"],
)
async def test_a_batch_is_shown_with_its_labels_and_without_its_payload(
    api: httpx.AsyncClient, redis_server: str, y: Labels | None, shown: list[Any] | None
) -> None:
    [batch_id] = await observe(api, 1, y if y is None else list(y))
    set_aside(redis_server, numbers=frozenset({1}))

    said = (await api.get(f"/quarantine/{batch_id}")).json()

    assert (said["input"], said["labels"], said["reason"]) == ("image:8x8x1", shown, REASON)
    assert "payload" not in said


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=101", "limit=x", "after=x", "after=1", "after=%00", "limit=" + "9" * 5000],
)
async def test_a_bad_parameter_is_refused(api: httpx.AsyncClient, query: str) -> None:
    assert_problem(await api.get(f"/quarantine?{query}"), 422, "bad_parameter")


# Releasing


async def test_a_released_batch_is_queued_again_under_its_id(
    api: httpx.AsyncClient, redis_server: str
) -> None:
    [batch_id] = await observe(api, 1, [3, None])
    [before] = logged(redis_server)
    set_aside(redis_server, numbers=frozenset({1}))

    answer = await api.post(f"/quarantine/{batch_id}/retry", json={})

    again = logged(redis_server)[1]
    assert (answer.status_code, answer.json()["state"]) == (200, "queued")
    assert (again.batch_id, again.payload) == (batch_id, before.payload)
    np.testing.assert_array_equal(again.x, before.x)
    assert (await api.get(f"/observations/{batch_id}")).json()["state"] == "queued"
    assert (await api.get("/quarantine")).json()["quarantined"] == []


async def test_a_released_batch_counts_as_accepted_and_as_backlog(
    api: httpx.AsyncClient, redis_server: str, server: redis.Redis
) -> None:
    [batch_id] = await observe(api, 1)
    set_aside(redis_server, numbers=frozenset({1}))

    await api.post(f"/quarantine/{batch_id}/retry", json={})

    assert server.get(names.accepted) == b"2"
    assert 'levit_stream_backlog{stream="default"} 1.0' in (await api.get("/metrics")).text


async def test_a_batch_is_released_once(api: httpx.AsyncClient, redis_server: str) -> None:
    [batch_id] = await observe(api, 1)
    set_aside(redis_server, numbers=frozenset({1}))
    await api.post(f"/quarantine/{batch_id}/retry", json={})

    again = await api.post(f"/quarantine/{batch_id}/retry", json={})

    assert_problem(again, 409, "not_quarantined")
    assert len(logged(redis_server)) == 2


@pytest.fixture
def ten_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten who find a batch to settle wait for one another before any of them settles it."""
    found, met = quarantine._find, asyncio.Barrier(10)

    async def find(connected: Any, kept: Names, batch_id: str) -> SetAside:  # noqa: ANN401
        one = await found(connected, kept, batch_id)
        async with asyncio.timeout(30):
            await met.wait()
        return one

    monkeypatch.setattr(quarantine, "_find", find)


@pytest.mark.usefixtures("ten_meet")
async def test_ten_administrators_at_once_release_a_batch_once(
    api: httpx.AsyncClient, redis_server: str
) -> None:
    [batch_id] = await observe(api, 1)
    set_aside(redis_server, numbers=frozenset({1}))

    answers = await asyncio.gather(
        *(api.post(f"/quarantine/{batch_id}/retry", json={}) for _ in range(10))
    )

    assert sorted(answer.status_code for answer in answers) == [200] + [409] * 9
    assert len(logged(redis_server)) == 2


@pytest.mark.usefixtures("ten_meet")
async def test_control_without_watch_ten_administrators_release_it_ten_times(
    api: httpx.AsyncClient, redis_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    [batch_id] = await observe(api, 1)
    set_aside(redis_server, numbers=frozenset({1}))

    @asynccontextmanager
    async def unwatched(connected: Any) -> AsyncIterator[Any]:  # noqa: ANN401
        async with transaction(connected) as pipe:
            watch: Any = pipe.watch
            monkeypatch.setattr(pipe, "watch", lambda _: watch("levit:nothing"))
            yield pipe

    monkeypatch.setattr(quarantine, "transaction", unwatched)

    await asyncio.gather(*(api.post(f"/quarantine/{batch_id}/retry", json={}) for _ in range(10)))

    assert len(logged(redis_server)) == 11


async def test_the_worker_sets_a_released_batch_aside_under_its_new_number_only(
    api: httpx.AsyncClient, redis_server: str
) -> None:
    [batch_id] = await observe(api, 1)
    set_aside(redis_server, numbers=frozenset({1}))
    await api.post(f"/quarantine/{batch_id}/retry", json={})

    set_aside(redis_server, numbers=frozenset({1, 2}))  # after a crash it meets both again

    said = (await api.get("/quarantine")).json()["quarantined"]
    assert [(one["batch_id"], one["number"]) for one in said] == [(batch_id, 2)]


# Dropping


async def test_a_dropped_batch_is_gone_and_says_so(
    api: httpx.AsyncClient, redis_server: str, server: redis.Redis
) -> None:
    [batch_id] = await observe(api, 1)
    set_aside(redis_server, numbers=frozenset({1}))
    [position] = [one.position for one in logged(redis_server)]

    answer = await api.post(f"/quarantine/{batch_id}/drop", json={})

    status = (await api.get(f"/observations/{batch_id}")).json()
    assert (answer.status_code, answer.json()) == (200, status)
    assert (status["state"], status["reason"]) == ("quarantined", f"{REASON}; dropped")
    assert server.hget(names.quarantine, position) == b""
    assert len(logged(redis_server)) == 1
    assert (await api.get("/quarantine")).json()["quarantined"] == []


@pytest.mark.parametrize("verb", ["retry", "drop"])
async def test_what_was_dropped_stays_dropped(
    api: httpx.AsyncClient, redis_server: str, verb: str
) -> None:
    [batch_id] = await observe(api, 1)
    set_aside(redis_server, numbers=frozenset({1}))
    await api.post(f"/quarantine/{batch_id}/drop", json={})
    set_aside(redis_server, numbers=frozenset({1}))  # the worker meets it again

    answer = await api.post(f"/quarantine/{batch_id}/{verb}", json={})

    assert_problem(answer, 409, "not_quarantined")
    assert len(logged(redis_server)) == 1


# Refusals


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", ""), ("POST", "/retry"), ("POST", "/drop")],
    ids=["show", "retry", "drop"],
)
async def test_an_unknown_batch_is_404_and_one_that_is_queued_409(
    api: httpx.AsyncClient, method: str, path: str
) -> None:
    [queued] = await observe(api, 1)
    body: dict[str, Any] = {} if method == "GET" else {"json": {}}

    unknown = await api.request(method, f"/quarantine/{'0' * 32}{path}", **body)
    waiting = await api.request(method, f"/quarantine/{queued}{path}", **body)
    malformed = await api.request(method, f"/quarantine/x{path}", **body)

    assert_problem(unknown, 404, "unknown_batch")
    assert_problem(waiting, 409, "not_quarantined")
    assert_problem(malformed, 422, "bad_batch_id")


@pytest.mark.parametrize(
    ("content", "headers", "status", "code"),
    [
        (b"{}", {}, 415, "unsupported_type"),
        (b"{}", {"Content-Type": "text/plain"}, 415, "unsupported_type"),
        (b"a=1", {"Content-Type": "application/x-www-form-urlencoded"}, 415, "unsupported_type"),
        (b"", {"Content-Type": "application/json"}, 400, "bad_json"),
        (b"{", {"Content-Type": "application/json"}, 400, "bad_json"),
        (b"[]", {"Content-Type": "application/json"}, 422, "bad_body"),
        (b'{"why": 1}', {"Content-Type": "application/json"}, 422, "unknown_field"),
        (b" " * 5000, {"Content-Type": "application/json"}, 413, "body_too_large"),
    ],
    ids=["no type", "text", "form", "empty", "broken", "list", "field", "long"],
)
async def test_a_command_is_a_small_json_object_and_nothing_else(
    api: httpx.AsyncClient,
    redis_server: str,
    content: bytes,
    headers: dict[str, str],
    status: int,
    code: str,
) -> None:
    [batch_id] = await observe(api, 1)
    set_aside(redis_server, numbers=frozenset({1}))

    answer = await api.post(f"/quarantine/{batch_id}/retry", content=content, headers=headers)

    assert_problem(answer, status, code)
    assert len(logged(redis_server)) == 1


async def test_a_race_lost_every_time_is_a_conflict(
    api: httpx.AsyncClient,
    redis_server: str,
    server: redis.Redis,
    store: Quarantine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    [batch_id] = await observe(api, 1)
    set_aside(redis_server, numbers=frozenset({1}))
    found = quarantine._find

    async def interfere(pipe: Any, of: Names, asked: str) -> SetAside:  # noqa: ANN401
        one = await found(pipe, of, asked)
        server.set(names.batch(asked), server.get(names.batch(asked)) or b"")
        return one

    monkeypatch.setattr(quarantine, "_find", interfere)

    with pytest.raises(Conflict, match="lost the race"):
        await store.retry(batch_id)

    assert len(logged(redis_server)) == 1
