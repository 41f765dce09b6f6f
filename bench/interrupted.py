"""Many samples sent with one call, killed in the middle and sent again: what arrived, counted.

    LEVIT_DATA=... python -m bench.interrupted --data mnist --kills 3

A fresh `levit serve`, with the learner that the environment sets; a process that calls
`Client.observe_all` once and is killed (SIGKILL) after an equal share of the samples each time.
Afterwards everything that was ever accepted is read back from log and archive and compared with
what was sent: sample for sample, in order. The last call's time is that of a run to its end, with
all that was accepted before sent and recognised once more.
"""

import contextlib
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

from bench import command
from service.client import Client
from service.datafile import read_arrays
from service.demo.process import STATE_DIR, running_service
from service.engine.protocol import Array

LEARN_S = 3600.0
"""Longest wait until all is learned."""
_SEND = """
import sys
from pathlib import Path
from service.client import Client
from service.datafile import read_arrays

arrays = read_arrays(Path(sys.argv[2]))
with Client(sys.argv[1], retry_s=600) as client:
    def tell(sent):
        print(sent.samples, sent.replayed, flush=True)

    client.observe_all(arrays["x"], arrays["y"], progress=tell)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What was sent, how often it was killed, and what came of it."""

    samples: int
    kills: int
    killed_after: list[int]
    """Samples that each killed call had seen accepted, those before included."""
    replayed: int
    """Samples that the last call sent although they were accepted, and that were recognised."""
    last_call_s: float
    lost: int
    doubled: int
    in_order: bool
    learned: int
    """Samples that the learner learned."""


def measure(x: Array, y: Array, *, kills: int) -> Result:
    """Send `x` and `y` to a fresh service with so many kills; return what arrived."""
    with tempfile.TemporaryDirectory() as home, contextlib.chdir(home):
        np.savez("data.npz", x=x, y=y)
        with running_service({}) as url:
            killed = [_send(url, (kill + 1) * len(x) // (kills + 1)) for kill in range(kills)]
            started = time.monotonic()
            _, replayed = _send(url, None)
            seconds = time.monotonic() - started
            learned = _learned(url, len(x))
            found_x, found_y = _accepted()
    found_x = found_x.reshape(-1, *x.shape[1:])  # grey images may come back with their channel
    sent, found = _counted(x, y), _counted(found_x, found_y)
    return Result(
        samples=len(x),
        kills=kills,
        killed_after=[samples for samples, _ in killed],
        replayed=replayed,
        last_call_s=seconds,
        lost=(sent - found).total(),
        doubled=(found - sent).total(),
        in_order=np.array_equal(found_x, x) and np.array_equal(found_y, y),
        learned=learned,
    )


def _send(url: str, kill_after: int | None) -> tuple[int, int]:
    """Call `observe_all` once in a process; return samples accepted and samples recognised.

    Args:
        url: of the service.
        kill_after: samples after which it is killed; None lets it end.
    """
    samples = replayed = 0
    arguments = [sys.executable, "-c", _SEND, url, "data.npz"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as sender:  # noqa: S603  ours
        for line in sender.stdout or ():
            samples, replayed = map(int, line.split())
            if kill_after is not None and samples >= kill_after:
                sender.send_signal(signal.SIGKILL)
    wanted = 0 if kill_after is None else -signal.SIGKILL
    if sender.returncode != wanted:
        raise command.NotMeasured(f"the sender ended with {sender.returncode}, expected {wanted}")
    return samples, replayed


def _learned(url: str, wanted: int) -> int:
    """Return how many samples were learned, once it is as many as are wanted or does not grow."""
    deadline, learned = time.monotonic() + LEARN_S, 0
    with Client(url) as client:
        while learned < wanted and time.monotonic() < deadline:
            time.sleep(1)
            learned = client.experts()["samples_learned"]
    return learned


def _accepted() -> tuple[Array, Array]:
    """Return every sample that was ever accepted, and its label, in order."""
    export = [sys.executable, "-m", "service", "log", "export", "accepted.npz"]
    subprocess.run([*export, "--state-dir", str(STATE_DIR)], check=True)  # noqa: S603  ours
    arrays = read_arrays(Path("accepted.npz"))
    return arrays["x"], arrays["y"]


def _counted(x: Array, y: Array) -> Counter[tuple[bytes, object]]:
    """Return how often each labelled sample is there."""
    return Counter((sample.tobytes(), label) for sample, label in zip(x, y.tolist(), strict=True))


def main() -> None:
    """Measure, print, and fail if anything was lost or doubled."""
    parser = command.parser(__doc__)
    parser.add_argument("--kills", type=int, default=3, help="how often the sender is killed")
    options = parser.parse_args()
    data = command.data_of(options)
    result = measure(data.x_train, data.y_train, kills=options.kills)
    Console().print_json(data=asdict(result))
    command.write_numbers(options, asdict(result))
    if result.lost or result.doubled or not result.in_order or result.learned != result.samples:
        raise command.NotMeasured("what was accepted or learned is not what was sent")


if __name__ == "__main__":
    command.run(main)
