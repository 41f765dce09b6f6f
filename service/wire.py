"""Between numpy and the wire: bodies of requests, rows of answers.

Dimension key: B batch, K classes listed per sample.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from service.engine.protocol import Array, Label, Labels
from service.store.entry import encode


def batch_body(x: Array, labels: Array | Sequence[Label | None] | None) -> bytes:
    """Return the safetensors body that carries a batch.

    Raises:
        ValueError: `x` or `labels` are of a kind that the wire does not have.
    """
    samples = np.asarray(x)
    if samples.dtype.kind == "f":
        samples = samples.astype(np.float32, copy=False)
    elif samples.dtype != np.uint8:
        raise ValueError(f"expected x of uint8 or floats, got {samples.dtype}")
    return encode(samples, None if labels is None else _wire_labels(labels))


def _wire_labels(labels: Array | Sequence[Label | None]) -> Labels:
    """Return labels as the wire has them: int64 with -1, or strings with "" for none."""
    listed = labels.tolist() if isinstance(labels, np.ndarray) else list(labels)
    kinds = {type(label) for label in listed} - {type(None)}
    if kinds == {str}:
        return ["" if label is None else str(label) for label in listed]
    if kinds <= {int}:
        return np.array([-1 if label is None else label for label in listed], np.int64)
    raise ValueError("expected labels that are all integers or all strings, None for no label")


def labels_array(labels: Sequence[Label | None]) -> Array:
    """Return an answer's labels as one array of integers or of strings."""
    if any(isinstance(label, str) for label in labels):
        return np.array(["" if label is None else label for label in labels])
    return np.array([-1 if label is None else label for label in labels], np.int64)


def classes_array(rows: Sequence[Sequence[Label]]) -> Array:
    """Return the listed classes as one array [B, K]; rows without an answer hold none."""
    width = max(map(len, rows), default=0)
    padded = [[*row, *[None] * (width - len(row))] for row in rows]
    return labels_array([label for row in padded for label in row]).reshape(len(rows), width)


def filled(rows: Sequence[Sequence[float]], fill: float) -> NDArray[np.float64]:
    """Return rows of unequal length as one array, filled up at their ends."""
    width = max(map(len, rows), default=0)
    return np.array([[*row, *[fill] * (width - len(row))] for row in rows], np.float64)
