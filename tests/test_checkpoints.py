"""Directories whole or not at all; checkpoints and snapshots that are what was written."""

import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from service.engine.protocol import EngineState, Summary
from service.errors import CorruptState
from service.settings import Settings
from service.store import directory
from service.store.directory import StoredDirectory
from service.store.entry import BatchStatus
from service.store.read import Outcome
from service.store.snapshots import SnapshotReader, SnapshotWriter, StreamFacts
from service.timeline import Timeline
from service.worker import environment
from service.worker.checkpoints import Checkpoint, Checkpoints
from service.worker.step import Progress
from service.worker.waiting import Waiting
from tests.log_entries import digest

CONTENTS = {"a.bin": b"a" * 1000, "b.bin": b"b" * 10}


def state(step: int, *, frozen: int = 1) -> EngineState:
    """Return a state whose active part differs from step to step and whose experts do not."""
    return EngineState(
        frozen={id_: {"w": np.full((4, 4), id_, np.float32)} for id_ in range(frozen)},
        served={"w": np.full((4, 4), step, np.float32)},
        training={"moment": np.full(4, step, np.float64)},
        members=np.array([[step, 0], [step, 1]]),
        values={"step": step, "generator": {"state": 2**127 + step}, "rate": 0.1},
    )


def outcome(number: int) -> Outcome:
    status = BatchStatus(batch_id=f"{number:032}", state="learned", n=2, step=number, expert=0)
    return Outcome(number=number, status=status, idempotency_key="k" * 16)


def write(checkpoints: Checkpoints, step: int, *, frozen: int = 1) -> StoredDirectory:
    progress = Progress(position=f"{step}-0", consumed=step, learned=step)
    checkpoint = Checkpoint(
        progress=progress,
        outcomes=[outcome(step)],
        state=state(step, frozen=frozen),
        summary=asdict(Summary(step=step)),
        recent={},
        waiting=Waiting(Settings()).dump(),
        writers={},
        canary={},
        timeline=Timeline().dump(),
        health={},
        decisions=0,
        identity="log",
        writer_epoch=1,
    )
    return checkpoints.write(checkpoint, healthy_until=0)


def publish(writer: SnapshotWriter, step: int, *, frozen: int = 1) -> int:
    info = writer.publish(
        state(step, frozen=frozen),
        Summary(step=step, classes=["cat"]),
        position=f"{step}-0",
        quarantined=0,
        stream=StreamFacts(Timeline().dump()),
        checkpoint=None,
    )
    return info.version


# Directories


def test_a_directory_comes_back_as_it_was_written(tmp_path: Path) -> None:
    directory.write(tmp_path / "whole", CONTENTS, {"seq": 1}, linked={})

    stored = directory.open_directory(tmp_path / "whole")

    assert {name: stored.read(name) for name in stored.files} == CONTENTS
    assert stored.facts == {"seq": 1}
    assert stored.size == 1010


# Three files and the directory are fsynced, then it is renamed: each of these may fail.
@pytest.mark.parametrize("survives", range(5))
def test_a_fault_in_the_middle_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, survives: int
) -> None:
    calls = 0

    def fail_in_turn(action: Callable[..., None]) -> Callable[..., None]:
        def wrapped(*arguments: object) -> None:
            nonlocal calls
            calls += 1
            if calls > survives:
                raise OSError(28, "No space left on device")
            action(*arguments)

        return wrapped

    monkeypatch.setattr(os, "fsync", fail_in_turn(os.fsync))
    monkeypatch.setattr(Path, "rename", fail_in_turn(Path.rename))

    with pytest.raises(OSError, match="No space"):
        directory.write(tmp_path / "whole", CONTENTS, {}, linked={})

    assert list(tmp_path.iterdir()) == []


