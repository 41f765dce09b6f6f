"""The administrators' commands against a service on a port, with a worker that a test plays."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from typer.testing import CliRunner, Result

from service import cli
from service.admin import Admin
from service.client import ApiError
from service.errors import Misused
from service.settings import Settings
from service.store import directory, inventory
from service.store.commands import Answer
from service.store.fence import Fence
from service.store.pins import pin, pins
from tests.administered import REASON, add_checkpoint, set_aside, worker
from tests.log_entries import append_all, batches
from tests.served import PIXELS, logged
from tests.toy_learning import learn_all

DONE = Answer(ok=True, detail="went back to checkpoint 2")


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")


@pytest.fixture
def url(live: Settings) -> str:
    return f"http://127.0.0.1:{live.port}"


@pytest.fixture
def admin(url: str) -> Iterator[Admin]:
    with Admin(url, retry_s=5) as admin:
        yield admin


def levit(*arguments: str) -> Result:
    """Run `levit` in this process."""
    return CliRunner().invoke(cli.app, arguments)


def three_aside(admin: Admin, redis_url: str) -> list[str]:
    """Accept four batches and set the first three aside; return their ids."""
    ids = [admin.observe(PIXELS, [1, None]).batch_id for _ in range(4)]
    set_aside(redis_url, numbers=frozenset({1, 2, 3}))
    return ids[:3]


# Quarantine


def test_the_quarantine_is_a_table(admin: Admin, url: str, redis_server: str) -> None:
    ids = three_aside(admin, redis_server)

    shown = levit("quarantine", "list", "--url", url).stdout

    assert [batch_id in shown for batch_id in ids] == [True] * 3
    assert REASON in shown


def test_the_list_is_as_long_as_is_asked_for(admin: Admin, url: str, redis_server: str) -> None:
    ids = three_aside(admin, redis_server)

    shown = levit("quarantine", "list", "--limit", "2", "--url", url).stdout

    assert [batch_id in shown for batch_id in ids] == [True, True, False]


def test_one_batch_is_shown_with_its_labels(admin: Admin, url: str, redis_server: str) -> None:
    [first, *_] = three_aside(admin, redis_server)

    lines = levit("quarantine", "show", first, "--url", url).stdout.splitlines()

    assert {"input\timage:8x8x1", "labels\t1 -", f"reason\t{REASON}"} <= set(lines)


def test_named_batches_are_released(admin: Admin, url: str, redis_server: str) -> None:
    ids = three_aside(admin, redis_server)

    done = levit("quarantine", "retry", ids[0], ids[2], "--url", url)

    assert done.stdout == "2 batches released; they are queued\n"
    assert [one.batch_id for one in logged(redis_server)[4:]] == [ids[0], ids[2]]
    assert [one["batch_id"] for one in admin.quarantined()] == [ids[1]]


def test_all_batches_are_dropped(admin: Admin, url: str, redis_server: str) -> None:
    ids = three_aside(admin, redis_server)

    done = levit("quarantine", "drop", "--all", "--url", url)

    assert done.stdout == "3 batches dropped\n"
    assert list(admin.quarantined()) == []
    assert admin.observation(ids[0]).reason == f"{REASON}; dropped"


def test_with_all_a_batch_that_is_gone_meanwhile_is_passed_over(
    admin: Admin, url: str, redis_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = three_aside(admin, redis_server)
    listed = list(admin.quarantined())
    admin.settle(ids[1], "retry")
    monkeypatch.setattr(Admin, "quarantined", lambda _: iter(listed))

    done = levit("quarantine", "retry", "--all", "--url", url)

    assert done.stdout == "2 batches released; they are queued\n"


def test_a_named_batch_that_is_gone_is_a_mistake(admin: Admin, url: str, redis_server: str) -> None:
    [first, *_] = three_aside(admin, redis_server)
    levit("quarantine", "retry", first, "--url", url)

    again = levit("quarantine", "retry", first, "--url", url)

    assert isinstance(again.exception, ApiError)
    assert cli._exit_code(again.exception) == 2
    assert str(again.exception) == f"batch {first} is queued (not_quarantined)"


@pytest.mark.parametrize("arguments", [[], ["--all", "0" * 32]], ids=["neither", "both"])
def test_batches_are_named_or_all(url: str, arguments: list[str]) -> None:
    done = levit("quarantine", "drop", *arguments, "--url", url)

    assert isinstance(done.exception, Misused)
    assert cli._exit_code(done.exception) == 2


def test_more_than_a_page_is_listed_and_released(admin: Admin, url: str, redis_server: str) -> None:
    for _ in range(103):
        admin.observe(np.zeros((1, 8, 8), np.uint8))
    set_aside(redis_server, numbers=frozenset(range(1, 104)))

    done = levit("quarantine", "retry", "--all", "--url", url)

    assert done.stdout == "103 batches released; they are queued\n"
    assert len(logged(redis_server)) == 206


# Checkpoints, snapshots, resync


def test_checkpoints_are_a_table(live: Settings, url: str) -> None:
    add_checkpoint(live.state_dir, 2, size=3000)

    shown = levit("checkpoints", "list", "--url", url).stdout

    assert "3.0 kB" in shown
    assert "2-0" in shown


def test_snapshots_are_a_table(live: Settings, url: str) -> None:
    (live.state_dir / "snapshots").mkdir()
    facts = {"kind": "snapshot", "version": 1, "position": "77-0", "step": 5, "quarantined": 0}
    facts |= {"summary": {"experts": []}}
    directory.write(live.state_dir / "snapshots" / "snap-1", {}, facts, linked={})

    assert "77-0" in levit("snapshots", "list", "--url", url).stdout


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        (["checkpoints", "rollback", "2"], {"checkpoint": 2, "mode": "retrain"}),
        (["checkpoints", "rollback", "2", "--drop"], {"checkpoint": 2, "mode": "drop"}),
        (["checkpoints", "pin", "2", "best-1"], {"checkpoint": 2, "name": "best-1"}),
        (["resync", "--accept-loss", "7"], {"accept_loss": 7}),
    ],
    ids=["rollback", "rollback and drop", "pin", "resync"],
)
def test_a_command_is_followed_and_tells_what_was_done(
    live: Settings, url: str, redis_server: str, arguments: list[str], asked: dict[str, Any]
) -> None:
    add_checkpoint(live.state_dir, 2)

    with worker(redis_server, DONE) as taken:
        done = levit(*arguments, "--url", url)

    assert (done.exit_code, done.stdout) == (0, f"{DONE.detail}\n")
    assert [one.arguments for one in taken] == [asked]


def test_what_the_worker_refuses_is_told(url: str, redis_server: str) -> None:
    with worker(redis_server, Answer(ok=False, detail="expected a loss of 5, got 7")):
        done = levit("resync", "--accept-loss", "7", "--url", url)

    assert str(done.exception) == "expected a loss of 5, got 7 (command_refused)"


@pytest.mark.parametrize(
    "arguments", [["checkpoints", "rollback", "0"], ["resync"], ["resync", "--accept-loss", "-1"]]
)
def test_a_command_that_cannot_be_meant_is_not_sent(arguments: list[str]) -> None:
    assert levit(*arguments, "--url", "http://127.0.0.1:9").exit_code == 2


@pytest.mark.parametrize("command", ["quarantine", "checkpoints", "snapshots"])
def test_help_lists_the_commands(command: str) -> None:
    assert "list" in levit(command, "--help").stdout


# The client


def test_a_command_whose_answer_is_lost_is_sent_once() -> None:
    sent: list[httpx.Request] = []

    def lose(request: httpx.Request) -> httpx.Response:
        sent.append(request)
        raise httpx.ReadError("connection reset")

    with (
        Admin("http://levit", transport=httpx.MockTransport(lose)) as admin,
        pytest.raises(ApiError) as lost,
    ):
        admin.roll_back(2)

    assert (lost.value.status, lost.value.code) == (0, "unreachable")
    assert len(sent) == 1


# Files of this machine


@pytest.fixture
async def learned(live: Settings) -> Settings:
    """The settings of a service with a checkpoint of five entries, which is pinned as `kept`."""
    await append_all(live, batches(5))
    learn_all(live)
    fence = Fence(str(live.redis_url))
    pin(live.state_dir, 1, "kept", fence)
    fence.close()
    return live


def test_pins_are_a_table_of_their_own(learned: Settings, url: str) -> None:
    lines = levit("checkpoints", "list", "--url", url).stdout.splitlines()

    assert sum("kept" in line for line in lines) == 2


def test_a_pin_is_dropped(learned: Settings) -> None:
    state_dir = str(learned.state_dir)

    dropped = levit("checkpoints", "unpin", "kept", "--state-dir", state_dir)
    again = levit("checkpoints", "unpin", "kept", "--state-dir", state_dir)

    assert dropped.stdout == "pin kept dropped\n"
    assert pins(learned.state_dir) == []
    assert isinstance(again.exception, Misused)


@pytest.mark.parametrize("chosen", ["kept", "1"], ids=["pin", "checkpoint"])
def test_a_fork_is_made_of_a_pin_or_a_checkpoint(
    learned: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chosen: str
) -> None:
    monkeypatch.setenv("LEVIT_REDIS_URL", str(learned.redis_url))
    destination = tmp_path / "fork"

    done = levit(
        *("checkpoints", "fork", chosen, str(destination)),
        *("--state-dir", str(learned.state_dir)),
    )

    assert done.stdout.startswith(f"{destination} goes on from entry 5: levit serve")
    assert [one.number for one in inventory.checkpoints(destination)] == [5]


def test_a_served_model_is_exported(learned: Settings, tmp_path: Path) -> None:
    destination = tmp_path / "served"

    done = levit(
        *("snapshots", "export", str(destination)), *("--state-dir", str(learned.state_dir))
    )

    [snapshot] = inventory.snapshots(destination)
    assert done.stdout == f"snapshot {snapshot.version} copied to {destination}\n"
