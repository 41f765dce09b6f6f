"""What administrators ask of the worker: it is asked once, answered once, or taken back."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import redis

from service.api import routes_checkpoints
from service.errors import StateDirectoryBusy, Unavailable
from service.settings import Settings
from service.store.commands import Answer, CommandDesk, Commands
from service.store.link import connect
from service.store.names import ANSWER_LIFETIME_S
from service.store.names import DEFAULT as names
from tests.administered import add_checkpoint, worker
from tests.conftest import MakeSettings
from tests.log_entries import claimed
from tests.served import assert_problem, publish


@pytest.fixture
def server(redis_server: str) -> Iterator[redis.Redis]:
    connected = connect(redis_server)
    yield connected
    connected.close()


DONE = Answer(ok=True, detail="went back to checkpoint 2")


# Asking


async def test_the_worker_is_asked_once_and_its_answer_comes_back(
    redis_server: str, server: redis.Redis
) -> None:
    desk = CommandDesk(redis_server)

    with worker(redis_server, DONE) as taken:
        answer = await desk.ask("rollback", {"checkpoint": 2, "mode": "drop"}, timeout_s=10)
        await asyncio.sleep(0.05)

    await desk.close()
    assert answer == DONE
    assert [(one.kind, one.arguments) for one in taken] == [
        ("rollback", {"checkpoint": 2, "mode": "drop"})
    ]
    assert server.xlen(names.commands) == 0
    lifetime: object = server.ttl(names.answer(taken[0].id))
    assert isinstance(lifetime, int)
    assert 0 < lifetime <= ANSWER_LIFETIME_S


async def test_every_one_of_many_at_once_gets_its_own_answer(redis_server: str) -> None:
    desk = CommandDesk(redis_server)

    with worker(redis_server, DONE) as taken:
        await asyncio.gather(
            *(desk.ask("resync", {"accept_loss": n}, timeout_s=10) for n in range(40))
        )

    await desk.close()
    assert sorted(one.arguments["accept_loss"] for one in taken) == list(range(40))


async def test_a_command_that_nobody_answers_is_taken_back(
    redis_server: str, server: redis.Redis
) -> None:
    desk = CommandDesk(redis_server)

    with pytest.raises(Unavailable) as refused:
        await desk.ask("resync", {"accept_loss": 1}, timeout_s=0.1)

    await desk.close()
    assert refused.value.code == "worker_silent"
    assert server.xlen(names.commands) == 0


def test_a_command_waits_until_it_is_answered(redis_server: str, server: redis.Redis) -> None:
    fields: dict[object, object] = {"id": "one", "kind": "pin", "arguments": '{"name": "a"}'}
    server.xadd(names.commands, fields)  # type: ignore[arg-type]
    commands = Commands(claimed(redis_server))

    first, again = commands.take(), commands.take()
    commands.done(first[0], DONE)

    assert first == again
    assert commands.take() == []
    assert json.loads(str(server.get(names.answer("one")), "utf-8")) == {  # type: ignore[arg-type]
        "ok": True,
        "detail": "went back to checkpoint 2",
    }


def test_a_superseded_worker_answers_nothing(redis_server: str, server: redis.Redis) -> None:
    fields: dict[object, object] = {"id": "one", "kind": "pin", "arguments": "{}"}
    server.xadd(names.commands, fields)  # type: ignore[arg-type]
    commands = Commands(claimed(redis_server))
    [command] = commands.take()
    claimed(redis_server)

    with pytest.raises(StateDirectoryBusy):
        commands.done(command, DONE)

    assert server.get(names.answer("one")) is None
    assert server.xlen(names.commands) == 1


# Over HTTP


@pytest.mark.parametrize(
    ("path", "body", "arguments"),
    [
        ("/checkpoints/2/rollback", {}, {"checkpoint": 2, "mode": "retrain"}),
        ("/checkpoints/2/rollback", {"mode": "drop"}, {"checkpoint": 2, "mode": "drop"}),
        ("/checkpoints/2/pin", {"name": "best-1"}, {"checkpoint": 2, "name": "best-1"}),
        ("/resync", {"accept_loss": 7}, {"accept_loss": 7}),
    ],
    ids=["rollback", "rollback and drop", "pin", "resync"],
)
async def test_a_command_reaches_the_worker(
    api: httpx.AsyncClient,
    api_settings: Settings,
    redis_server: str,
    path: str,
    body: dict[str, object],
    arguments: dict[str, object],
) -> None:
    add_checkpoint(api_settings.state_dir, 2)

    with worker(redis_server, DONE) as taken:
        answer = await api.post(path, json=body)

    assert (answer.status_code, answer.json()) == (200, {"detail": DONE.detail})
    assert [(one.kind, one.arguments) for one in taken] == [(Path(path).name, arguments)]


async def test_what_the_worker_refuses_is_a_conflict_with_its_reason(
    api: httpx.AsyncClient, redis_server: str
) -> None:
    with worker(redis_server, Answer(ok=False, detail="expected a loss of 5, got 7")):
        answer = await api.post("/resync", json={"accept_loss": 7})

    assert_problem(answer, 409, "command_refused")
    assert answer.json()["detail"] == "expected a loss of 5, got 7"


async def test_a_silent_worker_is_503(
    api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routes_checkpoints, "ANSWER_S", 0.1)

    assert_problem(await api.post("/resync", json={"accept_loss": 7}), 503, "worker_silent")


@pytest.mark.parametrize("verb", ["rollback", "pin"])
async def test_a_checkpoint_that_is_not_there_is_404_and_nobody_is_asked(
    api: httpx.AsyncClient, api_settings: Settings, server: redis.Redis, verb: str
) -> None:
    add_checkpoint(api_settings.state_dir, 2)
    body = {"name": "a"} if verb == "pin" else {}

    answer = await api.post(f"/checkpoints/3/{verb}", json=body)

    assert_problem(answer, 404, "unknown_checkpoint")
    assert server.exists(names.commands) == 0


@pytest.mark.parametrize(
    ("path", "body", "code"),
    [
        ("/checkpoints/2/rollback", {"mode": "both"}, "bad_value"),
        ("/checkpoints/2/rollback", {"mode": None}, "bad_value"),
        ("/checkpoints/2/rollback", {"to": 1}, "unknown_field"),
        ("/checkpoints/2/pin", {}, "missing_field"),
        ("/checkpoints/2/pin", {"name": ""}, "bad_value"),
        ("/checkpoints/2/pin", {"name": "../up"}, "bad_value"),
        ("/checkpoints/2/pin", {"name": "a\n"}, "bad_value"),
        ("/checkpoints/2/pin", {"name": "a" * 41}, "bad_value"),
        ("/checkpoints/2/pin", {"name": "\ud800"}, "bad_value"),
        ("/checkpoints/x/pin", {"name": "a"}, "bad_parameter"),
        ("/checkpoints/0/pin", {"name": "a"}, "bad_parameter"),
        ("/resync", {}, "missing_field"),
        ("/resync", {"accept_loss": -1}, "bad_value"),
        ("/resync", {"accept_loss": "1"}, "bad_value"),
        ("/resync", {"accept_loss": True}, "bad_value"),
        ("/resync", {"accept_loss": 1.5}, "bad_value"),
        ("/resync", {"accept_loss": 10**30}, "bad_value"),
    ],
)
async def test_a_bad_command_is_refused_and_nobody_is_asked(
    api: httpx.AsyncClient,
    server: redis.Redis,
    path: str,
    body: dict[str, object],
    code: str,
) -> None:
    headers = {"Content-Type": "application/json"}

    answer = await api.post(path, content=json.dumps(body), headers=headers)

    assert_problem(answer, 422, code)
    assert server.exists(names.commands) == 0


# Listing


async def test_checkpoints_are_listed_newest_first(
    api: httpx.AsyncClient, api_settings: Settings
) -> None:
    for seq in (9, 10):
        add_checkpoint(api_settings.state_dir, seq, size=100 * seq)

    [newest, oldest] = (await api.get("/checkpoints")).json()["checkpoints"]

    assert 0 <= newest.pop("age_s") < 60
    assert newest == {
        "seq": 10,
        "number": 100,
        "position": "10-0",
        "learned": 90,
        "quarantined": 10,
        "experts": 10,
        "bytes": 1000,
        "pins": [],
    }
    assert oldest["seq"] == 9


async def test_a_damaged_checkpoint_is_not_listed(
    api: httpx.AsyncClient, api_settings: Settings
) -> None:
    for seq in (1, 2):
        add_checkpoint(api_settings.state_dir, seq)
    (api_settings.state_dir / "checkpoints" / "ckpt-00000002" / "manifest.json").write_text("{}")

    listed = (await api.get("/checkpoints")).json()["checkpoints"]

    assert [one["seq"] for one in listed] == [1]


async def test_before_the_first_there_is_nothing_to_list(api: httpx.AsyncClient) -> None:
    assert (await api.get("/checkpoints")).json() == {"checkpoints": [], "pins": []}
    assert (await api.get("/snapshots")).json() == {"snapshots": []}


async def test_snapshots_are_listed_newest_first(
    api: httpx.AsyncClient, settings: MakeSettings
) -> None:
    for position in ("7-0", "8-0"):
        publish(settings().state_dir, classes=[1, 2], position=position)

    listed = (await api.get("/snapshots")).json()["snapshots"]

    assert [(one["version"], one["position"], one["step"]) for one in listed] == [
        (2, "8-0", 5),
        (1, "7-0", 5),
    ]
    assert all(one["bytes"] > np.zeros(2, np.float32).nbytes for one in listed)
