"""The same stream over HTTP and straight into the library gives bit-equal state, kills included."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import learner
from service.client import Client
from service.engine.levit import LevitEngine
from service.engine.protocol import Array
from service.inputs import InputSchema
from service.settings import Settings
from service.worker.checkpoints import Checkpoints
from tests.log_entries import digest

LEARNER: dict[str, dict[str, object]] = {
    "paper": {
        "preset": "paper",
        "capacity": 40,
        "replay_per_batch": 118,
        "threshold": 0.3,
        "learning_rate": 3e-3,
        "worker_threads": 1,
        "device": "cpu",
    },
    "default": {
        "capacity": 60,
        "budget": 8,
        "statistics_bytes": 2**20,
        "false_expansion_probability": 0.5,
        "false_expansion_horizon": 100,
        "worker_threads": 1,
    },
}
OPERATION = {"checkpoint_interval_s": 0.2, "snapshot_interval_s": 0.2, "worker_metrics_port": 0}


def _stream(channels: int, batches: int) -> Iterator[tuple[Array, NDArray[np.int64] | None]]:
    """Yield mini-batches of 10, two classes at a time, every seventh without labels."""
    generator = np.random.default_rng(7)
    patterns = generator.integers(0, 200, (8, 8, 8, channels))
    for number in range(batches):
        y = 2 * (4 * number // batches) + generator.integers(0, 2, 10)
        x = (patterns[y] + generator.integers(0, 56, (10, 8, 8, channels))).astype(np.uint8)
        yield x, None if number % 7 == 6 else y


def _learner(preset: str, shape: tuple[int, int, int]) -> learner.LEViT | learner.AdaptiveLEViT:
    """Return the library's own learner with the same hyper-parameters."""
    if preset == "paper":
        config = learner.paper(shape, capacity=40, per_batch=118, threshold=0.3, learning_rate=3e-3)
        return learner.LEViT(config)
    adaptive = learner.AdaptiveConfig(
        input_shape=shape,
        capacity=60,
        budget=8.0,
        statistics_bytes=2**20,
        replay_bytes=512 * 2**20,
        false_expansion_probability=0.5,
        horizon=100,
    )
    return learner.AdaptiveLEViT(adaptive)


def _straight(preset: str, channels: int, batches: int) -> str:
    """Return the digest of the library's own learner after the same stream; no service in it."""
    torch.set_num_threads(1)
    levit = _learner(preset, (channels, 8, 8))
    for x, y in _stream(channels, batches):
        x_BCHW = torch.from_numpy(x).permute(0, 3, 1, 2).contiguous()
        levit.observe(x_BCHW, None if y is None else torch.from_numpy(y))
    return digest(LevitEngine(levit, InputSchema("image", (8, 8, channels))).dump())


@contextmanager
def _serving(state_dir: Path, learning: dict[str, object]) -> Iterator[tuple[Client, int]]:
    """Run `levit serve` on a free port; yield a client and the supervisor's process id."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = learning | OPERATION | {"state_dir": state_dir, "port": port, "insecure": True}
    environment = os.environ | {f"LEVIT_{k.upper()}": str(v) for k, v in options.items()}
    command = [sys.executable, "-m", "service", "serve"]
    with (
        subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process,
        Client(f"http://127.0.0.1:{port}", timeout_s=30) as client,
    ):
        try:
            while not client.ready():
                assert process.poll() is None
                time.sleep(0.1)
            yield client, process.pid
        finally:
            process.terminate()
            process.wait(timeout=30)


def _worker_of(supervisor: int) -> int | None:
    children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
    for child in children:
        if "worker" in Path(f"/proc/{child}/cmdline").read_text().split("\0"):
            return int(child)
    return None


def _kill_worker(supervisor: int) -> None:
    while (worker := _worker_of(supervisor)) is None:
        time.sleep(0.05)
    os.kill(worker, signal.SIGKILL)


@pytest.mark.crash
@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("preset", "channels", "batches", "kills"),
    [
        pytest.param("paper", 3, 60, 0, id="paper, colour"),
        pytest.param("paper", 1, 120, 2, id="paper, grey, worker killed twice"),
        pytest.param("default", 3, 60, 0, id="default, colour"),
        pytest.param("default", 1, 120, 2, id="default, grey, worker killed twice"),
    ],
)
def test_http_and_library_end_in_equal_bytes(
    state_dir: Path, preset: str, channels: int, batches: int, kills: int
) -> None:
    stream = list(_stream(channels, batches))
    with _serving(state_dir, LEARNER[preset]) as (client, supervisor):
        receipts = [client.observe(x, labels) for x, labels in stream]
        for receipt in receipts[batches // 3 :: batches // 3][:kills]:
            client.wait_until_learned(receipt, timeout_s=60)
            _kill_worker(supervisor)
        client.wait_until_learned(receipts[-1], timeout_s=90)
        status = client.observation(receipts[40].batch_id)

    checkpoints = Checkpoints(Settings.read(state_dir=state_dir, **LEARNER[preset]))
    checkpoint = checkpoints.read(next(checkpoints.newest_first()))

    assert checkpoint.progress.learned == batches
    assert digest(checkpoint.state) == _straight(preset, channels, batches)
    assert len(checkpoint.state.frozen) > 0
    assert (status.state, status.step) == ("learned", 41)
