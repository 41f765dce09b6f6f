"""Data sets as they lie on disk, as tensors; nothing is downloaded.

`digits` ships with scikit-learn; every other name is an .npz in the directory LEVIT_DATA.
Dimension key: N training samples, M held-out samples.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bench.methods import Shape
from service.datafile import BadDataFile, read_arrays
from service.engine.protocol import Array
from service.errors import SettingsError
from service.inputs import InputKind, InputSchema
from service.settings import Settings

HELD_OUT_EVERY = 5
"""Every fifth of the digits is held out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """Samples and labels in the order of the source; no held-out ones where M is 0."""

    kind: InputKind
    x_train: Tensor
    """uint8 [N, C, H, W], or float32 [N, C, H, W], [N, D] or [N, T, C]."""
    y_train: Tensor
    """int64 [N], 0 to classes - 1."""
    x_test: Tensor
    y_test: Tensor

    @property
    def shape(self) -> Shape:
        """One sample, as methods get it."""
        return tuple(self.x_train.shape[1:])


def load(name: str) -> Dataset:
    """Return the data set called `name`, `digits` or one in LEVIT_DATA.

    Raises:
        SettingsError: LEVIT_DATA is needed and not set, or scikit-learn is absent.
        BadDataFile: the file is absent or not of the form.
    """
    if name == "digits":
        return _digits()
    return dataset(arrays(name), name)


def arrays(name: str) -> dict[str, Array]:
    """Return the arrays of `name`.npz in LEVIT_DATA.

    Raises:
        SettingsError: LEVIT_DATA is not set.
        BadDataFile: the file is absent or damaged.
    """
    directory = Settings.read().data
    if directory is None:
        raise SettingsError(f"LEVIT_DATA: expected the directory with {name}.npz, it is unset")
    path = directory / f"{name}.npz"
    if not path.is_file():
        raise BadDataFile(f"expected {name}.npz in LEVIT_DATA={directory}, it is not there")
    return read_arrays(path)


def load_file(path: Path) -> Dataset:
    """Return a user's own .npz: x_train, y_train, x_test, y_test, or x, y without held-out ones.

    Raises:
        BadDataFile: the file is absent or not of that form.
    """
    return dataset(read_arrays(path), str(path))


def dataset(found: dict[str, Array], name: str) -> Dataset:
    """Return arrays as a data set; labels of any kind become 0 to classes - 1 in sorted order.

    Raises:
        BadDataFile: an array is missing or does not fit the others.
    """
    x, y = _pair(found, ("x_train", "x"), ("y_train", "y"), name)
    tested = "x_test" in found or "y_test" in found
    x_test, y_test = _pair(found, ("x_test",), ("y_test",), name) if tested else (x[:0], y[:0])
    classes, label = np.unique(np.concatenate([y, y_test]), return_inverse=True)
    if len(classes) < 1 or len(x) == 0:
        raise BadDataFile(f"expected labelled samples in {name}, got none")
    try:
        schema = InputSchema.of(_plain(x))
        train, test = (samples_as_tensor(part) for part in (x, x_test))
    except ValueError as error:
        raise BadDataFile(f"{name}: {error}") from None
    labels = torch.from_numpy(label.astype(np.int64))
    return Dataset(
        kind=schema.kind,
        x_train=train,
        y_train=labels[: len(y)],
        x_test=test,
        y_test=labels[len(y) :],
    )


def samples_as_tensor(x: Array) -> Tensor:
    """Return samples as methods get them; the channels of images come first, nothing is copied.

    Raises:
        ValueError: the samples are no images, vectors or series within the service's bounds.
    """
    plain = _plain(x)
    schema = InputSchema.of(plain)
    tensor = torch.from_numpy(schema.canonical(plain))
    return tensor.permute(0, 3, 1, 2) if schema.kind == "image" else tensor


def _plain(x: Array) -> Array:
    """Return floats of any width as float32, bytes as they are."""
    return x.astype(np.float32, copy=False) if x.dtype.kind == "f" else x


def _pair(
    found: dict[str, Array], x_names: tuple[str, ...], y_names: tuple[str, ...], name: str
) -> tuple[Array, Array]:
    """Return samples and labels under the first of their names that is there."""
    x = next((found[key] for key in x_names if key in found), None)
    y = next((found[key] for key in y_names if key in found), None)
    if x is None or y is None:
        absent = " or ".join(x_names if x is None else y_names)
        raise BadDataFile(f"expected an array {absent} in {name}, got {', '.join(found)}")
    if y.shape != x.shape[:1]:
        raise BadDataFile(f"expected {len(x)} labels in {name}, got {y.shape}")
    return x, y


def _digits() -> Dataset:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise SettingsError("digits need scikit-learn: pip install 'levit-stream[demo]'") from None
    bunch = load_digits()
    x = (bunch.images * (255 / 16)).astype(np.uint8)
    held_out = np.arange(len(x)) % HELD_OUT_EVERY == 0
    parts = {"x_train": x[~held_out], "y_train": bunch.target[~held_out]}
    return dataset(
        parts | {"x_test": x[held_out], "y_test": bunch.target[held_out]}, "scikit-learn's digits"
    )
