"""A stream of lines goes on only as fast, and as long, as its key may."""

import json
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from structlog.testing import capture_logs

from service.api import keyring
from service.api.body import LINES
from service.api.quota import MOST_OWED_S, Quota
from service.errors import TooMany
from service.store.keys import Key, create_key, revoke_key
from tests.conftest import MakeSettings
from tests.served import DOCUMENT, logged, running_api

LINE = json.dumps(DOCUMENT).encode() + b"\n"


@pytest.fixture
async def closed(settings: MakeSettings, state_dir: Path) -> AsyncIterator[httpx.AsyncClient]:
    """An API for those who have a key."""
    create_key(state_dir, name="first", scopes=["read"])
    async with running_api(settings()) as client:
        yield client


@pytest.fixture(autouse=True)
def _look_always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Notice a revoked key at once, not after half a second."""
    monkeypatch.setattr(keyring, "LOOK_S", 0.0)


def new(
    state_dir: Path, rate: float | None = None, burst: int | None = None
) -> tuple[Key, dict[str, str]]:
    key, token = create_key(state_dir, name="new", scopes=["observe"], rate=rate, burst=burst)
    return key, {"Authorization": f"Bearer {token}", "Content-Type": LINES}


async def test_lines_are_slowed_down_to_the_rate_of_their_key(
    closed: httpx.AsyncClient, state_dir: Path
) -> None:
    _, headers = new(state_dir, rate=10, burst=2)
    started = time.monotonic()

    answer = await closed.post("/observe", content=LINE * 8, headers=headers)

    assert [json.loads(line)["status"] for line in answer.text.splitlines()] == [202] * 8
    assert time.monotonic() - started > 0.6  # the request and 8 lines: 7 beyond the burst


async def test_without_a_rate_lines_are_not_slowed(
    closed: httpx.AsyncClient, state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, headers = new(state_dir)
    owed: list[float] = []
    ask = Quota.owed_s

    def asked(quota: Quota, key: Key) -> float:
        owed.append(ask(quota, key))
        return owed[-1]

    monkeypatch.setattr(Quota, "owed_s", asked)

    await closed.post("/observe", content=LINE * 8, headers=headers)

    assert owed == [0] * 8


async def test_a_line_whose_turn_is_far_away_ends_the_stream(
    closed: httpx.AsyncClient, state_dir: Path, redis_server: str
) -> None:
    _, headers = new(state_dir, rate=0.1, burst=3)

    answer = await closed.post("/observe", content=LINE * 8, headers=headers)

    said = [json.loads(line) for line in answer.text.splitlines()]
    assert [one["status"] for one in said] == [202, 202, 429]
    assert (said[-1]["code"], said[-1]["retry_after_s"]) == ("rate_limited", 10)
    assert len(logged(redis_server)) == 2


async def test_a_stream_ends_when_its_key_is_revoked(
    closed: httpx.AsyncClient, state_dir: Path
) -> None:
    key, headers = new(state_dir)

    async def body() -> AsyncIterator[bytes]:
        yield LINE
        revoke_key(state_dir, key.id)
        yield LINE * 2

    answer = await closed.post("/observe", content=body(), headers=headers)

    said = [json.loads(line) for line in answer.text.splitlines()]
    assert [(one["status"], one.get("code")) for one in said] == [
        (202, None),
        (401, "unauthorized"),
    ]


async def test_each_line_is_audited(closed: httpx.AsyncClient, state_dir: Path) -> None:
    key, headers = new(state_dir)

    with capture_logs() as lines:
        answer = await closed.post("/observe", content=LINE * 2, headers=headers)

    ids = [json.loads(line)["batch_id"] for line in answer.text.splitlines()]
    audited = [line for line in lines if line["event"] == "audit"]
    assert [line["batch_id"] for line in audited] == [*ids, None]
    assert {line["key_id"] for line in audited} == {key.id}


def test_a_turn_is_waited_for_and_paid_by_who_comes_next(state_dir: Path) -> None:
    now = 0.0
    quota, (key, _) = Quota(lambda: now), new(state_dir, rate=2.0, burst=1)

    waits = [quota.owed_s(key) for _ in range(3)]
    with pytest.raises(TooMany), quota.taken(key):
        pass
    now = 1.5

    assert waits == [0, 0.5, 1.0]
    with quota.taken(key):
        pass


def test_nobody_waits_longer_than_the_longest(state_dir: Path) -> None:
    quota, (key, _) = Quota(lambda: 0.0), new(state_dir, rate=2.0, burst=1)

    waits = [quota.owed_s(key) for _ in range(11)]

    assert waits[-1] == MOST_OWED_S
    with pytest.raises(TooMany):
        quota.owed_s(key)
