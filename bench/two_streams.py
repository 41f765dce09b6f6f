"""Two streams of different shape learned by one service at the same time, and each of them alone.

    LEVIT_DATA=... python -m bench.two_streams --data mnist --other uci_har

Each is declared with POST /streams, sent class by class, batch by batch in turn with the other, and
asked for held-out samples once all is learned. Then a fresh service gets one of them alone.
"""

import contextlib
import tempfile
import threading
import time
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from bench import command
from service.client import Client
from service.demo.data import DemoData, load_data
from service.demo.process import running_service
from service.settings import Settings

LEARN_S = 3600.0
"""Longest wait until a stream is learned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """What a stream had learned in the end."""

    stream: str
    together: bool
    accuracy: float
    """Share of the held-out samples that are answered right."""
    experts: int
    samples: int
    seconds: float
    """From the first batch sent to the last one learned, of this stream."""


def measure(streams: list[DemoData], bar: Progress) -> list[Learned]:
    """Return what each stream learned beside the others, then what it learned alone."""
    runs = [streams, *([one] for one in streams)]
    found = []
    for run in runs:
        with (
            tempfile.TemporaryDirectory() as home,
            contextlib.chdir(home),
            running_service({}) as url,
        ):
            found += _learned(url, run, bar)
    return found


def _learned(url: str, streams: list[DemoData], bar: Progress) -> list[Learned]:
    """Let a fresh service learn these at the same time."""
    found: list[Learned] = []
    together = len(streams) > 1

    def learn(data: DemoData) -> None:
        with Client(url, stream=data.name, retry_s=LEARN_S) as client:
            found.append(_whole(client, data, bar, together=together))

    with Client(url) as client:
        for one in streams:
            client.create_stream(one.name)
    threads = [threading.Thread(target=learn, args=[one]) for one in streams]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(found) < len(streams):
        raise command.NotMeasured("a stream was not learned; what it said is above")
    return found


def _whole(client: Client, data: DemoData, bar: Progress, *, together: bool) -> Learned:
    """Send all of a stream, wait until it is learned, ask what is held out."""
    told = f"{data.name}, {'together' if together else 'alone'}"
    task = bar.add_task(told, total=len(data.x_train))
    started = time.monotonic()
    sent = client.observe_all(
        data.x_train,
        data.y_train,
        batch_size=data.batch_size,
        progress=lambda so_far: bar.update(task, completed=so_far.samples),
    )
    client.wait_until_learned(sent.receipt, timeout_s=LEARN_S)
    seconds = time.monotonic() - started
    model = client.experts()
    return Learned(
        stream=data.name,
        together=together,
        accuracy=command.accuracy(client, data),
        experts=len(model["experts"]),
        samples=model["samples_learned"],
        seconds=seconds,
    )


def table(found: list[Learned]) -> Table:
    """Return a row a stream: together, alone, and the difference."""
    columns = ("stream", "together", "alone", "points", "experts", "s together", "s alone")
    shown = Table(*columns, title="accuracy over all classes of held-out samples")
    for name in dict.fromkeys(one.stream for one in found):
        here = {one.together: one for one in found if one.stream == name}
        beside, alone = here[True], here[False]
        shown.add_row(
            name,
            f"{beside.accuracy:.2%}",
            f"{alone.accuracy:.2%}",
            f"{100 * (beside.accuracy - alone.accuracy):+.2f}",
            f"{beside.experts} / {alone.experts}",
            f"{beside.seconds:.0f}",
            f"{alone.seconds:.0f}",
        )
    return shown


def main() -> None:
    """Measure and print."""
    parser = command.parser(__doc__)
    parser.add_argument("--other", default="uci_har", help="the second data set, as --data")
    parser.add_argument("--samples", type=int, help="of each, at most; default: all")
    options = parser.parse_args()
    other = load_data(options.other, Settings.read().data, limit=options.samples)
    streams = [command.data_of(options, samples=options.samples), other]
    with Progress(console=Console(stderr=True)) as bar:
        found = measure(streams, bar)
    Console().print(table(found))
    command.write_numbers(options, [asdict(one) for one in found])


if __name__ == "__main__":
    command.run(main)
