"""500 batches of noise, each unlike all before: experts stay within their cap, memory with them."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.engine.levit import LevitEngines
from service.inputs import InputSchema
from service.settings import Settings

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

BATCHES, CAP = 500, 4
SETTLED = 200
"""Batches after which what is held has its size."""
RISE_MB = 32.0
EAGER: dict[str, dict[str, Any]] = {
    "default": {
        "preset": "default",
        "statistics_bytes": 2**20,
        "capacity": 120,
        "budget": 4,
        "false_expansion_probability": 0.5,
        "false_expansion_horizon": 100,
    },
    "paper": {"preset": "paper", "capacity": 20, "threshold": 0.01, "replay_per_batch": 10},
}
"""Settings that expand on little evidence, and would after almost every change."""


def bombed(preset: str, cap: int) -> dict[str, float]:
    """Return what a learner has become of the noise, and by how many MB it grew at the end."""
    engine = LevitEngines(threads=1).create(
        Settings.read(max_experts=cap, **EAGER[preset]), InputSchema.parse("vector:8")
    )
    generator = np.random.default_rng(0)
    before, centre = 0.0, np.zeros(8)
    for number in range(BATCHES):
        if number % 10 == 0:
            centre = generator.normal(0, 5 + number, 8)
        x = (centre + generator.normal(0, 1, (10, 8))).astype(np.float32)
        engine.observe((number + 1, 0), x, generator.integers(0, 4, 10))
        if number == SETTLED:
            before = _resident_mb()
    summary = engine.summary()
    return {
        "experts": len(summary.experts),
        "refused": sum(summary.expansions_refused.values()),
        "rise_mb": _resident_mb() - before,
    }


def _resident_mb() -> float:
    said = Path("/proc/self/status").read_text(encoding="utf-8")
    found = re.search(r"VmRSS:\s+(\d+)", said)
    assert found is not None
    return int(found[1]) / 1024


def _bombed_alone(preset: str, cap: int) -> dict[str, float]:
    """Return the same of a process of its own, whose memory nothing else fills."""
    program = (
        f"import json, tests.test_expert_bomb as t; print(json.dumps(t.bombed({preset!r}, {cap})))"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.PIPE)
    found: dict[str, float] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("preset", EAGER)
def test_experts_stay_within_the_cap_and_what_is_refused_is_counted(preset: str) -> None:
    found = _bombed_alone(preset, CAP)

    assert found["experts"] <= CAP
    assert found["refused"] >= 1
    assert found["rise_mb"] <= RISE_MB


@pytest.mark.parametrize("preset", EAGER)
def test_with_a_higher_cap_there_would_be_more(preset: str) -> None:
    assert _bombed_alone(preset, 3 * CAP)["experts"] > CAP
