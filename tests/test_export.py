"""`levit log export`: what was accepted, as a file that others read."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from service import cli, export
from service.datafile import read_arrays
from service.engine.protocol import Array
from service.errors import IncompleteHistory, SettingsError
from service.settings import Settings
from service.store.decisions import Decision, Decisions
from service.store.entry import Entry, decode_payload
from service.store.history import History
from service.store.submission import Submission
from tests.conftest import MakeSettings
from tests.log_entries import append_all, batches, submission
from tests.test_history import archive

Levit = Callable[..., Result]
Lived = tuple[Settings, list[Submission]]


@pytest.fixture
def levit(monkeypatch: pytest.MonkeyPatch, redis_server: str, state_dir: Path) -> Levit:
    """Run `levit log export` in this process."""
    monkeypatch.setenv("LEVIT_REDIS_URL", redis_server)
    monkeypatch.setenv("LEVIT_STATE_DIR", str(state_dir))

    def run(*arguments: object) -> Result:
        return CliRunner().invoke(cli.app, ["log", "export", *map(str, arguments)])

    return run


def samples(stream: list[Submission]) -> tuple[Array, Array]:
    """Return all samples and integer labels of a stream, -1 for none."""
    decoded = [decode_payload(one.payload) for one in stream]
    x = np.concatenate([x for x, _ in decoded])
    y = np.concatenate([np.full(len(x), -1) if y is None else np.asarray(y) for x, y in decoded])
    return x, y


def read_parquet(path: Path) -> dict[str, list[Any]]:
    """Return the columns of a Parquet file."""
    parquet = pytest.importorskip("pyarrow.parquet")
    columns: dict[str, list[Any]] = parquet.read_table(path).to_pydict()
    return columns


@pytest.fixture
async def lived(settings: MakeSettings) -> Lived:
    """Return a stream of which a part is archived and a part was set aside."""
    made, stream = settings(), batches(20)
    archive(made, await append_all(made, stream), 12)
    Decisions(made.state_dir).add(Decision(kind="skip", after=4, until=6, reason="it kills"))
    return made, stream


def test_an_npz_has_every_sample_and_what_was_decided(
    lived: Lived, levit: Levit, tmp_path: Path
) -> None:
    _, stream = lived

    result = levit(tmp_path / "out.npz")

    assert result.exit_code == 0, result.exception
    assert "80 samples of 20 entries written" in result.stdout
    arrays = read_arrays(tmp_path / "out.npz")
    x, y = samples(stream)
    np.testing.assert_array_equal(arrays["x"], x)
    np.testing.assert_array_equal(arrays["y"], y)
    assert arrays["x"].dtype == np.uint8
    assert arrays["entry"].tolist() == [number for number in range(1, 21) for _ in range(4)]
    assert arrays["number"].tolist() == list(range(1, 21))
    assert arrays["skipped"].nonzero()[0].tolist() == [4, 5]
    assert arrays["reason"].tolist() == [""] * 4 + ["it kills"] * 2 + [""] * 14
    assert len(set(arrays["batch_id"].tolist())) == len(set(arrays["position"].tolist())) == 20
    assert list(tmp_path.glob(".tmp-*")) == []


def test_a_parquet_has_one_row_a_sample(
    lived: Lived, levit: Levit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pyarrow")
    monkeypatch.setattr(export, "ROW_GROUP_BYTES", 1000)
    _, stream = lived

    result = levit(tmp_path / "out.parquet")

    assert result.exit_code == 0, result.exception
    columns = read_parquet(tmp_path / "out.parquet")
    x, y = samples(stream)
    np.testing.assert_array_equal(np.array(columns["x"]).reshape(x.shape), x)
    assert columns["y"] == [None if label < 0 else label for label in y.tolist()]
    assert columns["entry"] == [number for number in range(1, 21) for _ in range(4)]
    assert columns["skipped"] == [number in (5, 6) for number in columns["entry"]]
    assert set(columns["reason"]) == {None, "it kills"}
    assert len(set(columns["batch_id"])) == 20


@pytest.mark.parametrize("suffix", ["npz", "parquet"])
async def test_string_labels_and_float_samples_among_bytes(
    settings: MakeSettings, levit: Levit, tmp_path: Path, suffix: str
) -> None:
    dark, bright = np.zeros((2, 8, 8, 3), np.uint8), np.full((1, 8, 8, 3), 255, np.uint8)
    grey = np.full((1, 8, 8, 3), 0.5, np.float32)
    await append_all(
        settings(),
        [submission(dark, ["sea", ""]), submission(grey, ["a\nlonger one"]), submission(bright)],
    )

    out = tmp_path / f"out.{suffix}"
    assert levit(out).exit_code == 0

    if suffix == "npz":
        arrays = read_arrays(out)
        x, y = arrays["x"], arrays["y"].tolist()
    else:
        columns = read_parquet(out)
        x = np.array(columns["x"], np.float32).reshape(4, 8, 8, 3)
        y = [label or "" for label in columns["y"]]
    assert x.dtype == np.float32
    assert [sample.mean() for sample in x] == [0.0, 0.0, 0.5, 1.0]
    assert y == ["sea", "", "a\nlonger one", ""]


def test_a_stretch_is_exported_alone(lived: Lived, levit: Levit, tmp_path: Path) -> None:

    result = levit(tmp_path / "out.npz", "--after", 10, "--until", 15)

    assert result.exit_code == 0, result.exception
    assert read_arrays(tmp_path / "out.npz")["number"].tolist() == [11, 12, 13, 14, 15]


# Refusing


def test_a_file_that_exists_is_replaced_only_when_asked(
    lived: Lived, levit: Levit, tmp_path: Path
) -> None:
    out = tmp_path / "out.npz"
    out.write_text("precious")

    refused = levit(out)

    assert isinstance(refused.exception, SettingsError)
    assert out.read_text() == "precious"
    assert levit(out, "--force").exit_code == 0
    assert len(read_arrays(out)["x"]) == 80


def test_another_format_is_refused(levit: Levit, tmp_path: Path) -> None:
    result = levit(tmp_path / "out.csv")

    assert isinstance(result.exception, SettingsError)
    assert "ends in .npz or .parquet" in str(result.exception)


def test_without_pyarrow_a_parquet_says_how_to_install_it(
    levit: Levit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)

    result = levit(tmp_path / "out.parquet")

    assert isinstance(result.exception, SettingsError)
    assert "pip install 'levit-stream[parquet]'" in str(result.exception)


def test_an_empty_log_is_refused(levit: Levit, tmp_path: Path) -> None:
    result = levit(tmp_path / "out.npz")

    assert isinstance(result.exception, IncompleteHistory)
    assert list(tmp_path.glob("*.npz")) == []


@pytest.mark.parametrize("walk", ["look", "write"])
def test_an_export_that_fails_leaves_nothing_behind(
    lived: Lived, tmp_path: Path, walk: str
) -> None:
    made, _ = lived
    history = History(made.state_dir, str(made.redis_url))
    before = sorted(tmp_path.iterdir())

    def breaks(description: str) -> Iterator[Entry]:
        yield from history.entries(0, 10)
        if description == walk:
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        export.export(tmp_path / "out.npz", breaks, Decisions(made.state_dir))

    assert sorted(tmp_path.iterdir()) == before
    history.close()
