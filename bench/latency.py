"""Latency of /predict with single images while training runs, against a running service.

    LEVIT_DATA=... python -m bench.latency --data mnist --url http://127.0.0.1:8000

One thread observes batches in class order, ahead of what is learned; others predict one image
each, over and over, each on a connection of its own: a closed loop. Latency is what the
client sees, from the first byte sent to the last byte read, of requests that got their answer;
refusals, time-outs and lost connections are counted as errors. The load shares the machine with
the service unless --url says otherwise.
"""

import argparse
import http.client
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import cycle
from urllib.parse import urlsplit

import numpy as np
from rich.console import Console
from rich.table import Table

from bench import command
from service.client import Client
from service.demo.data import DemoData
from service.engine.protocol import Array
from service.store.entry import encode

AHEAD = 200
"""Batches that are sent ahead of the served model: enough that the worker never idles."""
BODIES = 64
"""Different images that each predicting thread goes through."""
FIRST_MODEL_S = 120
"""Longest wait for the first model."""
TIMEOUT_S = 30
"""Longest wait for one answer."""
PAUSE_S = 0.1
"""Wait after a lost connection, so that a service that is away is not hammered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What was measured; times in milliseconds."""

    concurrency: int
    seconds: float
    answered: int
    """Requests answered with 200; rate and latencies are theirs."""
    errors: int
    """Requests refused, timed out or cut off."""
    answered_per_s: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    max_ms: float
    samples_learned: int
    """While it was measured: shows that training did run."""
    models_served: int
    experts: int


@dataclass(slots=True)
class Load:
    """What the predicting threads share."""

    address: str
    body_type: str
    stop: threading.Event = field(default_factory=threading.Event)
    latencies_s: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def predict(self, bodies: list[bytes]) -> None:
        """Predict the bodies in turn until told to stop."""
        where = urlsplit(self.address)
        connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=TIMEOUT_S)
        for body in cycle(bodies):
            if self.stop.is_set():
                break
            try:
                self._predict_one(connection, body)
            except (OSError, http.client.HTTPException) as lost:
                self.errors.append(f"{type(lost).__name__}: {lost}")
                connection.close()  # the next request connects anew
                self.stop.wait(PAUSE_S)
        connection.close()

    def _predict_one(self, connection: http.client.HTTPConnection, body: bytes) -> None:
        started = time.perf_counter()
        connection.request("POST", "/predict", body, {"Content-Type": self.body_type})
        answer = connection.getresponse()
        said = answer.read()
        elapsed_s = time.perf_counter() - started
        if answer.status == http.client.OK:
            self.latencies_s.append(elapsed_s)
        else:
            self.errors.append(f"{answer.status} {said[:200]!r}")


def observe_forever(address: str, data: DemoData, stop: threading.Event) -> None:
    """Observe the training samples in class order, again and again, until told to stop."""
    with Client(address) as client:
        learned_before = client.experts()["samples_learned"]
        sent = 0
        for at in cycle(range(0, len(data.x_train), data.batch_size)):
            batch = slice(at, at + data.batch_size)
            sent += client.observe(data.x_train[batch], data.y_train[batch]).n
            ahead = AHEAD * data.batch_size
            while sent - client.experts()["samples_learned"] + learned_before > ahead:
                if stop.wait(0.1):
                    return
            if stop.is_set():
                return


def spell(images: Array, body_type: str) -> list[bytes]:
    """Return one request body per image."""
    if body_type == "application/json":
        return [json.dumps({"x": image[np.newaxis].tolist()}).encode() for image in images]
    return [encode(image[np.newaxis], None) for image in images]


def measure(options: argparse.Namespace, data: DemoData) -> Result:
    """Return the latencies of `options.seconds` of load; training runs before it and during it.

    Raises:
        NotMeasured: no request was answered, or nothing was learned meanwhile.
        ApiError: the service refuses to observe, or is away.
    """
    stop = threading.Event()
    load = Load(options.url, options.body_type)
    with ThreadPoolExecutor(1) as pool, Client(options.url) as client:
        observing = pool.submit(observe_forever, options.url, data, stop)
        try:
            with Client(options.url, retry_s=FIRST_MODEL_S) as patient:
                patient.predict(data.x_test[:1])
            time.sleep(options.warm_up)
            before = client.experts()
            elapsed_s = _run(load, options, data)
            after = client.experts()
        finally:
            stop.set()
            observing.result()  # raises what ended it, if anything did
    for error in sorted(set(load.errors))[:3]:
        Console(stderr=True).print(error, markup=False)
    learned = after["samples_learned"] - before["samples_learned"]
    if not load.latencies_s:
        raise command.NotMeasured(f"none of {len(load.errors)} requests was answered with 200")
    if learned == 0:
        raise command.NotMeasured("nothing was learned meanwhile, so these latencies are idle ones")
    times_ms = np.array(load.latencies_s) * 1000
    p50, p90, p99 = np.percentile(times_ms, [50, 90, 99])
    return Result(
        concurrency=options.concurrency,
        seconds=round(elapsed_s, 1),
        answered=len(times_ms),
        errors=len(load.errors),
        answered_per_s=round(len(times_ms) / elapsed_s, 1),
        p50_ms=round(p50, 1),
        p90_ms=round(p90, 1),
        p99_ms=round(p99, 1),
        max_ms=round(times_ms.max(), 1),
        samples_learned=learned,
        models_served=after["model_version"] - before["model_version"],
        experts=len(after["experts"]),
    )


def _run(load: Load, options: argparse.Namespace, data: DemoData) -> float:
    """Predict from all threads for a while; return the seconds it took."""
    images = data.x_test[np.linspace(0, len(data.x_test) - 1, BODIES).astype(int)]
    bodies = spell(images, load.body_type)
    with ThreadPoolExecutor(options.concurrency) as pool:
        started = time.perf_counter()
        predicting = [
            pool.submit(load.predict, bodies[i % BODIES :] + bodies[: i % BODIES])
            for i in range(options.concurrency)
        ]
        time.sleep(options.seconds)
        load.stop.set()
        for thread in predicting:
            thread.result()  # raises what ended it, if anything did
        return time.perf_counter() - started


def parse_options() -> argparse.Namespace:
    """Return the options of the command line."""
    options = command.parser(__doc__)
    options.add_argument("--url", default="http://127.0.0.1:8000", help="address of the service")
    options.add_argument("--concurrency", type=int, default=16, help="requests at once")
    options.add_argument("--seconds", type=float, default=30, help="time to measure")
    options.add_argument("--warm-up", type=float, default=5, help="seconds of training before it")
    options.add_argument(
        "--json-bodies",
        dest="body_type",
        action="store_const",
        const="application/json",
        default="application/x-safetensors",
        help="send JSON instead of safetensors",
    )
    return options.parse_args()


def main() -> None:
    """Measure and print."""
    options = parse_options()
    result = measure(options, command.data_of(options))
    table = Table("measure", "value", title="/predict, single images, while training runs")
    for name, value in asdict(result).items():
        table.add_row(name, f"{value:,.1f}" if isinstance(value, float) else f"{value:,}")
    Console().print(table)
    command.write_numbers(options, asdict(result))


if __name__ == "__main__":
    command.run(main)
