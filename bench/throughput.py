"""How much of the learner's own speed is left when it learns from the log.

    LEVIT_DATA=... python -m bench.throughput --data mnist

Three ways, in turns, the same samples, settings (those of the environment, on the CPU) and number
of threads; none counts the start of a process:
  direct   the learner behind one thin call, `LevitEngine.observe` in a loop: what it can do at most
  drain    the worker's own loop on a filled log, in this process, on a real Redis with fsync on
           every write: reading, checking, counting, checkpoints, replay write-through, snapshots
  http     `levit serve` with one client that posts batch after batch, until all is learned; from
           the second batch on, as the first only shows that both processes are up
Quoted is the median of the ratio drain / direct over the turns.
"""

import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from prometheus_client import CollectorRegistry
from rich.console import Console
from rich.progress import track
from rich.table import Table

from bench import command
from service.client import Client
from service.engine.levit import LevitEngines
from service.engine.protocol import Array
from service.errors import SettingsError
from service.inputs import InputSchema
from service.metrics import WorkerMetrics
from service.settings import Settings
from service.store.server import EmbeddedServer
from service.worker.loop import Worker

Batches = list[tuple[Array, Array]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One batch size; rates in samples per second, medians over the turns."""

    batch: int
    samples: int
    replayed_per_batch: int
    threads: int
    turns: int
    direct: float
    drain: float
    drain_over_direct: float
    http: float
    experts: int


def measure(x: Array, y: Array, *, batch: int, threads: int, turns: int) -> Result:
    """Return the rates for one batch size."""
    batches = [(x[i : i + batch], y[i : i + batch]) for i in range(0, len(x), batch)]
    direct, drain = [], []
    for _ in track(range(turns), description=f"batches of {batch}"):
        direct.append(len(x) / _direct(batches, threads))
        drain.append(len(x) / _drain(batches, threads))
    http, experts = _http(batches, threads)
    return Result(
        batch=batch,
        samples=len(x),
        replayed_per_batch=_settings(threads).replay_per_batch,
        threads=threads,
        turns=turns,
        direct=statistics.median(direct),
        drain=statistics.median(drain),
        drain_over_direct=statistics.median(b / a for a, b in zip(direct, drain, strict=True)),
        http=http,
        experts=experts,
    )


def _settings(threads: int, **places: object) -> Settings:
    """Return what all three ways obey.

    Raises:
        SettingsError: a Redis was named, which these batches would fill.
    """
    fixed = {"device": "cpu", "worker_threads": threads, "worker_metrics_port": 0}
    settings = Settings.read(max_backlog=10**9, **fixed, **places)
    if settings.redis_url is not None:
        raise SettingsError(
            "LEVIT_REDIS_URL: expected none, as this writes to a server of its own; unset it"
        )
    return settings


def _direct(batches: Batches, threads: int) -> float:
    """Return the seconds that the learner needs by itself."""
    schema = InputSchema.of(batches[0][0])
    engine = LevitEngines(threads=threads).create(_settings(threads), schema)
    started_at = time.perf_counter()
    for number, (x, y) in enumerate(batches, start=1):
        engine.observe((number, 0), schema.canonical(x), y)
    return time.perf_counter() - started_at


@contextmanager
def _filled_log(batches: Batches, threads: int) -> Iterator[Settings]:
    """Start a server whose log holds all batches; yield the settings of its state directory."""
    with tempfile.TemporaryDirectory() as home:
        settings = _settings(threads, state_dir=Path(home))
        server = EmbeddedServer(settings)
        server.start()
        try:
            with _process("api", settings, _free_port()) as client:
                for x, y in batches:
                    client.observe(x, y)
            yield settings
        finally:
            server.stop()


def _drain(batches: Batches, threads: int) -> float:
    """Return the seconds that the worker's loop needs for a filled log, its last save included."""
    with _filled_log(batches, threads) as settings:
        worker = Worker(settings, LevitEngines(threads=threads), WorkerMetrics(CollectorRegistry()))
        done = threading.Event()

        def stop_when_done() -> None:
            while worker.consumed < len(batches):
                time.sleep(0.005)
            worker.stop()
            done.set()

        watcher = threading.Thread(target=stop_when_done, daemon=True)
        started_at = time.perf_counter()
        watcher.start()
        worker.run()
        elapsed_s = time.perf_counter() - started_at
        done.wait()
        worker.close()
        return elapsed_s


def _http(batches: Batches, threads: int) -> tuple[float, int]:
    """Return samples per second from the second request until all is learned, and the experts."""
    with tempfile.TemporaryDirectory() as home:
        settings = _settings(threads, state_dir=Path(home))
        with _process("serve", settings, _free_port()) as client:
            # The first model says that both processes have imported torch.
            client.wait_until_learned(client.observe(*batches[0]), timeout_s=120)
            started_at = time.perf_counter()
            receipts = [client.observe(x, y) for x, y in batches[1:]]
            client.wait_until_learned(receipts[-1], timeout_s=3600)
            elapsed_s = time.perf_counter() - started_at
            samples = sum(receipt.n for receipt in receipts)
            return samples / elapsed_s, len(client.experts()["experts"])


@contextmanager
def _process(name: str, settings: Settings, port: int) -> Iterator[Client]:
    """Run a `levit` command with these settings; yield a client once it is ready."""
    made: Mapping[str, object] = settings.model_dump(mode="json", exclude_unset=True)
    environment = os.environ | {f"LEVIT_{k.upper()}": str(v) for k, v in made.items()}
    environment |= {"LEVIT_PORT": str(port), "LEVIT_INSECURE": "true"}
    with subprocess.Popen(  # noqa: S603  our own module
        [sys.executable, "-m", "service", name], env=environment, stderr=subprocess.DEVNULL
    ) as process:
        try:
            with Client(f"http://127.0.0.1:{port}", timeout_s=60) as client:
                while not client.ready():
                    time.sleep(0.05)
                yield client
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


def main() -> None:
    """Measure and print a table; with --json also write the numbers."""
    options = command.parser(__doc__)
    options.add_argument("--batch", type=int, nargs="+", default=[100, 10], help="batch sizes")
    options.add_argument("--samples", type=int, default=6000, help="samples per turn")
    options.add_argument("--turns", type=int, default=3, help="turns of direct and drain")
    options.add_argument("--threads", type=int, default=1, help="CPU threads of the learner")
    chosen = options.parse_args()
    _settings(chosen.threads)  # refuses before the data are read
    data = command.data_of(chosen, samples=chosen.samples)
    x, y = data.x_train, data.y_train.astype(np.int64)
    if len(x) <= max(chosen.batch):
        options.error(f"expected more than one batch, got {len(x)} samples in all")
    results = [
        measure(x, y, batch=batch, threads=chosen.threads, turns=chosen.turns)
        for batch in chosen.batch
    ]
    table = Table("batch", "replayed", "direct/s", "drain/s", "drain/direct", "http/s", "experts")
    for r in results:
        rates = [f"{rate:,.0f}" for rate in (r.direct, r.drain)]
        ratio = f"{r.drain_over_direct:.1%}"
        row = [str(r.batch), str(r.replayed_per_batch), *rates, ratio, f"{r.http:,.0f}"]
        table.add_row(*row, str(r.experts))
    Console().print(table)
    command.write_numbers(chosen, [asdict(r) for r in results])


if __name__ == "__main__":
    command.run(main)
