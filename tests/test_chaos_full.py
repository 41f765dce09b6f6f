"""Disk or memory full: refused in time, nothing acknowledged is lost, all recovers alone."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from service.store.link import connect
from service.store.server import bundled_binary
from tests.chaos.load import load
from tests.chaos.parts import chaos_settings, counts
from tests.chaos.report import say
from tests.chaos.workload import Workload
from tests.patience import BUSY
from tests.system_packages import require

pytestmark = [pytest.mark.crash, pytest.mark.timeout(240)]

DISK_AGAIN_S, MEMORY_AGAIN_S = 15.0, 10.0
"""Promised times from room to a 202."""
MakeDisk = Callable[[str, int], Path]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[MakeDisk]:
    """A function that mounts a file system of so many bytes; skips where that is not permitted."""
    mounted: list[Path] = []

    def make(name: str, size: int) -> Path:
        path = tmp_path / name
        path.mkdir()
        options = f"size={size}"
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", path],  # noqa: S607  found on PATH
            capture_output=True,
            check=False,
        )
        if done.returncode:
            pytest.skip(f"mounting a tmpfs is not permitted: {done.stderr.decode().strip()}")
        mounted.append(path)
        return path

    yield make
    for path in mounted:
        subprocess.run(["umount", "--lazy", path], check=True)  # noqa: S607  found on PATH


@pytest.fixture(params=["embedded", "debian"])
def binary(request: pytest.FixtureRequest) -> Path:
    """A Redis server: the bundled one, then Debian's."""
    return bundled_binary() if request.param == "embedded" else Path(require("redis-server"))


def fill(disk: Path) -> Path:
    """Write a file until nothing more fits; return it."""
    ballast = disk / "ballast"
    with ballast.open("ab", buffering=0) as file:
        for size in (2**16, 2**10, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue
    return ballast


def test_with_redis_and_state_on_a_full_disk_nothing_acknowledged_is_lost(
    tmp_path: Path, small_disk: MakeDisk, binary: Path
) -> None:
    disk = small_disk("disk", 12 * 2**20)
    settings = chaos_settings(tmp_path, state_dir=disk, disk_floor_bytes=0)

    with load(settings, Workload(), binary=binary) as run:
        run.until_acked(100)
        fill(disk)
        run.until_refused()
        for _ in range(5):  # what the worker drops makes room once more
            run.go_on(1)
            fill(disk)
        (disk / "ballast").unlink()
        again_s = run.until_acked(1)
        run.until_acked(50)
        verdict = run.end()

    say(
        f"full disk: 202 again after {again_s:.2f} s; {len(run.service.unexpected)} deaths of Redis"
    )
    assert verdict.violations == []
    assert set(run.statuses()) <= {202, 503}
    assert run.prober.found.failures == []
    assert [death for death in run.service.unexpected if "redis" not in death] == []
    assert again_s < BUSY * DISK_AGAIN_S


def test_with_checkpoints_on_a_full_disk_the_worker_waits_and_goes_on(
    tmp_path: Path, small_disk: MakeDisk
) -> None:
    disk = small_disk("disk", 4 * 2**20)
    redis = chaos_settings(tmp_path / "elsewhere")
    settings = chaos_settings(
        tmp_path, state_dir=disk, redis_url=redis.redis_url, disk_floor_bytes=0
    )

    with load(settings, Workload(), redis_at=redis) as run:
        run.until_acked(100)
        fill(disk)
        run.go_on(3)
        fill(disk)
        run.go_on(2)
        (disk / "ballast").unlink()
        freed_at, (_, before) = time.monotonic(), counts(run.service.redis.url)
        while counts(run.service.redis.url)[1] == before:
            run.go_on(0.05)
        learned_s = time.monotonic() - freed_at
        verdict = run.end()

    say(f"full disk of the checkpoints: learning again after {learned_s:.2f} s")
    assert verdict.violations == []
    assert set(run.statuses()) <= {202, 503}
    assert run.prober.found.failures == []
    assert run.service.unexpected == []


def test_with_redis_memory_full_batches_are_refused_before_redis_refuses_and_taken_again(
    tmp_path: Path, binary: Path
) -> None:
    settings = chaos_settings(tmp_path, redis_maxmemory_bytes=64 * 2**20, replay_bytes=16 * 2**20)
    big = Workload(schema="image:32x32x3", fewest=64, most=64)

    with load(settings, big, binary=binary) as run:
        os.kill(run.service.worker.pid, signal.SIGSTOP)
        run.until_refused()
        run.go_on(2)
        redis = connect(run.service.redis.url)
        oom = redis.info("errorstats").get("errorstat_OOM")
        full = redis.info("memory")
        redis.close()
        os.kill(run.service.worker.pid, signal.SIGCONT)
        again_s = run.until_acked(1)
        verdict = run.end()

    share = full["used_memory"] / full["maxmemory"]
    say(f"memory full at {share:.0%} of maxmemory: 202 again {again_s:.2f} s after SIGCONT")
    assert oom is None
    assert verdict.violations == []
    assert set(run.statuses()) <= {202, 503}
    assert run.prober.found.failures == []
    assert run.service.unexpected == []
    assert again_s < BUSY * MEMORY_AGAIN_S
