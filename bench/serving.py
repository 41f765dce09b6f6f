"""/predict beside LitServe and plain FastAPI, serving the same torch model in the same run.

    LEVIT_DATA=... python -m bench.serving --data mnist

A service learns `--train` samples, class by class; its snapshot is then served by each
server in turn, single images as JSON, load by wrk on the same machine. Rounds alternate, and each
number is the median of the rounds. The service is measured once more while it learns, and its
learning once more without load: what serving and training cost each other. Needs wrk, and LitServe
from bench/peers/requirements.txt; what is missing is left out and named.
"""

import argparse
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from bench import command
from service.client import Client
from service.demo.data import DemoData
from service.demo.process import STATE_DIR, free_port, running_service

CONCURRENCIES = (1, 16, 64)
AHEAD = 200
"""Batches sent ahead of what is learned: enough that the worker never idles."""
LEARN_S = 900
"""Longest wait until the samples are learned."""
START_S = 60
"""Longest wait for a server."""
WARM_UP_S = 1
"""Of load before each round, not counted."""
LOADING_S = 10
"""Until a server that listens has its model, too."""
PEERS = ("litserve", "fastapi")
LOADED = "service, learning"
_RATE = re.compile(r"Requests/sec:\s+([\d.]+)")
_P99 = re.compile(r"99%\s+([\d.]+)(us|ms|s)")
_FAILED = re.compile(r"Non-2xx or 3xx responses: (\d+)")
_MS = {"us": 1e-3, "ms": 1.0, "s": 1e3}


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """One round of wrk."""

    server: str
    concurrency: int
    per_s: float
    p99_ms: float


@dataclass(frozen=True, slots=True)
class Peer:
    """Another server; asleep while it is not measured, as an idle LitServe polls its queues."""

    url: str
    group: int
    """Of its processes."""

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Let its processes run."""
        os.killpg(self.group, signal.SIGCONT)
        try:
            yield
        finally:
            os.killpg(self.group, signal.SIGSTOP)


def main() -> None:
    """Measure and print."""
    options = parse_options()
    if shutil.which("wrk") is None:
        raise command.NotMeasured("expected wrk on PATH (Debian has it), got none")
    data = command.data_of(options, samples=options.train)
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory() as directory, Progress(console=console) as bar:
        script = _script(Path(directory), data)
        found, alone, beside = measure(options, data, script, bar)
    Console().print(table(found))
    print(f"samples learned per second: {alone:.0f} alone, {beside:.0f} under load")  # noqa: T201
    numbers = [asdict(one) for one in found]
    command.write_numbers(options, {"loads": numbers, "learned_per_s": [alone, beside]})


def measure(
    options: argparse.Namespace, data: DemoData, script: Path, bar: Progress
) -> tuple[list[Load], float, float]:
    """Return every round, and samples learned per second without load and under it."""
    peers = [name for name in PEERS if importlib.util.find_spec(name) is not None]
    rounds = options.rounds * len(CONCURRENCIES) * (len(peers) + 2)
    task = bar.add_task("rounds", total=rounds)
    found: list[Load] = []

    def load(server: str, url: str, concurrency: int) -> None:
        _wrk(server, url, concurrency, WARM_UP_S, script)
        found.append(_wrk(server, url, concurrency, options.seconds, script))
        bar.advance(task)

    with running_service({"api_threads": options.processes}) as url:
        _learn(url, data)
        with _peers(peers, options.processes) as served:
            for _ in range(options.rounds):
                for concurrency in CONCURRENCIES:
                    load("service", url, concurrency)
                    for server, peer in served.items():
                        with peer.awake():
                            load(server, peer.url, concurrency)
        with learning(url, data) as rate:
            alone = rate(options.seconds * 3)
            started, before = time.monotonic(), _learned(url)
            for _ in range(options.rounds):
                for concurrency in CONCURRENCIES:
                    load(LOADED, url, concurrency)
            beside = (_learned(url) - before) / (time.monotonic() - started)
    return found, alone, beside


def table(found: list[Load]) -> Table:
    """Return the medians, each beside the service's own."""
    columns = ("requests", "server", "per second", "of service", "p99 ms", "service / its p99")
    shown = Table(*columns, title="/predict, single images as JSON")
    for concurrency in CONCURRENCIES:
        rows = {one.server: _median(found, one.server, concurrency) for one in found}
        rate, p99 = rows["service"]
        for server, (per_s, p99_ms) in rows.items():
            ratios = f"{per_s / rate:.2f}", f"{p99_ms:.1f}", f"{p99 / p99_ms:.2f}"
            shown.add_row(str(concurrency), server, f"{per_s:.0f}", *ratios)
    return shown


