"""Every file of a checkpoint times every damage: told aloud, and the one before is taken."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from service.errors import CorruptState
from service.metrics import WorkerMetrics
from service.settings import Settings
from service.store import directory
from service.worker import loop
from service.worker.checkpoints import FORMAT, Checkpoints
from service.worker.learning import Learning
from tests.conftest import MakeSettings
from tests.log_entries import append_all, batches, digest
from tests.toy_engine import ToyEngines
from tests.toy_learning import learn_all

SAVED = (20, 40, 60)
"""Entries in each checkpoint."""


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def older(path: Path) -> None:
    """Make a manifest that of an earlier format, with a hash that is right."""
    manifest = json.loads(path.read_bytes())
    files = {name: directory.FileFacts(**file) for name, file in manifest.pop("files").items()}
    del manifest["sha256"]
    path.write_bytes(directory._seal(manifest | {"format": FORMAT - 1}, files))


Damage = Callable[[Path], object]
DAMAGES: dict[str, Damage] = {
    "flip": flip,
    "truncation": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "emptiness": lambda path: path.write_bytes(b""),
    "loss": Path.unlink,
}


@pytest.fixture(autouse=True)
def _steady(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "BLOCK_MS", 1)


@pytest.fixture
async def made(settings: MakeSettings) -> Settings:
    """Settings of a state directory with three checkpoints, each with frozen experts."""
    made, stream = settings(checkpoints_kept=100), batches(SAVED[-1])
    for start, end in zip((0, *SAVED), SAVED, strict=False):
        await append_all(made, stream[start:end])
        learn_all(made)
    for path in list(Checkpoints(made).newest_first()):
        if directory.open_directory(path).facts["progress"]["consumed"] not in SAVED:
            directory.remove(path)  # those made when the mixture grew
    restored(made)  # archives and trims up to the oldest, for all copies
    return made


def cases(made: Settings) -> Iterator[tuple[str, Damage, str]]:
    newest = next(Checkpoints(made).newest_first())
    files = sorted(path.name for path in newest.iterdir())
    assert len(files) > 8
    for file in files:
        for name, damage in DAMAGES.items():
            yield f"{name} of {file}", damage, file
    yield "older format", older, directory.MANIFEST


def restored(settings: Settings) -> tuple[int, list[str]]:
    """Return the entries that a restarted worker has learned, and what it logs as critical."""
    learning = Learning(settings, ToyEngines(), str(settings.redis_url), _metrics())
    try:
        with capture_logs() as logs:
            learning.restore()
        return learning.progress.consumed, [
            one["event"] for one in logs if one["log_level"] == "critical"
        ]
    finally:
        learning.close()


def _metrics() -> WorkerMetrics:
    return WorkerMetrics(CollectorRegistry())


def test_whatever_is_damaged_the_one_before_is_taken_and_it_is_told_aloud(
    made: Settings, tmp_path: Path
) -> None:
    found = {}
    for number, (name, damage, file) in enumerate(cases(made)):
        copy = made.model_copy(update={"state_dir": tmp_path / f"case-{number}"})
        shutil.copytree(made.state_dir, copy.state_dir)
        damage(next(Checkpoints(copy).newest_first()) / file)
        found[name] = restored(copy)

    assert found == {name: (SAVED[-2], ["checkpoint_damaged"]) for name, _, _ in cases(made)}


def test_what_is_whole_is_taken_in_silence(made: Settings) -> None:
    assert restored(made) == (SAVED[-1], [])


def test_the_third_is_taken_when_two_are_damaged(made: Settings) -> None:
    for path in list(Checkpoints(made).newest_first())[:2]:
        flip(path / "training.safetensors")

    assert restored(made) == (SAVED[0], 2 * ["checkpoint_damaged"])


def test_from_the_one_before_the_same_state_is_reached_again(made: Settings) -> None:
    path = next(Checkpoints(made).newest_first())
    expected = digest(Checkpoints(made).read(path).state)
    flip(path / "training.safetensors")

    assert digest(learn_all(made).state) == expected


@pytest.mark.parametrize("damage", [flip, Path.unlink, older], ids=["flip", "loss", "older format"])
def test_when_all_are_damaged_it_never_begins_anew(made: Settings, damage: Damage) -> None:
    for path in Checkpoints(made).newest_first():
        damage(path / directory.MANIFEST)

    with pytest.raises(CorruptState, match="none of 3 checkpoints can be restored"):
        restored(made)


def test_without_the_hashes_a_flipped_byte_would_not_be_noticed(
    made: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = next(Checkpoints(made).newest_first())
    file = path / "training.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    monkeypatch.setattr(
        directory.StoredDirectory, "read", lambda self, name: (self.path / name).read_bytes()
    )

    assert restored(made) == (SAVED[-1], [])
