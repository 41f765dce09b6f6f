"""GET /events: what happens is told once and in order, behind any id, until there is an end."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Any

import fastapi.sse
import httpx
import numpy as np
import pytest

from service.api import audience, keyring, routes_events
from service.client import AsyncClient, Event
from service.client.answers import EventReader
from service.settings import Settings
from service.store import events
from service.store.events import EventKind, queue_event
from service.store.keys import create_key, revoke_key
from service.store.link import connect
from service.store.names import DEFAULT, Names
from service.store.stream_ids import order
from service.watch import Seen, _follow
from tests.conftest import MakeSettings
from tests.listening import listening
from tests.patience import BUSY
from tests.served import assert_problem, running_api
from tests.test_redis_users import REFUSED

PATIENCE_S = 10.0


def write(url: object, *kinds: EventKind, names: Names = DEFAULT, **facts: object) -> list[str]:
    """Write events as the service does; return their ids."""
    redis = connect(str(url))
    with redis.pipeline() as pipe:
        for kind in kinds:
            queue_event(names, pipe, kind, facts)
        ids: list[Any] = pipe.execute()
    redis.close()
    return [one.decode() for one in ids]


class Heard:
    """What one listener hears."""

    def __init__(self, answer: httpx.Response) -> None:
        self.lines: list[str] = []
        self._answer = answer
        self._events = self._read()

    def take(self, count: int) -> list[Event]:
        """Return the next events."""
        return [next(self._events) for _ in range(count)]

    def rest(self) -> list[Event]:
        """Return all that come until the answer ends."""
        return list(self._events)

    def _read(self) -> Iterator[Event]:
        reader = EventReader()
        for line in self._answer.iter_lines():
            self.lines.append(line)
            if (event := reader.feed(line)) is not None:
                yield event


@contextmanager
def heard(service: Settings, path: str = "/events", **headers: str) -> Iterator[Heard]:
    """Listen to a service."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    url = f"http://127.0.0.1:{service.port}{path}"
    with httpx.stream("GET", url, headers=named, timeout=PATIENCE_S) as answer:
        assert (answer.status_code, answer.headers["content-type"]) == (
            200,
            "text/event-stream; charset=utf-8",
        )
        yield Heard(answer)


def kinds(found: list[Event]) -> list[str]:
    return [event.kind for event in found]


# What a worker does


async def test_what_happens_to_a_stream_is_told_as_it_happens(learning: Settings) -> None:
    """With a worker: growth with its reasons and costs, what is set aside, dropped and served."""
    found: list[Event] = []
    url = f"http://127.0.0.1:{learning.port}"
    expected = {"stream_created", "expanded", "quarantined", "dropped", "snapshot"}

    async with (
        AsyncClient(url) as client,
        aclosing(client.events(after="0")) as told,
        asyncio.timeout(60),
    ):
        refused = await client.observe(REFUSED)
        for step in range(60):
            await client.observe(np.full((1, 8, 8), step, np.uint8))
        async for event in told:
            found.append(event)
            if event.kind == "quarantined":
                async with httpx.AsyncClient(base_url=url) as http:
                    dropped = await http.post(f"/quarantine/{refused.batch_id}/drop", json={})
                    assert dropped.status_code == 200
            if expected <= set(kinds(found)):
                break

    assert found[0].kind == "stream_created"
    assert set(found[0].data) == {"at", "preset", "input"}
    assert [one.id for one in found] == sorted((one.id for one in found), key=order)
    born = next(event.data for event in found if event.kind == "expanded")
    assert {"novelty", "threshold", "p_value", "parameters", "bytes", "cause", "step"} <= set(born)
    aside = next(event.data for event in found if event.kind == "quarantined")
    assert aside["batches"][0]["batch_id"] == refused.batch_id
    assert kinds(found).count("dropped") == 1
    assert abs(found[-1].data["at"] - time.time()) < 60


# Where a listener begins


