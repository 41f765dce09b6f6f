"""The demo: what it streams, what it measures, what it leaves behind."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from rich.console import Console
from rich.table import Table

from service.client import Client
from service.datafile import BadDataFile
from service.demo import process, report
from service.demo.data import FILE_SETTINGS, load_data
from service.demo.run import run
from service.demo.stream import Moment, Result, correct
from service.errors import DemoFailed, SettingsError

DIGITS = load_data("digits", None)
RESULT = Result(
    samples=40,
    batch_size=10,
    moments=[
        Moment(
            samples=20 * (1 + number),
            classes=2,
            prequential_accuracy=None if number == 0 else 0.5,
            seen_accuracy=0.75,
            experts=1 + number,
            expansions=number,
        )
        for number in range(2)
    ],
    accuracy=0.9,
    accuracy_by_class={0: 1.0, 1: 0.8},
    experts=2,
    expansion_samples=[30],
    seconds=4.0,
    capacity=20,
    threshold=0.5,
    state_bytes=2_500_000,
)
RUNS = [
    report.Run(preset="default", result=RESULT, settings={"budget": 20.0}),
    report.Run(
        preset="paper",
        result=replace(RESULT, accuracy=0.3, seconds=8.0),
        settings={"replay_per_batch": 54, "patch": None},
    ),
]


def test_the_digits_are_split_by_class_and_nothing_is_in_both_parts() -> None:
    train = {image.tobytes() for image in DIGITS.x_train}
    _, held_out = np.unique(DIGITS.y_test, return_counts=True)

    assert len(DIGITS.x_train) + len(DIGITS.x_test) == 1797
    assert held_out.min() > 34
    assert not train & {image.tobytes() for image in DIGITS.x_test}


def test_the_digits_use_the_whole_range_of_a_byte() -> None:
    assert DIGITS.x_train.dtype == np.uint8
    assert (DIGITS.x_train.min(), DIGITS.x_train.max()) == (0, 255)


def test_samples_arrive_class_after_class() -> None:
    assert (np.diff(DIGITS.y_train) >= 0).all()
    assert DIGITS.classes.tolist() == list(range(10))


def test_a_limit_takes_the_same_number_of_every_class() -> None:
    few = load_data("digits", None, limit=50, batch_size=7)

    assert np.unique(few.y_train, return_counts=True)[1].tolist() == [5] * 10
    assert few.batch_size == 7
    assert len(few.x_test) == len(DIGITS.x_test)


def test_a_name_is_a_file_in_the_data_directory(tmp_path: Path) -> None:
    x, y = np.zeros((4, 8, 8), np.uint8), np.array([1, 0, 1, 0])
    np.savez(tmp_path / "mine.npz", x_train=x, y_train=y, x_test=x[:2], y_test=y[:2])

    data = load_data("mine", tmp_path)

    assert (data.name, data.batch_size, data.settings) == ("mine", 100, FILE_SETTINGS)
    assert data.y_train.tolist() == [0, 0, 1, 1]


def test_a_file_without_held_out_samples_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "mine.npz", x_train=np.zeros((4, 8, 8), np.uint8))

    with pytest.raises(BadDataFile, match="missing y_train"):
        load_data(str(tmp_path / "mine.npz"), None)


def test_predictions_are_asked_for_in_requests_that_a_body_may_hold() -> None:
    class Echo:
        """Stands for a service that says of every sample what its first value is."""

        sizes: list[int] = []  # noqa: RUF012  of this test only

        def predict(self, x: np.ndarray) -> "Echo":
            self.sizes.append(x.nbytes)
            self.labels = x.reshape(len(x), -1)[:, 0]
            return self

    x = np.zeros((20, 128, 128, 3), np.float32)
    x[:, 0, 0, 0] = np.arange(20)

    right = correct(cast(Client, Echo()), x, np.where(np.arange(20) < 5, np.arange(20), -1))

    assert right.sum() == 5
    assert max(Echo.sizes) < 8 * 2**20


def test_the_table_names_every_number_that_matters() -> None:
    text = _printed(report.table(DIGITS, RUNS[1:]))

    told = ("30.0%", "0: 100%", "expansions", "40 in batches of 10", "54", "the preset's", "0.5")
    assert [number for number in told if number not in text] == []


def test_the_table_sets_the_presets_side_by_side() -> None:
    printed = _printed(report.table(DIGITS, RUNS)).splitlines()
    cells = [[cell.strip() for cell in line.split("│")] for line in printed if "│" in line]
    told = {name: [first, second] for _, name, first, second, _ in cells}

    assert told["accuracy, all classes, per sample"] == ["90.0%", "30.0%"]
    assert told["seconds"] == ["4", "8"]
    assert told["bytes of state"] == ["2.5 MB", "2.5 MB"]
    assert told["budget"] == ["20.0", "-"]


def test_of_a_service_elsewhere_the_settings_are_not_claimed() -> None:
    elsewhere = replace(RUNS[0], settings={})

    assert "as that service is set" in _printed(report.table(DIGITS, [elsewhere]))


def _printed(table: Table) -> str:
    console = Console(record=True, width=100, file=None)
    console.print(table)
    return console.export_text()


def test_the_picture_and_the_numbers_are_written(tmp_path: Path) -> None:
    report.draw(tmp_path / "demo.png", DIGITS, RUNS)
    report.write_json(tmp_path / "demo.json", DIGITS, RUNS)

    numbers, other = json.loads((tmp_path / "demo.json").read_text())["runs"]
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")
    assert numbers["accuracy_by_class"] == {"0": 1.0, "1": 0.8}
    assert numbers["samples_per_second"] == 10.0
    assert numbers["settings"] == {"budget": 20.0}
    assert (other["preset"], other["accuracy"]) == ("paper", 0.3)


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory, where the demo leaves its files."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_directory_that_no_demo_made_is_left_alone(elsewhere: Path) -> None:
    (elsewhere / "demo-state").mkdir()
    (elsewhere / "demo-state" / "precious").touch()

    with pytest.raises(SettingsError, match="no demo made it"), process.running_service({}):
        pass

    assert (elsewhere / "demo-state" / "precious").exists()


@pytest.mark.usefixtures("elsewhere")
def test_a_service_that_does_not_start_says_where_its_log_is() -> None:
    broken = {"host": "192.0.2.1"}

    with pytest.raises(DemoFailed, match=r"demo\.log"), process.running_service(broken):
        pass


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_short_demo_runs_to_its_end_twice(
    elsewhere: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEVIT_PRESET", "default")
    run("digits", url=None, limit=50, batch_size=None, out=Path("demo.png"))
    assert len(json.loads((elsewhere / "demo.json").read_text())["runs"]) == 1

    monkeypatch.delenv("LEVIT_PRESET")  # then both, and the state of the first run is there
    monkeypatch.setenv("LEVIT_REPLAY_BYTES", str(2**25))  # which preset paper does not know
    run("digits", url=None, limit=300, batch_size=None, out=Path("demo.png"))

    runs = json.loads((elsewhere / "demo.json").read_text())["runs"]
    assert [numbers["preset"] for numbers in runs] == ["default", "paper"]
    for numbers in runs:
        assert numbers["samples"] == 300
        assert numbers["experts"] == 1 + len(numbers["expansion_samples"])
        assert numbers["moments"][-1]["samples"] == 300
    assert (elsewhere / "demo.png").exists()
    assert (elsewhere / "demo-state" / "snapshots" / "current").exists()
    told = capsys.readouterr().out
    assert "LEVIT_PRESET=default" in told
    assert "levit serve --insecure --state-dir demo-state" in told


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_ctrl_c_stops_what_the_demo_started(elsewhere: Path) -> None:
    command = [sys.executable, "-m", "service", "demo"]
    demo = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not (elsewhere / "demo-state" / "snapshots" / "current").exists():
        assert demo.poll() is None
        time.sleep(0.1)

    os.killpg(demo.pid, signal.SIGINT)  # as a terminal does

    _, said = demo.communicate(timeout=60)
    assert demo.returncode != 0
    assert "Traceback" not in said
    with pytest.raises(ProcessLookupError):
        os.killpg(demo.pid, 0)
