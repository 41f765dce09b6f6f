"""Two minutes of undisturbed load: nothing grows that must not. `make soak` runs thirty."""

from pathlib import Path

import pytest
from rich.console import Console

from service.store.server import bundled_binary
from tests.chaos import soak

pytestmark = [pytest.mark.soak, pytest.mark.timeout(400)]


def test_two_minutes_of_load_leave_memory_files_threads_and_redis_as_they_were(
    tmp_path: Path,
) -> None:
    found = soak.soak(120, tmp_path, bundled_binary())

    Console(width=110).print(soak.table(found))
    assert found.violations == []
    assert found.verdict.acked > 1000
