"""With all promises on, the service still takes what a small machine can send."""

from pathlib import Path

import pytest

from service.store.server import bundled_binary
from tests.chaos.report import say
from tests.chaos.throughput import FEWEST_PER_S, P99_MS, throughput
from tests.patience import BUSY

pytestmark = [pytest.mark.crash, pytest.mark.timeout(180)]


def test_sixty_batches_of_196_kb_a_second_are_acknowledged(tmp_path: Path) -> None:
    found = throughput(6, tmp_path, bundled_binary())

    say(str(found))
    assert found.violations == []
    assert found.refused == 0
    assert found.per_s > FEWEST_PER_S / BUSY
    assert found.p99_ms < P99_MS * BUSY
