"""Signals at random moments: SIGTERM loses nothing, a paused or superseded worker does no harm."""

import random
import signal
import time
from pathlib import Path

import pytest

from service.store.link import connect
from service.store.names import DEFAULT as names
from tests.chaos.clients import until_up
from tests.chaos.load import load
from tests.chaos.parts import Part, chaos_settings, counts, newest_checkpoint
from tests.chaos.report import say
from tests.chaos.workload import Workload
from tests.patience import BUSY

pytestmark = [pytest.mark.crash, pytest.mark.timeout(240)]

STOPPED_S, REFUSED_S = 10.0, 2.0
"""Promised: the end after SIGTERM, and the exit of a second worker."""
STARTED = b'"started"'
"""What a worker logs once it listens to signals."""


@pytest.mark.parametrize("name", ["worker", "api"])
def test_ten_sigterms_at_random_moments_lose_nothing_and_end_with_0(
    tmp_path: Path, name: str
) -> None:
    moments = random.Random(0)  # noqa: S311  no secret
    ended: list[tuple[int, float]] = []

    with load(chaos_settings(tmp_path), Workload()) as run:
        part = run.service.parts[name]
        for _ in range(10):
            run.go_on(moments.uniform(0.0, 0.8))
            if name == "api":
                until_up(run.service.settings.port)
            else:
                part.says(STARTED)
            ended.append(part.stop())
            run.service.tend()
        verdict = run.end()

    slowest_s = max(seconds for _, seconds in ended)
    say(f"SIGTERM of {name} x 10: slowest {slowest_s:.2f} s")
    assert [code for code, _ in ended] == [0] * 10
    assert slowest_s < BUSY * STOPPED_S
    assert verdict.violations == []
    assert run.service.unexpected == []


def test_what_a_worker_learned_before_sigterm_is_not_learned_again(tmp_path: Path) -> None:
    with load(chaos_settings(tmp_path, checkpoint_interval_s=1000), Workload()) as run:
        run.until_acked(50)
        assert run.service.worker.stop()[0] == 0
        saved = newest_checkpoint(run.service.settings).progress
        told = counts(run.service.redis.url)[1]
        run.service.tend()
        verdict = run.end()

    assert saved.consumed == told > 0
    assert verdict.violations == []


def test_a_worker_beside_a_paused_one_exits_75_and_both_do_no_harm(tmp_path: Path) -> None:
    with load(chaos_settings(tmp_path), Workload()) as run:
        first = run.service.worker
        first.signal(signal.SIGSTOP)
        second = first.beside(tmp_path / "second.log")
        started_at = time.monotonic()
        second.start()
        code, took_s = second.wait(), time.monotonic() - started_at
        first.signal(signal.SIGCONT)
        verdict = run.end()

    say(f"a second worker exits after {took_s:.2f} s, start of Python included")
    assert code == 75
    assert took_s < BUSY * REFUSED_S
    assert verdict.violations == []
    assert run.service.unexpected == []


def test_a_worker_whose_lock_was_taken_away_writes_nothing_once_a_later_one_runs(
    tmp_path: Path,
) -> None:
    with load(chaos_settings(tmp_path), Workload()) as run:
        first = run.service.worker
        first.signal(signal.SIGSTOP)
        (run.service.settings.state_dir / "worker.lock").unlink()  # as on a broken file system
        second = first.beside(tmp_path / "second.log")
        second.start()
        second.says(b'"restored"')
        run.until_acked(50)
        first.signal(signal.SIGCONT)
        code = first.wait()
        run.service.worker = run.service.parts["worker"] = second
        verdict = run.end()

    assert code == 75
    assert verdict.violations == []
    assert run.service.unexpected == []


def newest(checkpoints: Path) -> str:
    """Return the name of the newest checkpoint; "" before the first."""
    return max((path.name for path in checkpoints.glob("ckpt-*")), default="")


def stop_behind_a_checkpoint(worker: Part, checkpoints: Path) -> None:
    """Stop a worker when it has just committed a checkpoint, so not while it commits the next."""
    before = newest(checkpoints)
    while newest(checkpoints) == before:
        time.sleep(0.001)
    worker.signal(signal.SIGSTOP)


def test_a_worker_with_a_stale_epoch_commits_nothing_and_exits_75(tmp_path: Path) -> None:
    with load(chaos_settings(tmp_path), Workload()) as run:
        worker, checkpoints = run.service.worker, run.service.settings.state_dir / "checkpoints"
        stop_behind_a_checkpoint(worker, checkpoints)
        redis = connect(run.service.redis.url)
        redis.incr(names.epoch)
        redis.close()
        before = counts(run.service.redis.url)[1], newest(checkpoints)
        worker.expected_to_die = True
        worker.signal(signal.SIGCONT)
        code = worker.wait()
        after = counts(run.service.redis.url)[1], newest(checkpoints)
        verdict = run.end()

    assert code == 75
    assert after == before
    assert verdict.violations == []
    assert run.service.unexpected == []