def _median(found: list[Load], server: str, concurrency: int) -> tuple[float, float]:
    same = [one for one in found if (one.server, one.concurrency) == (server, concurrency)]
    return statistics.median(o.per_s for o in same), statistics.median(o.p99_ms for o in same)


def _script(directory: Path, data: DemoData) -> Path:
    """Write what wrk is to send: a few images in turn."""
    images = data.x_test[np.linspace(0, len(data.x_test) - 1, 16).astype(int)]
    bodies = [json.dumps({"x": image[np.newaxis].tolist()}) for image in images]
    path = directory / "post.lua"
    path.write_text(
        f"local bodies = {{{','.join(f'[=[{body}]=]' for body in bodies)}}}\n"
        "local turn = 0\n"
        'wrk.method = "POST"\n'
        'wrk.headers["Content-Type"] = "application/json"\n'
        "function request()\n"
        "  turn = turn % #bodies + 1\n"
        "  return wrk.format(nil, nil, nil, bodies[turn])\n"
        "end\n"
    )
    return path


def _wrk(server: str, url: str, concurrency: int, seconds: int, script: Path) -> Load:
    said = subprocess.run(  # noqa: S603  numbers and our own paths
        [
            *("wrk", "--latency", "-t1", f"-c{concurrency}", f"-d{seconds}s"),
            *("-s", str(script), f"{url}/predict"),
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    rate, p99, failed = _RATE.search(said), _P99.search(said), _FAILED.search(said)
    if rate is None or p99 is None or failed is not None:
        raise command.NotMeasured(f"{server} did not answer every request: {said}")
    p99_ms = float(p99[1]) * _MS[p99[2]]
    return Load(server=server, concurrency=concurrency, per_s=float(rate[1]), p99_ms=p99_ms)


def _learn(url: str, data: DemoData) -> None:
    with Client(url) as client:
        receipts = [client.observe(data.x_train[b], data.y_train[b]) for b in _batches(data)]
        client.wait_until_learned(receipts[-1], timeout_s=LEARN_S)


def _batches(data: DemoData) -> list[slice]:
    return [slice(at, at + data.batch_size) for at in range(0, len(data.x_train), data.batch_size)]


def _learned(url: str) -> int:
    with Client(url) as client:
        return int(client.experts()["samples_learned"])


@contextmanager
def learning(url: str, data: DemoData) -> Iterator[Callable[[float], float]]:
    """Keep the service learning; yield what tells samples learned per second over a while."""
    stop = threading.Event()

    def feed() -> None:
        """Observe, never far ahead of what is learned."""
        with Client(url) as client:
            for batch in cycle(_batches(data)):
                receipt = client.observe(data.x_train[batch], data.y_train[batch])
                while receipt.backlog > AHEAD and not stop.wait(0.2):
                    receipt = client.observe(data.x_train[batch], data.y_train[batch])
                if stop.is_set():
                    return

    def rate(seconds: float) -> float:
        """Return the samples learned per second."""
        before, started = _learned(url), time.monotonic()
        time.sleep(seconds)
        return (_learned(url) - before) / (time.monotonic() - started)

    thread = threading.Thread(target=feed)
    thread.start()
    try:
        yield rate
    finally:
        stop.set()
        thread.join()


@contextmanager
def _peers(names: list[str], processes: int) -> Iterator[dict[str, Peer]]:
    """Serve the newest snapshot with each of them; yield them asleep."""
    ports = {name: free_port(8100 + at) for at, name in enumerate(names)}
    children = [
        subprocess.Popen(  # noqa: S603  our own module
            [
                *(sys.executable, "-m", "bench.peers.served"),
                *(name, str(STATE_DIR), str(port), str(processes)),
            ],
            start_new_session=True,
        )
        for name, port in ports.items()
    ]
    try:
        for port in ports.values():
            _wait_for(port)
        time.sleep(LOADING_S)
        pairs = zip(ports.items(), children, strict=True)
        served = {name: Peer(f"http://127.0.0.1:{port}", one.pid) for (name, port), one in pairs}
        for peer in served.values():
            os.killpg(peer.group, signal.SIGSTOP)
        yield served
    finally:
        for child in children:  # with the processes that it has started: LitServe leaves them
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise command.NotMeasured(f"nothing listens on port {port} after {START_S} s")


def parse_options() -> argparse.Namespace:
    """Return the options of the command line."""
    options = command.parser(__doc__)
    options.add_argument("--train", type=int, default=2000, help="samples learned before")
    options.add_argument("--seconds", type=int, default=8, help="of each round")
    options.add_argument("--rounds", type=int, default=3, help="of which the median counts")
    options.add_argument(
        "--processes", type=int, default=1, help="that compute, of the service and of LitServe"
    )
    return options.parse_args()


if __name__ == "__main__":
    command.run(main)
