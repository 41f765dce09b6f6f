"""Streams a data set over HTTP, watches what is learned, and asks about samples held out.

The service is told samples and labels in their order, and nothing else: batches are cut without
regard to classes, and no request says that a class begins or ends.
Dimension key: N training samples, M held-out samples, B samples in a batch.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.client import Client, Receipt
from service.demo.data import DemoData
from service.engine.protocol import Array, Label
from service.errors import DemoFailed

SLICE_PER_CLASS = 20
"""Held-out samples per class that are predicted while the stream runs; all are at its end."""
LEAD = 200
"""Batches sent ahead of what is learned, so that the log stays short."""
PREDICT_ROWS, PREDICT_BYTES = 256, 2**21
STALL_LIMIT_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """What one published model was worth."""

    samples: int
    """Samples of the stream it had learned."""
    classes: int
    """Classes it had seen."""
    prequential_accuracy: float | None
    seen_accuracy: float
    """Accuracy on a held-out slice of all classes it had seen, 0 to 1."""
    experts: int
    expansions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What the whole stream came to."""

    samples: int
    batch_size: int
    moments: Sequence[Moment]
    accuracy: float
    """Share of all held-out samples predicted right, each for itself, over all classes."""
    accuracy_by_class: Mapping[Label, float]
    experts: int
    expansion_samples: Sequence[int]
    """How many samples of the stream were learned when each expansion happened."""
    seconds: float
    """From the first request to the last batch learned, predictions meanwhile included."""
    capacity: int
    threshold: float
    state_bytes: int
    """Of the whole learner at the end."""

    @property
    def samples_per_second(self) -> float:
        """Learning rate from end to end."""
        return self.samples / self.seconds


def stream(client: Client, data: DemoData, *, show: Callable[[Moment], None]) -> Result:
    """Stream `data` until all of it is learned, then return what it came to.

    Args:
        client: connection to the service; it may have learned something before.
        data: what to stream, in its order.
        show: called with each new moment.

    Raises:
        ApiError: the service refused a batch or was away for too long.
        DemoFailed: nothing was learned for `STALL_LIMIT_S`.
    """
    before = client.experts()
    started = time.monotonic()
    moments = list(_watch(client, data, before, show))
    seconds = time.monotonic() - started
    right = correct(client, data.x_test, data.y_test)
    found = client.experts()
    born = [e["born_step"] - before["step"] for e in found["experts"] if e["id"] > 0]
    return Result(
        samples=len(data.x_train),
        batch_size=data.batch_size,
        moments=moments,
        accuracy=float(right.mean()),
        accuracy_by_class={
            label: float(right[data.y_test == label].mean())
            for label in np.unique(data.y_test).tolist()
        },
        experts=len(found["experts"]),
        expansion_samples=[step * data.batch_size for step in born if step > 0],
        seconds=seconds,
        capacity=found["replay_capacity"],
        threshold=found["threshold"],
        state_bytes=found["state_bytes"],
    )


def correct(client: Client, x: Array, y: Array) -> NDArray[np.bool_]:
    """Return for each sample whether /predict gives its label; [M]."""
    rows = max(1, min(PREDICT_ROWS, PREDICT_BYTES // x[0].nbytes))
    parts = [client.predict(x[at : at + rows]).labels for at in range(0, len(x), rows)]
    right: NDArray[np.bool_] = np.concatenate(parts) == y
    return right


def _watch(
    client: Client, data: DemoData, before: Mapping[str, Any], show: Callable[[Moment], None]
) -> Iterator[Moment]:
    """Send batch after batch, at most `LEAD` ahead; yield a moment for each new model."""
    sent, version, changed = 0, before["model_version"], time.monotonic()
    receipt: Receipt | None = None
    found = before
    while sent < len(data.x_train) or not _learned(client, receipt, found):
        learned = found["samples_learned"] - before["samples_learned"]
        while sent < len(data.x_train) and sent - learned <= LEAD * data.batch_size:
            batch = slice(sent, sent + data.batch_size)
            receipt = client.observe(data.x_train[batch], data.y_train[batch])
            sent += receipt.n
        time.sleep(0.2)
        found = client.experts()
        if found["model_version"] != version:
            version, changed = found["model_version"], time.monotonic()
            moment = _moment(client, data, found, before)
            show(moment)
            yield moment
        elif time.monotonic() - changed > STALL_LIMIT_S:
            raise DemoFailed(f"nothing was learned for {STALL_LIMIT_S:.0f} s")


def _learned(client: Client, last: Receipt | None, found: Mapping[str, Any]) -> bool:
    """Say whether the last batch is learned and the model that knows it is served."""
    if last is None:
        return True
    state = client.observation(last.batch_id)
    return state.state == "quarantined" or (state.step is not None and found["step"] >= state.step)


def _moment(
    client: Client, data: DemoData, found: Mapping[str, Any], before: Mapping[str, Any]
) -> Moment:
    """Return what the served model is worth on a slice of the classes it has seen."""
    rows = [np.flatnonzero(data.y_test == label)[:SLICE_PER_CLASS] for label in found["classes"]]
    seen = np.concatenate(rows)
    return Moment(
        samples=found["samples_learned"] - before["samples_learned"],
        classes=len(found["classes"]),
        prequential_accuracy=found["prequential_accuracy"],
        seen_accuracy=float(correct(client, data.x_test[seen], data.y_test[seen]).mean()),
        experts=len(found["experts"]),
        expansions=found["expansions"] - before.get("expansions", 0),
    )
