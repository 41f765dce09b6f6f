"""Administrators, the API and a worker process together: what is asked is done."""

import asyncio
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from service.admin import Admin
from service.client import ApiError
from service.settings import Settings
from service.store.forks import fork
from service.store.link import connect
from service.store.names import DEFAULT as names
from tests.log_entries import append_all, batches
from tests.toy_learning import learn_all

CLEAN = np.zeros((2, 8, 8), np.uint8)
REFUSED = np.full((1, 8, 8), 255, np.uint8)
"""A batch that the toy engine refuses to learn."""


@pytest.fixture
def admin(live: Settings) -> Iterator[Admin]:
    """A client of a service with a worker process that learns with the toy engine."""
    environment = {
        "LEVIT_STATE_DIR": str(live.state_dir),
        "LEVIT_REDIS_URL": str(live.redis_url),
        "LEVIT_WORKER_METRICS_PORT": "0",
        "PATH": os.environ["PATH"],
    }
    with (
        subprocess.Popen(
            [sys.executable, "-m", "tests.toy_worker", "0"],
            env=environment,
            cwd=Path(__file__).parent.parent,
        ) as process,
        Admin(f"http://127.0.0.1:{live.port}", retry_s=10) as admin,
    ):
        yield admin
        process.terminate()


def until_listed(admin: Admin, number: int) -> None:
    """Wait until the entry of that number is in the quarantine."""
    deadline = time.monotonic() + 20
    while number not in {one["number"] for one in admin.quarantined()}:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_released_batch_is_tried_again_and_set_aside_under_its_new_number(admin: Admin) -> None:
    receipt = admin.observe(REFUSED)
    until_listed(admin, 1)

    admin.settle(receipt.batch_id, "retry")
    until_listed(admin, 2)

    [only] = admin.quarantined()
    assert (only["batch_id"], only["number"]) == (receipt.batch_id, 2)
    assert admin.observation(receipt.batch_id).state == "quarantined"


def test_a_dropped_batch_is_not_set_aside_again_by_a_rollback(admin: Admin) -> None:
    admin.wait_until_learned(admin.observe(CLEAN, [1, 2]), timeout_s=20)
    refused = admin.observe(REFUSED)
    until_listed(admin, 2)
    admin.settle(refused.batch_id, "drop")
    oldest = admin.checkpoints()[-1]

    told = admin.roll_back(oldest["seq"])
    admin.wait_until_learned(admin.observe(CLEAN, [1, 2]), timeout_s=20)

    assert told == f"went back to checkpoint {oldest['seq']}; later entries are learned again"
    assert list(admin.quarantined()) == []


def test_a_rollback_that_drops_sets_later_entries_aside_and_they_can_be_released(
    admin: Admin,
) -> None:
    admin.wait_until_learned(admin.observe(CLEAN, [1, 2]), timeout_s=20)
    seq = admin.checkpoints()[0]["seq"]
    later = admin.observe(CLEAN + 7, [1, 2])
    admin.wait_until_learned(later, timeout_s=20)

    admin.roll_back(seq, drop=True)
    until_listed(admin, 2)
    aside = admin.observation(later.batch_id)
    admin.settle(later.batch_id, "retry")
    again = admin.wait_until_learned(later, timeout_s=20)

    assert aside.state == "quarantined"
    assert str(aside.reason).startswith("rolled_back")
    assert again.state == "learned"


def test_rollbacks_may_follow_each_other_to_any_checkpoint_that_is_listed(admin: Admin) -> None:
    for _ in range(3):
        admin.wait_until_learned(admin.observe(CLEAN, [1, 2]), timeout_s=20)

    for place in (-1, -1, 1, 1, 0, -1, 1):  # each leaves one more that holds the same entries
        admin.roll_back(sorted(one["seq"] for one in admin.checkpoints())[place])

    admin.wait_until_learned(admin.observe(CLEAN, [1, 2]), timeout_s=20)


def test_a_resync_without_a_loss_is_refused(admin: Admin) -> None:
    admin.wait_until_learned(admin.observe(CLEAN, [1, 2]), timeout_s=20)

    with pytest.raises(ApiError) as refused:
        admin.resync(5)

    assert refused.value.code == "command_refused"


def test_a_lost_log_stops_learning_until_the_exact_loss_is_accepted(
    admin: Admin, live: Settings
) -> None:
    for _ in range(3):
        admin.wait_until_learned(admin.observe(CLEAN, [1, 2]), timeout_s=20)
    redis = connect(str(live.redis_url))
    redis.delete(names.log)
    after = admin.observe(CLEAN + 7, [1, 2])
    problem = until_stopped(live)
    missing = int(re.search(r"--accept-loss (\d+)", problem)[1])  # type: ignore[index]

    with pytest.raises(ApiError, match=f"expected {missing}"):
        admin.resync(missing + 1)
    admin.resync(missing)
    learned = admin.wait_until_learned(after, timeout_s=20)
    another = admin.wait_until_learned(admin.observe(CLEAN + 9, [1, 2]), timeout_s=20)

    assert (learned.step, another.step) == (4, 5)
    deadline = time.monotonic() + 5
    while not admin.ready():
        assert time.monotonic() < deadline
    redis.close()


def until_stopped(live: Settings) -> str:
    """Wait until the service says that learning has stopped; return why."""
    deadline = time.monotonic() + 20
    while (said := httpx.get(f"http://127.0.0.1:{live.port}/readyz")).status_code == httpx.codes.OK:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return said.text


def test_a_fork_of_a_pin_goes_on_by_itself(
    admin: Admin, live: Settings, tmp_path: Path, other_server: str
) -> None:
    for _ in range(3):
        admin.wait_until_learned(admin.observe(CLEAN, [1, 2]), timeout_s=20)
    admin.pin(admin.checkpoints()[0]["seq"], "good")
    made = live.model_copy(update={"state_dir": tmp_path / "fork", "redis_url": other_server})

    learned = fork(live.state_dir, "good", made.state_dir, str(live.redis_url))
    asyncio.run(append_all(made, batches(2)))
    checkpoint = learn_all(made)

    assert learned == 3
    assert (checkpoint.progress.consumed, checkpoint.progress.learned) == (5, 5)
    assert checkpoint.state.values["step"] == 5
    assert [one["name"] for one in admin.pins()] == ["good"]
