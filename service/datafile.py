"""Local .npz and .npy files to arrays, for the command line; no server path reads them."""

import zipfile
from pathlib import Path

import numpy as np

from service.engine.protocol import Array


class BadDataFile(Exception):
    """The file is no readable .npz or .npy of numbers or strings."""


def read_arrays(path: Path) -> dict[str, Array]:
    """Return the arrays of an .npz by name; that of an .npy is called `x`.

    Raises:
        BadDataFile: the file is missing, damaged, of another format, or holds Python objects.
    """
    try:
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)  # noqa: TID251  the one place; no pickle
            return {"x": loaded} if isinstance(loaded, np.ndarray) else dict(loaded)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise BadDataFile(f"expected an .npz or .npy file of arrays at {path}: {error}") from None
