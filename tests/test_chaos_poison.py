"""A batch that kills whoever learns it: set aside at the fourth start, everything else learned."""

from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.chaos.clients import Acked
from tests.chaos.load import Load, load
from tests.chaos.parts import TOY_WORKER, chaos_settings
from tests.chaos.workload import Workload

pytestmark = [pytest.mark.crash, pytest.mark.timeout(120)]


def state_of(run: Load, one: Acked) -> dict[str, Any]:
    """Return what the service says of a batch."""
    told: dict[str, Any] = httpx.get(f"{run.service.url}/observations/{one.batch_id}").json()
    return told


def test_a_batch_that_kills_the_worker_three_times_is_quarantined_with_its_reason(
    tmp_path: Path,
) -> None:
    workload = Workload(deadly=frozenset({(1, 30)}))

    with load(chaos_settings(tmp_path), workload, worker=(*TOY_WORKER, "mortal")) as run:
        while len(run.clients[1].acked) <= 30:
            run.until_acked(1)
        deadly = run.clients[1].acked[30]
        while (told := state_of(run, deadly))["state"] == "queued":
            run.go_on(0.1)
        verdict = run.end()

    assert run.service.unexpected == ["worker ended by itself with -9"] * 3
    assert told["state"] == "quarantined"
    assert "died 3 times" in told["reason"]
    assert verdict.violations == []
    assert run.prober.found.failures == []
