"""Local .npz and .npy files: arrays by name, and nothing that could run code."""

from pathlib import Path

import numpy as np
import pytest

from service.datafile import BadDataFile, read_arrays

VECTORS = np.ones((2, 3), np.float32)


def test_an_npz_is_read_by_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x_train=VECTORS, y_train=np.array([1, 2]))

    arrays = read_arrays(tmp_path / "data.npz")

    assert sorted(arrays) == ["x_train", "y_train"]
    np.testing.assert_array_equal(arrays["x_train"], VECTORS)


def test_an_npy_is_called_x(tmp_path: Path) -> None:
    np.save(tmp_path / "data.npy", VECTORS)

    np.testing.assert_array_equal(read_arrays(tmp_path / "data.npy")["x"], VECTORS)


@pytest.mark.parametrize("name", ["absent.npz", "text.npz", "cut.npz", "objects.npy"])
def test_another_file_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "text.npz").write_text("no arrays")
    np.savez(tmp_path / "whole.npz", x=VECTORS)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:100])
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)

    with pytest.raises(BadDataFile, match=name):
        read_arrays(tmp_path / name)
