"""The served model: follows snapshots, swaps whole, never serves damage."""

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from structlog.testing import capture_logs

from service.api.predictor import Answer, Follower
from service.engine.protocol import Engines, Prediction
from service.errors import Unavailable
from service.settings import Settings
from service.store.snapshots import SnapshotInfo
from tests.served import PixelPredictor, load_pixel_engines, publish

INFO = SnapshotInfo(version=1, position="7-0", step=5, quarantined=0, published_at=0.0, summary={})
ZEROS = np.zeros((1, 8, 8, 1), np.uint8)


@pytest.fixture
def follower(tmp_path: Path) -> Follower:
    """A follower that is not started: tests say when it looks."""
    return Follower(Settings(state_dir=tmp_path), load_pixel_engines)


def test_before_the_first_snapshot_there_is_no_answer(follower: Follower) -> None:
    follower.follow_once(load_pixel_engines())

    assert follower.current is None
    with pytest.raises(Unavailable, match="no model is published yet") as refused:
        follower.answer(ZEROS)
    assert (refused.value.code, refused.value.retry_after_s) == ("not_ready", 1)


def test_the_newest_snapshot_answers(follower: Follower, tmp_path: Path) -> None:
    publish(tmp_path, classes=[1, 2])
    follower.follow_once(load_pixel_engines())
    publish(tmp_path, classes=["a", "b"], position="8-0")
    follower.follow_once(load_pixel_engines())

    answer = follower.answer(ZEROS)

    assert (answer.info.version, answer.info.position) == (2, "8-0")
    assert answer.known == ["a", "b"]


def test_an_unchanged_snapshot_is_not_loaded_again(follower: Follower, tmp_path: Path) -> None:
    publish(tmp_path, classes=[1, 2])
    follower.follow_once(load_pixel_engines())
    served = follower.current

    follower.follow_once(load_pixel_engines())

    assert follower.current is served


def test_a_damaged_snapshot_is_logged_once_and_the_one_before_goes_on(
    follower: Follower, tmp_path: Path
) -> None:
    publish(tmp_path, classes=[1, 2])
    follower.follow_once(load_pixel_engines())
    publish(tmp_path, classes=["a", "b"])
    damaged = tmp_path / "snapshots" / "snap-2" / "served.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"!")

    with capture_logs() as logs:
        follower.follow_once(load_pixel_engines())
        follower.follow_once(load_pixel_engines())

    assert follower.answer(ZEROS).info.version == 1
    assert [entry["event"] for entry in logs] == ["snapshot_refused"]
    assert logs[0]["version"] == 2


def test_the_next_whole_snapshot_is_served_after_a_damaged_one(
    follower: Follower, tmp_path: Path
) -> None:
    publish(tmp_path, classes=[1, 2])
    (tmp_path / "snapshots" / "snap-1" / "manifest.json").write_text("{}")
    follower.follow_once(load_pixel_engines())
    publish(tmp_path, classes=[1, 2])

    follower.follow_once(load_pixel_engines())

    assert follower.answer(ZEROS).info.version == 2


def test_a_damaged_pointer_is_logged_once_and_survived(follower: Follower, tmp_path: Path) -> None:
    publish(tmp_path, classes=[1, 2])
    follower.follow_once(load_pixel_engines())
    (tmp_path / "snapshots" / "current").write_text("no number")

    with capture_logs() as logs:
        follower.follow_once(load_pixel_engines())
        follower.follow_once(load_pixel_engines())

    assert follower.answer(ZEROS).info.version == 1
    assert len(logs) == 1


def test_what_could_not_be_read_for_a_while_is_read_later(
    follower: Follower, tmp_path: Path
) -> None:
    publish(tmp_path, classes=[1, 2])
    pointer = tmp_path / "snapshots" / "current"
    pointer.rename(tmp_path / "away")
    pointer.mkdir()  # reading it is an OSError
    with capture_logs():
        follower.follow_once(load_pixel_engines())
    pointer.rmdir()
    (tmp_path / "away").rename(pointer)

    follower.follow_once(load_pixel_engines())

    assert follower.answer(ZEROS).info.version == 1


@pytest.fixture
def slow_start(tmp_path: Path) -> Iterator[tuple[Follower, threading.Event]]:
    """A running follower whose engines are loaded when the event is set."""
    loaded = threading.Event()

    def load() -> Engines:
        loaded.wait()
        return load_pixel_engines()

    follower = Follower(Settings(state_dir=tmp_path), load)
    follower.start()
    yield follower, loaded
    loaded.set()
    follower.stop()


def test_starting_does_not_wait_for_the_engines(
    slow_start: tuple[Follower, threading.Event], tmp_path: Path
) -> None:
    follower, _ = slow_start
    publish(tmp_path, classes=[1, 2])

    assert follower.alive
    assert follower.current is None


def test_stopping_ends_the_thread(slow_start: tuple[Follower, threading.Event]) -> None:
    follower, loaded = slow_start
    loaded.set()

    follower.stop()

    assert not follower.alive


def test_only_the_top_classes_are_told_descending_and_rounded() -> None:
    prediction = Prediction(
        classes=["a", "b", "c"],
        probabilities=np.array([[0.12345, 0.5, 0.37655]], np.float32),
        experts=np.array([4]),
        novelty=np.array([0.25], np.float32),
    )

    answer = Answer.of(prediction, INFO, top_k=2)

    assert answer.top.tolist() == [[1, 2]]
    assert answer.probabilities.tolist() == [[0.5, 0.377]]
    assert answer.answered.tolist() == [True]


@pytest.mark.parametrize("row", [[0.0, 0.0], [np.nan, 0.5]], ids=["no label seen", "not finite"])
def test_a_row_without_probabilities_is_no_answer(row: list[float]) -> None:
    prediction = Prediction(
        classes=[0, 1],
        probabilities=np.array([row], np.float32),
        experts=np.array([0]),
        novelty=np.array([0.0], np.float32),
    )

    assert Answer.of(prediction, INFO, top_k=2).answered.tolist() == [False]


def test_a_model_without_classes_answers_without_labels() -> None:
    prediction = Prediction(
        classes=[],
        probabilities=np.zeros((2, 0), np.float32),
        experts=np.array([0, 0]),
        novelty=np.array([1.0, 2.0], np.float32),
    )

    answer = Answer.of(prediction, INFO, top_k=5)

    assert answer.answered.tolist() == [False, False]
    assert answer.top.shape == (2, 0)


def test_rows_are_the_rows_of_the_whole() -> None:
    x = np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1) * np.ones((8, 8, 1), np.uint8)
    whole = Answer.of(PixelPredictor([0, 1, 2]).predict(x), INFO, top_k=1)

    assert whole.rows(1, 3).top.tolist() == [[1], [2]]
    assert whole.rows(1, 3).info is INFO
