"""What it costs that labels come late: the same stream with its labels at once, and later.

    LEVIT_DATA=... python -m bench.late_labels --data mnist --samples 6000 --delay 2000

Two fresh services. The first is told each label with its sample. The second is asked for each
sample with `keep=true` and told the label after 1 to `--delay` more samples, drawn for each alone,
so that labels come in another order than samples; those still due after the last sample come then.
Answers come from a model that is at most some batches behind. Both are asked for held-out samples
in the end, and the prequential accuracy that the second tells is computed once more, from the
answers that its client was given. Samples come class after class, or with --shuffled in any order.
"""

import contextlib
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from bench import command
from learner.evaluation import FADE
from service.client import Client
from service.demo.data import DemoData
from service.demo.process import running_service

LEARN_S = 3600.0
"""Longest wait for the learner."""
BATCH = 10
AHEAD = 30
"""Batches that are sent before the model that answers has learned the labels of the first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prequential:
    """Answers that were right among those whose label became known."""

    labelled: int
    right: int
    faded: float
    """Share of those that were right, the newest weighing most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """What a service had learned in the end."""

    accuracy: float
    """Share of the held-out samples that are answered right."""
    experts: int
    told: Prequential
    """As the service says."""
    seconds: float
    """From the first sample to the last label learned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The same stream twice."""

    samples: int
    delay: int
    at_once: Learned
    late: Learned
    computed: Prequential
    """What `late.told` has to be, from the answers of the service and the labels."""

    @property
    def points(self) -> float:
        """How much more of the held-out samples are right where labels come late, in points."""
        return 100 * (self.late.accuracy - self.at_once.accuracy)

    @property
    def agrees(self) -> bool:
        """Whether the service counted what it should have."""
        told, computed = self.late.told, self.computed
        same = (told.labelled, told.right) == (computed.labelled, computed.right)
        return same and abs(told.faded - computed.faded) < 1e-9  # noqa: PLR2004  rounding


def measure(data: DemoData, *, delay: int, bar: Progress) -> Result:
    """Return what fresh services learn of `data` with labels at once and late.

    Args:
        data: samples in the order in which they come.
        delay: most samples that come between a sample and its label.
        bar: shows how far it is.
    """
    with _fresh() as client:
        at_once = _at_once(client, data, bar)
    with _fresh() as client:
        late, computed = _late(client, data, delay, bar)
    return Result(
        samples=len(data.x_train), delay=delay, at_once=at_once, late=late, computed=computed
    )


@contextlib.contextmanager
def _fresh() -> Iterator[Client]:
    with (
        tempfile.TemporaryDirectory() as home,
        contextlib.chdir(home),
        running_service({}) as url,
        Client(url, retry_s=LEARN_S) as client,
    ):
        yield client


def _at_once(client: Client, data: DemoData, bar: Progress) -> Learned:
    task, started = bar.add_task("labels at once", total=len(data.x_train)), time.monotonic()
    sent = client.observe_all(
        data.x_train,
        data.y_train,
        batch_size=BATCH,
        progress=lambda so_far: bar.update(task, completed=so_far.samples),
    )
    client.wait_until_learned(sent.receipt, timeout_s=LEARN_S)
    return _learned(client, data, time.monotonic() - started)


def _late(client: Client, data: DemoData, delay: int, bar: Progress) -> tuple[Learned, Prequential]:
    """Return what was learned, and what the service should have counted."""
    n = len(data.x_train)
    task, started = bar.add_task("labels late", total=n + delay), time.monotonic()
    first = client.observe(data.x_train[:BATCH], data.y_train[:BATCH])
    client.wait_until_learned(first, timeout_s=LEARN_S)  # before, nothing can be answered
    before = _told(client)
    order, due = _drawn(n, delay)
    sample_ids, answered = list(first.sample_ids), data.y_train[:BATCH].tolist()
    receipts, told = [first], 0
    for end in range(2 * BATCH, n + delay + BATCH, BATCH):
        x = data.x_train[end - BATCH : end]
        if len(x):
            position = receipts[max(0, len(receipts) - AHEAD)].position
            answers = client.predict(x, keep=True, wait_for=position)
            sample_ids += answers.sample_ids
            answered += answers.labels.tolist()
        come = order[told : (told := int(np.searchsorted(due, end)))]
        if len(come):
            receipts.append(client.label({sample_ids[i]: data.y_train[i] for i in come}))
        bar.update(task, completed=end)
    client.wait_until_learned(receipts[-1], timeout_s=LEARN_S)
    seconds = time.monotonic() - started
    right = [bool(answered[i] == data.y_train[i]) for i in order]
    return _learned(client, data, seconds), _continued(before, right)


def _drawn(n: int, delay: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the samples behind the first batch as their labels come, and when each comes.

    Returns:
        The samples; and for each the number of the sample that has to be there by then.
    """
    generator = np.random.default_rng(0)
    due = np.arange(BATCH, n) + generator.integers(1, delay + 1, n - BATCH)
    order = np.argsort(due, kind="stable")
    return order + BATCH, due[order]


def _continued(before: Prequential, right: list[bool]) -> Prequential:
    """Return what is counted when these answers come behind those that were counted before."""
    weight = sum(FADE**age for age in range(before.labelled))
    faded = before.faded * weight
    for one in right:
        faded, weight = FADE * faded + one, FADE * weight + 1
    return Prequential(
        labelled=before.labelled + len(right),
        right=before.right + sum(right),
        faded=faded / weight,
    )


def _told(client: Client) -> Prequential:
    said = client.experts()
    return Prequential(
        labelled=said["samples_labelled"],
        right=said["samples_correct"],
        faded=said["prequential_accuracy"],
    )


def _learned(client: Client, data: DemoData, seconds: float) -> Learned:
    return Learned(
        accuracy=command.accuracy(client, data),
        experts=len(client.experts()["experts"]),
        told=_told(client),
        seconds=seconds,
    )


def table(result: Result) -> Table:
    """Return a row for each service."""
    columns = ("labels", "held-out accuracy", "prequential accuracy", "experts", "s")
    shown = Table(*columns, title=f"{result.samples} samples")
    rows = {"at once": result.at_once, f"1 to {result.delay} samples late": result.late}
    for name, one in rows.items():
        share = one.told.right / one.told.labelled
        shown.add_row(
            name, f"{one.accuracy:.2%}", f"{share:.2%}", f"{one.experts}", f"{one.seconds:.0f}"
        )
    return shown


def main() -> None:
    """Measure, print, and fail if the service counted something else than it answered."""
    parser = command.parser(__doc__)
    parser.add_argument("--samples", type=int, help="at most; default: all")
    parser.add_argument("--delay", type=int, default=2000, help="most samples a label is late")
    parser.add_argument("--shuffled", action="store_true", help="not class after class")
    options = parser.parse_args()
    data = command.data_of(options, samples=options.samples)
    if options.shuffled:
        order = np.random.default_rng(0).permutation(len(data.x_train))
        data = replace(data, x_train=data.x_train[order], y_train=data.y_train[order])
    console = Console()
    with Progress(console=Console(stderr=True)) as bar:
        result = measure(data, delay=options.delay, bar=bar)
    console.print(table(result))
    console.print(f"held-out accuracy: {result.points:+.2f} points where labels come late")
    for who, one in {"service": result.late.told, "answers": result.computed}.items():
        console.print(f"by the {who}: {one.right} of {one.labelled} right, faded {one.faded:.9f}")
    command.write_numbers(options, asdict(result))
    if not result.agrees:
        raise command.NotMeasured("the service counted something else than it answered")


if __name__ == "__main__":
    command.run(main)
