"""Processes are killed at random moments under load: every acknowledged batch counts exactly once.

The controls take one safety out each; the same checker must then find what it is there to find.
`python -m tests.chaos --kills 600` is the long run.
"""

from pathlib import Path

import pytest

from service.store.server import bundled_binary
from tests.chaos.crash_loop import OBSERVE_AGAIN_S, PREDICT_AGAIN_S, Plan, crash_loop
from tests.chaos.parts import TOY_WORKER
from tests.chaos.report import show
from tests.patience import BUSY
from tests.system_packages import require

pytestmark = [pytest.mark.crash, pytest.mark.timeout(400)]


@pytest.fixture(params=["embedded", "debian"])
def binary(request: pytest.FixtureRequest) -> Path:
    """A Redis server: the bundled one, then Debian's."""
    return bundled_binary() if request.param == "embedded" else Path(require("redis-server"))


def test_sixty_kills_lose_nothing_double_nothing_and_change_no_bit(tmp_path: Path) -> None:
    plan = Plan(kills=60, seed=1, fewest_acks=4000)

    report = crash_loop(plan, tmp_path, bundled_binary())

    show(report)
    assert report.violations == []
    assert report.kills.total() == 60
    assert report.kills["redis"] >= 12
    assert report.verdict.acked >= 4000
    assert report.predict_again_s < PREDICT_AGAIN_S
    assert report.observe_again_s < BUSY * OBSERVE_AGAIN_S


def test_killing_redis_alone_loses_nothing_with_either_server(tmp_path: Path, binary: Path) -> None:
    plan = Plan(kills=12, seed=2, fewest_acks=500, shares={"redis": 1.0}, gap_s=0.4)

    report = crash_loop(plan, tmp_path, binary)

    show(report)
    assert report.violations == []
    assert report.kills["redis"] == 12


def test_control_a_worker_that_draws_other_numbers_after_a_restart_ends_in_another_state(
    tmp_path: Path,
) -> None:
    forgetful = (*TOY_WORKER, "generator")
    plan = Plan(kills=4, fewest_acks=400, shares={"worker": 1.0}, worker=forgetful)

    report = crash_loop(plan, tmp_path, bundled_binary())

    assert report.violations == ["other bytes than an uninterrupted run: 1"]