def test_a_listener_goes_on_behind_the_event_that_it_names(live: Settings) -> None:
    first, second, third = write(live.redis_url, "stopped", "recovered", "snapshot", version=3)

    for path, headers in (
        ("/events", {"Last_Event_ID": first}),
        (f"/events?after={first}", {}),
        ("/events?after=0", {"Last_Event_ID": first}),
    ):
        with heard(live, path, **headers) as found:
            told = found.take(2)

        assert [(one.id, one.kind) for one in told] == [(second, "recovered"), (third, "snapshot")]
        assert told[1].data["version"] == 3


def test_without_an_id_a_listener_hears_what_happens_from_now_on(live: Settings) -> None:
    write(live.redis_url, "stopped")

    with heard(live) as found:
        ids = write(live.redis_url, "recovered", "snapshot")

        assert [one.id for one in found.take(2)] == ids


def test_a_listener_that_has_heard_nothing_is_told_where_to_go_on(live: Settings) -> None:
    (newest,) = write(live.redis_url, "stopped")

    with heard(live) as found:
        write(live.redis_url, "recovered")
        found.take(1)

    assert found.lines[:3] == [": listening", f"id: {newest}", ""]


def test_where_the_event_is_gone_one_gap_says_so(
    live: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "MOST_KEPT", 2)
    ids = write(live.redis_url, "stopped", "recovered", "stopped", "recovered")

    with heard(live, Last_Event_ID=ids[0]) as found:
        gap, *told = found.take(3)
    with heard(live, Last_Event_ID=ids[2]) as found:
        last = found.take(1)
    with heard(live, "/events?after=0") as found:
        everything = found.take(2)

    assert (gap.kind, gap.id, gap.data) == ("gap", ids[0], {"after": ids[0]})
    assert [one.id for one in told] == ids[2:]
    assert [one.id for one in last] == ids[3:]
    assert [one.id for one in everything] == ids[2:]


def test_each_stream_has_its_own_events(live: Settings) -> None:
    url = f"http://127.0.0.1:{live.port}"
    assert httpx.post(f"{url}/streams", json={"name": "cams"}).status_code == 201
    write(live.redis_url, "stopped")
    (other,) = write(live.redis_url, "recovered", names=Names("cams"))

    with heard(live, "/streams/cams/events?after=0") as found:
        assert [one.id for one in found.take(1)] == [other]
    with heard(live, "/streams/default/events?after=0") as found:
        assert kinds(found.take(1)) == ["stopped"]


@pytest.mark.parametrize("after", ["x", "1-", "-1", "1" * 20, "1-1-1", "$", "1-0\n"])
async def test_what_is_no_id_is_refused(api: httpx.AsyncClient, after: str) -> None:
    assert_problem(await api.get("/events", params={"after": after}), 422, "bad_parameter")


async def test_the_picture_in_the_terminal_shows_past_events(live: Settings) -> None:
    write(live.redis_url, "stopped", "recovered")
    seen = Seen("", "default")

    async with AsyncClient(f"http://127.0.0.1:{live.port}") as client:
        following = asyncio.create_task(_follow(client, seen))
        async with asyncio.timeout(PATIENCE_S):
            while len(seen.events) < 2:  # noqa: ASYNC110  a picture has no event
                await asyncio.sleep(0.02)
        following.cancel()

    assert kinds(list(seen.events)) == ["stopped", "recovered"]


# Until there is an end


