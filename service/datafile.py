"""Local files to arrays and images, for the command line; no server path reads them."""

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from service.engine.protocol import Array

IMAGES = (".png", ".jpg", ".jpeg")


class BadDataFile(Exception):
    """The file is none of those that can be sent."""


def read_arrays(path: Path) -> dict[str, Array]:
    """Return the arrays of an .npz by name; that of an .npy, or the rows of a .csv, are called `x`.

    Raises:
        BadDataFile: the file is missing, damaged, of another format, or holds Python objects.
    """
    try:
        if path.suffix == ".csv":
            return {"x": _read_rows(path)}
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)  # noqa: TID251  the one place; no pickle
            return {"x": loaded} if isinstance(loaded, np.ndarray) else dict(loaded)
    except OSError as error:
        raise BadDataFile(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        # numpy's words advise to unpickle what is of no format that it knows
        reason = "it is of another format, or holds objects" if "pickle" in str(error) else error
        raise BadDataFile(f"expected an .npz, .npy or .csv of arrays at {path}: {reason}") from None


def _read_rows(path: Path) -> Array:
    """Return the vectors [N, D] of a file, one a line, their values between commas."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not lines:
        raise ValueError("it is empty")
    return np.loadtxt(lines, np.float32, delimiter=",", comments=None, ndmin=2)


def read_image(path: Path) -> bytes:
    """Return the bytes of an image file, which the service decodes.

    Raises:
        BadDataFile: there is no such file.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadDataFile(f"expected an image at {path}: {error}") from None


def read_samples(
    path: Path, x_names: Sequence[str], y_names: Sequence[str], labels: Path | None = None
) -> tuple[Array, Array | None]:
    """Return samples and labels of a file, each under the first of its names that is there.

    Args:
        path: of the samples.
        x_names: under which the samples may be.
        y_names: under which their labels may be.
        labels: another file, of the labels alone; it wins.

    Raises:
        BadDataFile: no samples there, or none that can be sent, or labels of another number.
    """
    arrays = read_arrays(path)
    x, y = _first(arrays, x_names), _first(arrays, y_names)
    if labels is not None:
        y = _first(read_arrays(labels), (*y_names, "x"))
        if y is None:
            raise BadDataFile(f"expected an array {' or '.join(y_names)} in {labels}")
    if x is None:
        raise BadDataFile(f"expected an array {' or '.join(x_names)} in {path}, got {list(arrays)}")
    if x.size == 0 or not (x.dtype == np.uint8 or x.dtype.kind == "f"):
        raise BadDataFile(f"expected samples of uint8 or floats, got {x.dtype} {x.shape} in {path}")
    if y is not None and (y.shape != x.shape[:1] or y.dtype.kind not in "iuU"):
        raise BadDataFile(
            f"expected {len(x)} integers or strings as labels, got {y.dtype} {y.shape}"
        )
    return x, y


def _first(arrays: dict[str, Array], names: Sequence[str]) -> Array | None:
    return next((arrays[name] for name in names if name in arrays), None)
