"""Local .npz and .npy files: arrays by name, and nothing that could run code."""

from pathlib import Path

import numpy as np
import pytest

from service.datafile import BadDataFile, read_arrays, read_image, read_samples

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

    with pytest.raises(BadDataFile, match=name) as refused:
        read_arrays(tmp_path / name)

    assert "pickle" not in str(refused.value)  # numpy's words advise to try with it


def test_a_csv_is_a_vector_a_line(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("1,2,3\n\n4, 5.5, -6e1\n")

    x = read_arrays(tmp_path / "data.csv")["x"]

    np.testing.assert_array_equal(x, np.array([[1, 2, 3], [4, 5.5, -60]], np.float32))


@pytest.mark.parametrize("text", ["", "\n", "a,b\n1,2\n", "1,2\n3\n", "1 # no\n"])
def test_a_csv_of_anything_else_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "data.csv").write_text(text)

    with pytest.raises(BadDataFile, match=r"data\.csv"):
        read_arrays(tmp_path / "data.csv")


def test_labels_of_another_file_win(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=VECTORS, y=np.array([1, 2]))
    np.savez(tmp_path / "labels.npz", y=np.array(["a", "b"]))

    _, y = read_samples(tmp_path / "data.npz", ("x",), ("y",), tmp_path / "labels.npz")

    assert y is not None
    assert y.tolist() == ["a", "b"]


def test_a_file_of_labels_without_labels_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "data.npy", VECTORS)
    np.savez(tmp_path / "labels.npz", z=np.array([1, 2]))

    with pytest.raises(BadDataFile, match=r"expected an array y in .*labels\.npz"):
        read_samples(tmp_path / "data.npy", ("x",), ("y",), tmp_path / "labels.npz")


def test_an_image_that_is_absent_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadDataFile, match=r"expected an image at .*absent\.png"):
        read_image(tmp_path / "absent.png")
