"""A worker dies right before each named durable step in turn: the state is as if none had."""

import json
import subprocess
import sys
from typing import Any

import pytest

from service.engine.protocol import EntryRefused
from service.settings import Settings
from service.supervisor import child_environment
from tests.chaos.parts import ROOT
from tests.chaos.report import say
from tests.conftest import MakeSettings
from tests.log_entries import SCHEMA, append_all, batches, digest, refused_batch
from tests.served import logged
from tests.toy_engine import ToyEngines

pytestmark = [pytest.mark.crash, pytest.mark.timeout(400)]

ENTRIES = 50


def expected_digest(url: str) -> str:
    """Return the digest of an engine that is given the log without interruption."""
    engine = ToyEngines().create(Settings(), SCHEMA)
    for one in logged(url):
        try:
            engine.observe(one.number, one.x, one.labels)
        except EntryRefused:
            continue
    return digest(engine.dump())


async def test_killed_before_each_named_step_it_ends_in_the_state_of_an_uninterrupted_run(
    settings: MakeSettings, redis_server: str
) -> None:
    made = settings(checkpoint_interval_s=0.02, snapshot_interval_s=0.02, log_archive=True)
    stream = batches(ENTRIES, n=3)
    stream[2::8] = [refused_batch()] * len(stream[2::8])
    await append_all(made, stream)
    expected = expected_digest(redis_server)

    told = run_points(made)

    points = sorted({one["point"] for one in told} - {""})
    say(f"{len(told) - 1} deaths at {len(points)} points:\n" + "\n".join(points))
    for part in ("attempt", "checkpoints", "snapshots", "archive", "redis XTRIM", "redis HSET"):
        assert any(part in point for point in points), part
    assert [one for one in told if one["point"] and not one["died"]] == []
    assert [one for one in told if one["digest"] != expected] == []


def run_points(settings: Settings) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.chaos.points"],
        env=child_environment(settings),
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    (settings.state_dir.parent / "points.log").write_bytes(done.stderr)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]
