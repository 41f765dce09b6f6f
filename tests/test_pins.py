"""Pins and forks: checkpoints that outlive log and Redis, and learners that go on from them."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from service.engine.protocol import Labels
from service.errors import CorruptState, Misused
from service.settings import Settings
from service.store import pins
from service.store.fence import Fence
from service.store.forks import adopt, export_snapshot, fork
from service.store.link import connect
from service.store.names import DEFAULT as names
from service.store.pins import pin, unpin
from service.store.read import Log
from service.store.replay import ReplayStore
from service.store.snapshots import SnapshotReader
from service.store.stream_ids import START
from service.worker import checkpoints as checkpoints_module
from service.worker import loop
from service.worker.checkpoints import Checkpoints
from tests.conftest import MakeSettings
from tests.log_entries import append_all, batches, claimed, digest, submission
from tests.toy_learning import learn_all

NOWHERE = "unix:///nowhere/redis.sock"


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "SHARE", 0.5)
    monkeypatch.setattr(loop, "BLOCK_MS", 1)


def seq_of(settings: Settings) -> int:
    return Checkpoints(settings).newest_seq


def url_of(settings: Settings) -> str:
    assert settings.redis_url is not None
    return settings.redis_url


def flush(settings: Settings) -> None:
    redis = connect(url_of(settings))
    redis.flushall()
    redis.close()


def pinned(settings: Settings, name: str = "kept") -> pins.Pin:
    fence = Fence(url_of(settings))
    try:
        return pin(settings.state_dir, seq_of(settings), name, fence)
    finally:
        fence.close()


def adopted(settings: Settings) -> bool:
    fence = Fence(url_of(settings))
    try:
        fence.claim(0)
        return adopt(fence, settings.state_dir)
    finally:
        fence.close()


async def forked(settings: Settings, tmp_path: Path) -> Settings:
    """Return the settings of a fork from a pin after twenty entries, with an empty Redis."""
    await append_all(settings, batches(20))
    learn_all(settings)
    pinned(settings)
    fork(settings.state_dir, "kept", tmp_path / "fork", NOWHERE)
    flush(settings)
    return settings.model_copy(update={"state_dir": tmp_path / "fork"})


# Pins


async def test_a_pin_is_the_checkpoint_and_the_samples_it_names(settings: MakeSettings) -> None:
    made = settings()
    await append_all(made, batches(20))
    checkpoint = learn_all(made)
    redis = Fence(url_of(made))
    samples = ReplayStore(redis).fetch([tuple(id_) for id_ in checkpoint.state.members])

    told = pinned(made)

    stored = pins.open_pin(made.state_dir / "pins" / "kept")
    found = [item for part in pins.samples(stored) for item in part.items()]
    assert [id_ for id_, _ in found] == [tuple(id_) for id_ in checkpoint.state.members.tolist()]
    assert all(np.array_equal(x, s) for (_, (x, _)), s in zip(found, samples.x, strict=True))
    assert [label for _, (_, label) in found] == samples.labels
    assert (told.seq, told.number) == (seq_of(made), 20)
    assert (told.position, told.bytes) == (checkpoint.progress.position, stored.size)
    assert pins.pins(made.state_dir) == [told]


@pytest.mark.parametrize(
    "labels", [None, np.array([3, -1]), ["cat", ""]], ids=["none", "integers", "strings"]
)
async def test_labels_of_every_kind_come_back(
    settings: MakeSettings, labels: Labels | None
) -> None:
    made = settings()
    x = np.arange(2 * 64, dtype=np.uint8).reshape(2, 8, 8, 1)
    await append_all(made, [submission(x, labels)])
    learn_all(made)

    pinned(made)

    (part,) = pins.samples(pins.open_pin(made.state_dir / "pins" / "kept"))
    listed = [None, None] if labels is None else [labels[0], None]
    assert [label for _, label in part.values()] == listed


async def test_samples_in_several_files_come_back_in_their_order(
    settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = settings()
    await append_all(made, batches(20))
    ids = learn_all(made).state.members.tolist()
    monkeypatch.setattr(pins, "CHUNK", 2)

    pinned(made)

    stored = pins.open_pin(made.state_dir / "pins" / "kept")
    parts = list(pins.samples(stored))
    assert len(parts) > 10
    assert [list(id_) for part in parts for id_ in part] == ids


async def test_a_pin_shares_the_files_of_its_checkpoint_and_outlives_it(
    settings: MakeSettings,
) -> None:
    made = settings(checkpoints_kept=1)
    await append_all(made, batches(20))
    path = made.state_dir / "checkpoints" / f"ckpt-{seq_of(made):08}"
    learn_all(made)
    path = made.state_dir / "checkpoints" / f"ckpt-{seq_of(made):08}"
    pinned(made)
    assert (path / "training.safetensors").stat().st_nlink == 2

    await append_all(made, batches(20, seed=1))
    learn_all(made)

    assert not path.exists()
    stored = pins.open_pin(made.state_dir / "pins" / "kept")
    assert all(stored.read(name) for name in stored.files)


async def test_a_pin_holds_neither_log_nor_redis(settings: MakeSettings) -> None:
    made = settings(checkpoints_kept=1)
    await append_all(made, batches(20))
    learn_all(made)
    pinned(made)

    await append_all(made, batches(40, seed=1))
    learn_all(made)

    redis = connect(url_of(made))
    kept = Checkpoints(made)
    assert kept.oldest.consumed > 20  # of the pin
    assert ReplayStore(Fence(url_of(made))).ids() == kept.members
    assert redis.xlen(names.log) == 60 - kept.oldest.consumed


@pytest.mark.parametrize("name", ["", "Kept", "a/b", "..", "x" * 41, "naïve", "a\n"])
async def test_a_name_that_is_none_is_refused(state_dir: Path, name: str) -> None:
    with pytest.raises(Misused, match="expected a name of 1 to 40"):
        pin(state_dir, 1, name, Fence(NOWHERE))


async def test_what_cannot_be_pinned_is_named(settings: MakeSettings) -> None:
    made = settings()
    await append_all(made, batches(4))
    learn_all(made)
    pinned(made)

    with pytest.raises(Misused, match="the name kept is taken"):
        pinned(made)
    with pytest.raises(Misused, match="expected the number of a kept checkpoint, got 99"):
        pin(made.state_dir, 99, "other", Fence(url_of(made)))


async def test_a_damaged_checkpoint_is_not_pinned(settings: MakeSettings) -> None:
    made = settings()
    await append_all(made, batches(4))
    learn_all(made)
    file = made.state_dir / "checkpoints" / f"ckpt-{seq_of(made):08}" / "training.safetensors"
    file.write_bytes(file.read_bytes()[:-1])

    with pytest.raises(CorruptState, match=r"training\.safetensors is not what was written"):
        pinned(made)

    assert pins.pins(made.state_dir) == []


async def test_a_pin_without_its_samples_is_not_made(settings: MakeSettings) -> None:
    made = settings()
    await append_all(made, batches(4))
    learn_all(made)
    connect(url_of(made)).delete(names.replay)

    with pytest.raises(CorruptState, match="is not stored"):
        pinned(made)

    assert list((made.state_dir / "pins").iterdir()) == []


async def test_what_is_unpinned_is_gone(settings: MakeSettings) -> None:
    made = settings()
    await append_all(made, batches(4))
    learn_all(made)
    pinned(made)

    unpin(made.state_dir, "kept")

    assert pins.pins(made.state_dir) == []
    with pytest.raises(Misused, match="expected the name of a pin, got 'kept'"):
        unpin(made.state_dir, "kept")


def test_pins_know_the_file_that_names_the_samples() -> None:
    assert pins.MEMBERS == checkpoints_module.MEMBERS


# Forks


async def test_a_fork_goes_on_bit_equal_on_an_empty_redis(
    settings: MakeSettings, tmp_path: Path
) -> None:
    made, stream = settings(), batches(40)
    await append_all(made, stream[:20])
    learn_all(made)
    pinned(made)
    await append_all(made, stream[20:])
    expected = learn_all(made)
    number = fork(made.state_dir, "kept", tmp_path / "fork", NOWHERE)
    flush(made)
    other = made.model_copy(update={"state_dir": tmp_path / "fork"})

    assert adopted(other)
    await append_all(other, stream[20:])
    found = learn_all(other)

    assert number == 20
    assert digest(found.state) == digest(expected.state)
    assert replace(found.progress, position="") == replace(expected.progress, position="")
    assert found.identity != expected.identity


async def test_without_its_samples_a_fork_does_not_start(
    settings: MakeSettings, tmp_path: Path
) -> None:
    other = await forked(settings(), tmp_path)
    adopted(other)
    connect(url_of(other)).delete(names.replay)

    with pytest.raises(CorruptState, match="checkpoints can be restored"):
        learn_all(other)


async def test_numbers_and_the_gap_are_right_from_the_start(
    settings: MakeSettings, tmp_path: Path, either_server: str
) -> None:
    other = await forked(settings(redis_url=either_server), tmp_path)

    adopted(other)

    log = Log(claimed(either_server))
    assert log.gap(20, 20) == 0
    (receipt,) = await append_all(other, batches(1))
    assert receipt.backlog == 1
    assert log.gap(20, 20) == 0
    assert connect(either_server).get(names.accepted) == b"21"
    assert [position for position, _ in log.read(START, count=9, block_ms=1)] == [receipt.position]


async def test_what_was_accepted_before_the_worker_started_is_learned_first(
    settings: MakeSettings, tmp_path: Path
) -> None:
    other = await forked(settings(), tmp_path)
    await append_all(other, batches(3, seed=5))

    adopted(other)
    await append_all(other, batches(2, seed=6))
    found = learn_all(other)

    assert (found.progress.consumed, found.progress.learned) == (25, 25)


async def test_batches_of_another_kind_before_the_worker_started_are_named(
    settings: MakeSettings, tmp_path: Path
) -> None:
    other = await forked(settings(), tmp_path)
    await append_all(other, [submission(np.zeros((2, 5), np.float32), np.array([1, 2]))])

    with pytest.raises(CorruptState, match="redis holds batches of vector:5 with int labels"):
        adopted(other)


async def test_a_crash_in_the_middle_of_adopting_is_made_good(
    settings: MakeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pins, "CHUNK", 4)
    other = await forked(settings(), tmp_path)
    writes = 0
    write = Fence.write

    def dies(self: Fence, *arguments: object) -> object:
        nonlocal writes
        writes += 1
        if writes > 1:
            raise KeyboardInterrupt
        return write(self, *arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(Fence, "write", dies)
        with pytest.raises(KeyboardInterrupt):
            adopted(other)

    assert adopted(other)
    assert not adopted(other)
    assert learn_all(other).progress.consumed == 20


async def test_only_the_first_checkpoint_of_a_fork_is_adopted(
    settings: MakeSettings, tmp_path: Path
) -> None:
    other = await forked(settings(), tmp_path)
    adopted(other)
    await append_all(other, batches(2, seed=5))
    learn_all(other)
    flush(other)

    assert not adopted(other)
    with pytest.raises(CorruptState):
        learn_all(other)


async def test_a_fork_from_a_checkpoint_takes_the_samples_from_redis(
    settings: MakeSettings, tmp_path: Path
) -> None:
    made = settings()
    await append_all(made, batches(20))
    expected = learn_all(made)

    fork(made.state_dir, str(seq_of(made)), tmp_path / "fork", url_of(made))
    shutil.rmtree(made.state_dir)
    flush(made)
    other = made.model_copy(update={"state_dir": tmp_path / "fork"})
    adopted(other)

    assert digest(learn_all(other).state) == digest(expected.state)


@pytest.mark.parametrize("chosen", ["7", "other", "../x", "²"])
def test_a_fork_from_nothing_is_refused(
    settings: MakeSettings, tmp_path: Path, chosen: str
) -> None:
    with pytest.raises(Misused, match="expected the n"):
        fork(settings().state_dir, chosen, tmp_path / "fork", NOWHERE)

    assert sorted(path.name for path in tmp_path.iterdir()) == ["state"]


async def test_a_fork_over_something_is_refused(settings: MakeSettings, tmp_path: Path) -> None:
    made = settings()
    (tmp_path / "fork").mkdir()
    (tmp_path / "fork" / "file").touch()

    with pytest.raises(Misused, match="expected a directory that is not there yet"):
        fork(made.state_dir, "1", tmp_path / "fork", NOWHERE)


async def test_a_fork_of_a_fork_needs_no_redis_either(
    settings: MakeSettings, tmp_path: Path
) -> None:
    other = await forked(settings(), tmp_path)

    fork(other.state_dir, "origin", tmp_path / "third", NOWHERE)
    third = other.model_copy(update={"state_dir": tmp_path / "third"})
    adopted(third)

    assert learn_all(third).progress.consumed == 20


# Snapshots


async def test_an_exported_snapshot_is_what_predictors_load(
    settings: MakeSettings, tmp_path: Path
) -> None:
    made = settings()
    await append_all(made, batches(20))
    learn_all(made)

    version = export_snapshot(made.state_dir, None, tmp_path / "export")
    shutil.rmtree(made.state_dir)

    reader = SnapshotReader(tmp_path / "export")
    assert reader.newest_version() == version
    assert reader.load(version).info.step == 20


def test_a_snapshot_that_is_not_there_is_named(settings: MakeSettings, tmp_path: Path) -> None:
    made = settings()

    with pytest.raises(Misused, match="expected the version of a published snapshot, got none"):
        export_snapshot(made.state_dir, None, tmp_path / "export")
    with pytest.raises(Misused, match="got 7"):
        export_snapshot(made.state_dir, 7, tmp_path / "export")

    assert not (tmp_path / "export").exists()


async def test_a_damaged_snapshot_is_not_exported(settings: MakeSettings, tmp_path: Path) -> None:
    made = settings()
    await append_all(made, batches(4))
    learn_all(made)
    version = SnapshotReader(made.state_dir).newest_version()
    file = made.state_dir / "snapshots" / f"snap-{version}" / "served.safetensors"
    file.write_bytes(b"")

    with pytest.raises(CorruptState, match=r"served\.safetensors is not what was written"):
        export_snapshot(made.state_dir, None, tmp_path / "export")

    assert not (tmp_path / "export").exists()