def test_silence_is_broken_by_comments(live: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fastapi.sse._PING_INTERVAL == 15
    monkeypatch.setattr("fastapi.routing._PING_INTERVAL", 0.05)

    with heard(live) as found:
        time.sleep(0.3)
        write(live.redis_url, "stopped")
        found.take(1)

    assert found.lines.count(": ping") >= 2


async def test_without_redis_a_listener_is_refused(settings: MakeSettings) -> None:
    away = settings(insecure=True, redis_url="unix:///nowhere.sock")

    async with running_api(away) as client:
        assert_problem(await client.get("/events"), 503, "redis_unavailable")


def test_when_redis_goes_away_the_answer_ends(live: Settings) -> None:
    (first,) = write(live.redis_url, "stopped")

    with heard(live, "/events?after=0") as found:
        found.take(1)
        redis = connect(str(live.redis_url))
        redis.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        redis.close()

        assert found.rest() == []
    write(live.redis_url, "recovered")
    with heard(live, Last_Event_ID=first) as found:
        assert kinds(found.take(1)) == ["recovered"]


def test_when_the_service_stops_the_answer_ends(settings: MakeSettings) -> None:
    with listening(settings(insecure=True)) as service:
        serving = heard(service)
        found = serving.__enter__()  # left only once the service has stopped
        began = time.monotonic()

    assert time.monotonic() - began < BUSY
    assert found.rest() == []
    serving.__exit__(None, None, None)


def test_when_its_key_is_revoked_the_answer_ends(
    settings: MakeSettings, state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keyring, "LOOK_S", 0.0)
    create_key(state_dir, name="other", scopes=["read"])
    key, token = create_key(state_dir, name="listener", scopes=["read"], rate=0.01, burst=1)

    with (
        listening(settings()) as service,
        heard(service, "/events?after=0", Authorization=f"Bearer {token}") as found,
    ):
        write(service.redis_url, "stopped")
        assert kinds(found.take(1)) == ["stopped"]
        time.sleep(1.2)  # longer than one read: its rate is for requests, not for staying
        write(service.redis_url, "recovered")
        assert kinds(found.take(1)) == ["recovered"]
        revoke_key(state_dir, key.id)

        assert found.rest() == []


def test_control_who_does_not_look_at_keys_goes_on_telling(
    settings: MakeSettings, state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keyring, "LOOK_S", 0.0)
    monkeypatch.setattr(routes_events, "check_counts", bool)
    create_key(state_dir, name="other", scopes=["read"])
    key, token = create_key(state_dir, name="listener", scopes=["read"])

    with (
        listening(settings()) as service,
        heard(service, "/events?after=0", Authorization=f"Bearer {token}") as found,
    ):
        revoke_key(state_dir, key.id)
        time.sleep(1.2)
        write(service.redis_url, "stopped")

        assert kinds(found.take(1)) == ["stopped"]


def test_listeners_are_counted_against_their_key_and_their_stream(
    settings: MakeSettings, state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audience, "MOST_LISTENERS", 2)
    few = create_key(state_dir, name="few", scopes=["read"], in_flight=1)[1]
    many = create_key(state_dir, name="many", scopes=["read"])[1]

    def ask(service: Settings, token: str) -> tuple[int, str, bool]:
        url = f"http://127.0.0.1:{service.port}/events"
        named = {"Authorization": f"Bearer {token}"}
        answer = httpx.get(url, headers=named, timeout=PATIENCE_S)
        return answer.status_code, answer.json()["code"], "Retry-After" in answer.headers

    with listening(settings()) as service:
        with heard(service, Authorization=f"Bearer {few}"):
            assert ask(service, few) == (429, "too_many_in_flight", True)
            with heard(service, Authorization=f"Bearer {many}"):
                assert ask(service, many) == (429, "too_many_listeners", True)
        until = time.monotonic() + PATIENCE_S
        while True:  # those that left are noticed soon
            try:
                with heard(service, Authorization=f"Bearer {few}"):
                    break
            except AssertionError:
                assert time.monotonic() < until


def test_a_log_of_events_is_bounded(live: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "MOST_KEPT", 5)
    kind: EventKind = "snapshot"

    ids = write(live.redis_url, *([kind] * 50), text="x" * 5000, number=float("nan"))

    with heard(live, "/events?after=0") as found:
        told = found.take(5)
    assert [one.id for one in told] == ids[-5:]
    assert len(told[0].data["text"]) == events.MOST_CHARACTERS
    assert told[0].data["number"] is None