def test_every_file_is_on_disk_before_the_name_is_and_then_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace: list[int | str] = []
    fsync, rename = os.fsync, Path.rename

    def traced_fsync(descriptor: int) -> None:
        trace.append(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    def traced_rename(path: Path, target: Path) -> Path:
        trace.append("rename")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", traced_fsync)
    monkeypatch.setattr(Path, "rename", traced_rename)
    whole = tmp_path / "whole"

    directory.write(whole, CONTENTS, {}, linked={})

    *files, own, renamed, parent = trace
    assert set(files) == {path.stat().st_ino for path in whole.iterdir()}
    assert (own, renamed, parent) == (whole.stat().st_ino, "rename", tmp_path.stat().st_ino)


def test_a_linked_file_is_the_same_file(tmp_path: Path) -> None:
    first = directory.write(tmp_path / "first", CONTENTS, {}, linked={})

    second = directory.write(tmp_path / "second", {}, {}, linked={"a.bin": first})
    directory.remove(tmp_path / "first")

    assert second.read("a.bin") == CONTENTS["a.bin"]
    assert (tmp_path / "second" / "a.bin").stat().st_nlink == 1


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "flip": flip,
    "truncation": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "loss": Path.unlink,
    "emptiness": lambda path: path.write_bytes(b""),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
@pytest.mark.parametrize(
    "name",
    [
        "expert-0.safetensors",
        "served.safetensors",
        "training.safetensors",
        "members.safetensors",
        "outcomes.json",
        "manifest.json",
    ],
)
def test_damage_to_any_file_of_a_checkpoint_is_detected(
    state_dir: Path, name: str, damage: Callable[[Path], object]
) -> None:
    checkpoints = Checkpoints(Settings(state_dir=state_dir))
    stored = write(checkpoints, 1)

    damage(stored.path / name)

    with pytest.raises(CorruptState):
        checkpoints.read(stored.path)


@pytest.mark.parametrize("digit", [b'"consumed": 7', b'"step": 7'])
def test_a_changed_number_in_a_manifest_is_detected(state_dir: Path, digit: bytes) -> None:
    checkpoints = Checkpoints(Settings(state_dir=state_dir))
    path = write(checkpoints, 7).path
    manifest = (path / "manifest.json").read_bytes()
    assert digit in manifest

    (path / "manifest.json").write_bytes(manifest.replace(digit, digit[:-1] + b"8"))

    with pytest.raises(CorruptState, match=r"manifest\.json is not what was written"):
        checkpoints.read(path)


# Checkpoints


def test_a_checkpoint_comes_back_as_it_was_written(state_dir: Path) -> None:
    write(Checkpoints(Settings(state_dir=state_dir)), 3)

    later = Checkpoints(Settings(state_dir=state_dir))
    checkpoint = later.read(next(later.newest_first()))

    assert digest(checkpoint.state) == digest(state(3))
    assert checkpoint.progress == Progress(position="3-0", consumed=3, learned=3)
    assert checkpoint.outcomes == [outcome(3)]
    assert later.other_environment() == {}


def test_the_kept_number_is_kept_and_the_oldest_of_them_bounds_trimming(state_dir: Path) -> None:
    settings = Settings(state_dir=state_dir, checkpoints_kept=3)
    checkpoints = Checkpoints(settings)
    for step in range(1, 6):
        write(checkpoints, step)

    names = [path.name for path in Checkpoints(settings).newest_first()]

    assert names == ["ckpt-00000005", "ckpt-00000004", "ckpt-00000003"]
    assert checkpoints.oldest == Checkpoints(settings).oldest
    assert checkpoints.oldest.consumed == 3
    assert checkpoints.members == {(step, index) for step in (3, 4, 5) for index in (0, 1)}


def test_a_frozen_expert_is_written_once_and_linked_after(state_dir: Path) -> None:
    checkpoints = Checkpoints(Settings(state_dir=state_dir))
    first = write(checkpoints, 1, frozen=1)

    second = write(checkpoints, 2, frozen=2)

    inode = (first.path / "expert-0.safetensors").stat().st_ino
    assert (second.path / "expert-0.safetensors").stat().st_ino == inode
    assert (second.path / "expert-1.safetensors").stat().st_nlink == 1
    assert digest(checkpoints.read(second.path).state) == digest(state(2, frozen=2))


def test_what_a_crashed_writer_left_is_removed(state_dir: Path) -> None:
    settings = Settings(state_dir=state_dir)
    write(Checkpoints(settings), 1)
    unfinished = state_dir / "checkpoints" / ".tmp-1234"
    unfinished.mkdir()
    (unfinished / "served.safetensors").write_bytes(b"half")

    checkpoints = Checkpoints(settings)

    assert not unfinished.exists()
    assert len(list(checkpoints.newest_first())) == 1


@pytest.mark.parametrize(
    ("name", "was", "now"), [("worker_threads", 1, 2), ("device", "cpu", "auto")]
)
def test_another_setting_that_changes_bits_is_named(
    state_dir: Path, name: str, was: object, now: object
) -> None:
    write(Checkpoints(Settings.read(state_dir=state_dir, **{name: was})), 1)

    later = Checkpoints(Settings.read(state_dir=state_dir, **{name: now}))
    later.read(next(later.newest_first()))

    assert later.other_environment() == {name.removeprefix("worker_"): was}


@pytest.mark.parametrize(
    ("cpu_info", "capability"),
    [
        ("processor : 0\nflags\t\t: fpu avx512f avx2 sse\n", "avx2 avx512f"),
        ("processor : 0\nflags\t\t: fpu avx avx2 sse\n", "avx2"),
        ("processor : 0\nflags\t\t: fpu sse avx2_lookalike\n", "baseline"),
        ("processor : 0\nFeatures\t: fp asimd\n", "unknown"),
        (None, "unknown"),
    ],
    ids=["avx512", "avx2", "baseline", "unlisted", "absent"],
)
def test_another_cpu_capability_is_named(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch, cpu_info: str | None, capability: str
) -> None:
    settings = Settings(state_dir=state_dir)
    file = state_dir / "cpuinfo"
    if cpu_info is not None:
        file.write_text(cpu_info)
    monkeypatch.setattr(environment, "CPU_INFO", file)
    write(Checkpoints(settings), 1)

    file.write_text("flags : avx512f\n")
    later = Checkpoints(settings)
    later.read(next(later.newest_first()))

    assert later.other_environment() == {"cpu": capability}


# Snapshots


def test_nothing_is_to_be_served_before_the_first_snapshot(state_dir: Path) -> None:
    assert SnapshotReader(state_dir).newest_version() is None


def test_a_published_snapshot_is_what_readers_load(state_dir: Path) -> None:
    version = publish(SnapshotWriter(state_dir), 5, frozen=2)

    reader = SnapshotReader(state_dir)
    loaded = reader.load(version)

    assert reader.newest_version() == version == loaded.info.version == 1
    assert (loaded.info.step, loaded.info.position) == (5, "5-0")
    assert loaded.info.summary["classes"] == ["cat"]
    expected = state(5, frozen=2)
    assert loaded.state.values == expected.values
    np.testing.assert_array_equal(loaded.state.served["w"], expected.served["w"])
    np.testing.assert_array_equal(loaded.state.frozen[1]["w"], expected.frozen[1]["w"])
    assert loaded.state.members.shape == (0, 2)


def test_versions_go_on_after_a_restart_and_two_snapshots_stay(state_dir: Path) -> None:
    publish(SnapshotWriter(state_dir), 1)
    writer = SnapshotWriter(state_dir)

    versions = [publish(writer, step) for step in (2, 3)]

    assert versions == [2, 3]
    assert writer.published_position() == "3-0"
    left = sorted(path.name for path in (state_dir / "snapshots").iterdir())
    assert left == ["current", "snap-2", "snap-3"]


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
@pytest.mark.parametrize("name", ["expert-0.safetensors", "served.safetensors", "manifest.json"])
def test_damage_to_any_file_of_a_snapshot_is_detected(
    state_dir: Path, name: str, damage: Callable[[Path], object]
) -> None:
    version = publish(SnapshotWriter(state_dir), 1)

    damage(state_dir / "snapshots" / f"snap-{version}" / name)

    with pytest.raises(CorruptState):
        SnapshotReader(state_dir).load(version)


def test_a_frozen_expert_that_is_known_is_not_read_again(state_dir: Path) -> None:
    writer, reader = SnapshotWriter(state_dir), SnapshotReader(state_dir)
    first = reader.load(publish(writer, 1))
    second_version = publish(writer, 2)

    (state_dir / "snapshots" / f"snap-{second_version}" / "expert-0.safetensors").unlink()
    second = reader.load(second_version)

    assert second.state.frozen[0] is first.state.frozen[0]


def test_a_snapshot_shares_the_files_of_frozen_experts_with_its_checkpoint(
    state_dir: Path,
) -> None:
    stored = write(Checkpoints(Settings(state_dir=state_dir)), 1)

    SnapshotWriter(state_dir).publish(
        state(1),
        Summary(step=1),
        position="1-0",
        quarantined=0,
        stream=StreamFacts(Timeline().dump()),
        checkpoint=stored,
    )

    assert (stored.path / "expert-0.safetensors").stat().st_nlink == 2


def test_a_snapshot_of_a_checkpoint_shares_its_served_file_and_a_later_one_does_not(
    state_dir: Path,
) -> None:
    stored = write(Checkpoints(Settings(state_dir=state_dir)), 1)
    writer, reader = SnapshotWriter(state_dir), SnapshotReader(state_dir)

    same = writer.publish(
        state(1),
        Summary(step=1),
        position="1-0",
        quarantined=0,
        stream=StreamFacts(Timeline().dump()),
        checkpoint=stored,
    )
    links = (stored.path / "served.safetensors").stat().st_nlink
    later = writer.publish(
        state(2),
        Summary(step=2),
        position="2-0",
        quarantined=0,
        stream=StreamFacts(Timeline().dump()),
        checkpoint=stored,
    )

    assert (links, (stored.path / "served.safetensors").stat().st_nlink) == (2, 2)
    for version, step in ((same.version, 1), (later.version, 2)):
        served = reader.load(version).state.served
        assert all(np.array_equal(served[name], a) for name, a in state(step).served.items())
