"""The real learner, killed at random moments: the same bytes as a run that was never interrupted.

The promise is for a CPU with one thread; the reference learns in this process.
"""

from pathlib import Path
from typing import Any

import pytest

from service.store.entry import decode_payload
from service.store.server import bundled_binary
from tests.chaos.crash_loop import PREDICT_AGAIN_S, Plan, crash_loop
from tests.chaos.points import points_of
from tests.chaos.report import say, show
from tests.chaos.workload import Workload
from tests.conftest import MakeSettings
from tests.log_entries import SCHEMA, append_all, batches, digest
from tests.patience import BUSY

pytestmark = [pytest.mark.crash, pytest.mark.timeout(600)]

LEARNER: dict[str, Any] = {
    "capacity": 500,
    "budget": 8,
    "statistics_bytes": 2**20,
    "false_expansion_probability": 0.5,
    "false_expansion_horizon": 300,
    "worker_threads": 1,
    "device": "cpu",
}
"""Preset `default`, small, and eager to expand."""
POINTS = (
    "pwrite /attempt",
    "redis HSET replay, answered",
    "fsync /checkpoints/.tmp-*/training.safetensors",
    "rename /checkpoints/.tmp-*",
    "redis HSET progress + SET batch + ZADD done",
    "redis XTRIM log",
    "rename /checkpoints/ckpt-*",
)


async def test_killed_at_seven_named_steps_the_real_learner_ends_bit_equal(
    settings: MakeSettings,
) -> None:
    from service.engine.levit import LevitEngines

    often = {"checkpoint_interval_s": 0.02, "snapshot_interval_s": 0.02, "checkpoints_kept": 1}
    made = settings(**often, **LEARNER)
    stream = batches(24, n=5)
    await append_all(made, stream)
    engine = LevitEngines(threads=1).create(made, SCHEMA)
    for number, one in enumerate(stream, start=1):
        x, labels = decode_payload(one.payload)
        engine.observe((number, 0), SCHEMA.canonical(x), labels)

    _, *told = points_of(made, "levit", *POINTS)

    say(f"{len(told)} deaths of the real learner")
    assert {one["point"] for one in told} == set(POINTS)
    assert [one for one in told if not one["died"]] == []
    assert {one["digest"] for one in told} == {digest(engine.dump())}


def test_ten_kills_leave_the_real_learner_bit_equal(tmp_path: Path) -> None:
    from service.engine.levit import LevitEngines

    plan = Plan(
        kills=10,
        seed=3,
        clients=2,
        pause_s=0.8,
        gap_s=0.8,
        awake_s=60.0,
        worker=("-m", "service", "worker"),
        api=("-m", "service", "api"),
        shares={"worker": 0.6, "api": 0.2, "redis": 0.2},
        workload=Workload(fewest=4, most=8, refused_odds=0),
        engines=LevitEngines(threads=1),
    )

    report = crash_loop(plan, tmp_path, bundled_binary(), **LEARNER)

    show(report)
    assert report.violations == []
    assert report.kills.total() == 10
    assert report.predict_again_s < BUSY * PREDICT_AGAIN_S
