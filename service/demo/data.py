"""What the demo streams, and the learner settings it streams it with.

Samples arrive class after class: the hardest order for a learner that is told of no tasks.
Dimension key: N training samples, M held-out samples.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service.datafile import BadDataFile, read_arrays
from service.engine.protocol import Array
from service.errors import SettingsError
from service.settings import Preset

KEYS = ("x_train", "y_train", "x_test", "y_test")
DIGITS = "digits"
DIGITS_SETTINGS: Mapping[Preset, Mapping[str, object]] = {
    "default": {"snapshot_interval_s": 0.5},
    "paper": {
        "capacity": 150,
        "patch": 2,
        "learning_rate": 1e-3,
        "replay_per_batch": 1270,
        "snapshot_interval_s": 0.5,
    },
}
"""For 1,433 images of 8 x 8 pixels; the paper's values are for 60,000 of 28 x 28."""
FILE_SETTINGS: Mapping[Preset, Mapping[str, object]] = {
    "default": {},
    "paper": {"replay_per_batch": 1180},
}
"""For a file: the preset's values, but for `paper` 20 optimiser steps for a batch of 100."""
DIGITS_BATCH, FILE_BATCH = 10, 100
HELD_OUT_EVERY = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoData:
    """One data set in class order."""

    name: str
    x_train: Array
    """[N, ...] sorted by class; within a class in the order of the source."""
    y_train: Array
    x_test: Array
    """[M, ...] never observed."""
    y_test: Array
    batch_size: int
    settings: Mapping[Preset, Mapping[str, object]]
    """Settings of each preset that the demo makes unless the environment does."""

    @property
    def classes(self) -> Array:
        """The classes in their order of arrival."""
        return np.unique(self.y_train)


def load_data(
    name: str,
    directory: Path | None,
    *,
    limit: int | None = None,
    batch_size: int | None = None,
) -> DemoData:
    """Return the data set called `name`.

    Args:
        name: `digits` (ships with scikit-learn), a name such as `mnist` for an .npz in
            `directory`, or the path of an .npz with x_train, y_train, x_test, y_test.
        directory: where data sets are (LEVIT_DATA).
        limit: at most so many training samples, spread evenly over the classes.
        batch_size: samples in one request; None for 10 of the digits, 100 of a file.

    Raises:
        SettingsError: `directory` is needed and not given, or scikit-learn is absent.
        BadDataFile: the file is absent or not of that form.
    """
    if name == DIGITS:
        arrays, settings, usual = _digits(), DIGITS_SETTINGS, DIGITS_BATCH
    else:
        arrays, settings, usual = _file(_path(name, directory)), FILE_SETTINGS, FILE_BATCH
    order = _class_order(arrays["y_train"], limit)
    return DemoData(
        name=Path(name).stem,
        x_train=arrays["x_train"][order],
        y_train=arrays["y_train"][order],
        x_test=arrays["x_test"],
        y_test=arrays["y_test"],
        batch_size=batch_size or usual,
        settings=settings,
    )


def _digits() -> dict[str, Array]:
    """Return scikit-learn's digits, uint8 [N, 8, 8]; every fifth of each class is held out."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise SettingsError(
            "the digits need scikit-learn: pip install 'levit-stream[demo]'"
        ) from None

    digits = load_digits()
    x = np.round(digits.images * (255 / 16)).astype(np.uint8)  # 16 grey levels to 256
    y = digits.target.astype(np.int64)
    held_out = np.zeros(len(y), bool)
    for label in np.unique(y):
        held_out[np.flatnonzero(y == label)[::HELD_OUT_EVERY]] = True
    return {
        "x_train": x[~held_out],
        "y_train": y[~held_out],
        "x_test": x[held_out],
        "y_test": y[held_out],
    }


def _path(name: str, directory: Path | None) -> Path:
    if name.endswith(".npz"):
        return Path(name)
    if directory is None:
        raise SettingsError(f"LEVIT_DATA is unset; it is the directory that holds {name}.npz")
    return directory / f"{name}.npz"


def _file(path: Path) -> dict[str, Array]:
    arrays = read_arrays(path)
    missing = [key for key in KEYS if key not in arrays]
    if missing:
        raise BadDataFile(f"expected arrays {', '.join(KEYS)} in {path}, missing {missing[0]}")
    return arrays


def _class_order(y: Array, limit: int | None) -> NDArray[np.intp]:
    """Return the indexes that sort by class; with `limit` the first few of each class."""
    order = np.argsort(y, kind="stable")
    if limit is None:
        return order
    classes, starts = np.unique(y[order], return_index=True)
    per_class = max(1, limit // len(classes))
    rank = np.arange(len(order)) - np.repeat(starts, np.diff([*starts, len(order)]))
    return order[rank < per_class]
