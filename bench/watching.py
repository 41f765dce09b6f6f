"""What it costs the learner that somebody watches it.

    LEVIT_DATA=... python -m bench.watching --data mnist

Two parts of the cost, each as a share of the time of a step:
  kept     the time line, which is drawn whether or not somebody looks: the learner by itself
           learns the samples, and after each step the time line takes it in; every tenth time it
           is dumped, as for a checkpoint
  watched  fresh services learn the same samples, by turns with nobody looking on and with some
           pages: each listens to /live and /events, and asks for /timeline and /experts at every
           new model. The steps are the same, so what the worker's own histogram tells of them is
           compared; quoted is the median over the turns of the ratio of the two.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from urllib.request import urlopen

import numpy as np
from rich.console import Console
from rich.progress import track

from bench import command
from service.client import Client
from service.demo.data import DemoData
from service.demo.process import free_port, running_service
from service.engine.levit import LevitEngines
from service.inputs import InputSchema
from service.settings import Settings
from service.timeline import Timeline

_DUMPED = 10
"""Steps between two dumps of the time line."""
LEARN_S = 900
"""Longest wait until the samples are learned."""
_PAGES = """
import json, sys, threading
import httpx

def page(address):
    version = None
    with httpx.Client(base_url=address, timeout=60) as http:
        with http.stream("GET", "/live") as live:
            for line in live.iter_lines():
                if not line.startswith("data:"):
                    continue
                before, version = version, json.loads(line[5:])["model_version"]
                if version != before:
                    http.get("/timeline"), http.get("/experts")

def events(address):
    with httpx.Client(base_url=address, timeout=None) as http:
        with http.stream("GET", "/events?after=0") as told:
            for _ in told.iter_lines():
                pass

for _ in range(int(sys.argv[2])):
    for one in (page, events):
        threading.Thread(target=one, args=(sys.argv[1],), daemon=True).start()
threading.Event().wait()
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What was measured."""

    batch: int
    step_ms: float
    """Of the learner by itself."""
    kept: float
    """Share of a step that the time line costs."""
    pages: int
    turns: int
    served_step_ms: float
    """Of the worker while nobody looked, the median."""
    watched: float
    """Share of a step that the pages cost; the median, noise may make it negative."""
    watched_low: float
    watched_high: float
    """Quartiles of the turns."""


def kept(data: DemoData) -> tuple[float, float]:
    """Return the seconds of a step and the share that the time line adds to it."""
    schema = InputSchema.of(data.x_train)
    engine = LevitEngines(threads=1).create(Settings.read(device="cpu"), schema)
    timeline, learning_s, drawing_s = Timeline(), 0.0, 0.0
    steps = range(0, len(data.x_train), data.batch_size)
    for number, first in enumerate(track(steps, description="kept"), start=1):
        x, y = (part[first : first + data.batch_size] for part in (data.x_train, data.y_train))
        began = time.perf_counter()
        report = engine.observe((number, 0), schema.canonical(x), y.astype(np.int64))
        learned = time.perf_counter()
        timeline.add(number, len(x), report)
        if number % _DUMPED == 0:
            timeline.dump()
        drawing_s += time.perf_counter() - learned
        learning_s += learned - began
    return learning_s / len(steps), drawing_s / learning_s


def watched(data: DemoData, options: argparse.Namespace) -> tuple[list[float], list[float]]:
    """Return the seconds of a step in the turns without pages, and in those with them."""
    without: list[float] = []
    with_pages: list[float] = []
    for turn in track(range(options.turns), description="watched"):
        sides = [(without, 0), (with_pages, options.pages)]
        for found, pages in sides if turn % 2 else reversed(sides):  # neither is always first
            found.append(_served_step_s(data, pages))
    return without, with_pages


def _served_step_s(data: DemoData, pages: int) -> float:
    """Return the mean time of a step of a fresh service that learns all samples."""
    port = free_port(0)
    with (
        running_service({"worker_metrics_port": port}) as address,
        _pages(address, pages),
        Client(address, retry_s=120) as client,
    ):
        sent = client.observe_all(data.x_train, data.y_train, batch_size=data.batch_size)
        client.wait_until_learned(sent.receipt, timeout_s=LEARN_S)
        seconds, steps = _steps(port)
        return seconds / steps


@contextmanager
def _pages(address: str, count: int) -> Iterator[None]:
    """Let pages look on for the length of a block."""
    arguments = [sys.executable, "-c", _PAGES, address, str(count)]
    with subprocess.Popen(arguments) as process:  # noqa: S603  our own words
        try:
            time.sleep(1)  # until they are there
            yield
        finally:
            process.kill()


def _steps(port: int) -> tuple[float, float]:
    """Return the seconds of all steps so far, and their number."""
    with urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    told = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    at = 'levit_step_duration_seconds_{}{{stream="default"}}'
    return float(told[at.format("sum")]), float(told[at.format("count")])


def measure(options: argparse.Namespace) -> Result:
    """Return both parts."""
    data = replace(command.data_of(options, samples=options.samples), batch_size=options.batch)
    step_s, share = kept(data)
    without, with_pages = watched(data, options)
    ratios = [b / a - 1 for a, b in zip(without, with_pages, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return Result(
        batch=data.batch_size,
        step_ms=1000 * step_s,
        kept=share,
        pages=options.pages,
        turns=options.turns,
        served_step_ms=1000 * statistics.median(without),
        watched=middle,
        watched_low=low,
        watched_high=high,
    )


def main() -> None:
    """Measure and print; with --json also write the numbers."""
    options = command.parser(__doc__)
    options.add_argument("--samples", type=int, default=1000, help="samples that are learned")
    options.add_argument("--batch", type=int, default=10, help="samples of a step")
    options.add_argument("--pages", type=int, default=3, help="pages that look on")
    options.add_argument("--turns", type=int, default=5, help="turns without and with pages")
    chosen = options.parse_args()
    found = measure(chosen)
    console = Console()
    console.print(
        f"a step of {found.batch} samples: {found.step_ms:.1f} ms; the time line: {found.kept:.2%}"
    )
    console.print(
        f"looked on by {found.pages}: {found.watched:+.2%} of a step (quartiles "
        f"{found.watched_low:+.2%} and {found.watched_high:+.2%} of {found.turns} turns)"
    )
    command.write_numbers(chosen, asdict(found))


if __name__ == "__main__":
    command.run(main)
