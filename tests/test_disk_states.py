"""After a power cut at any moment, readers find what was reported done, or something newer.

The real writers are recorded and the real readers look at every state that a disk may be in; see
`disk_model`. The controls leave out one fsync and must be found out.
"""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.errors import CorruptState
from service.settings import Settings
from service.store.archive import Archive
from service.store.decisions import Decision, Decisions
from service.store.forks import fork
from service.store.names import DEFAULT as names
from service.store.pins import open_pin, pin, samples
from service.store.replay import ReplayStore
from service.store.segment import Record
from service.store.snapshots import SnapshotReader, SnapshotWriter
from service.store.stream_schema import StreamSchema
from service.worker.checkpoints import Checkpoints
from tests import test_archive, test_checkpoints
from tests.disk_model import Reported, Trace, materialise, recorded
from tests.log_entries import SCHEMA, claimed, digest

STEPS = range(1, 5)
"""Enough for the oldest to be dropped twice."""


def settings(state_dir: Path) -> Settings:
    return Settings(state_dir=state_dir, checkpoints_kept=2)


def write_checkpoints(root: Path, trace: Trace) -> None:
    checkpoints = Checkpoints(settings(root))
    for step in STEPS:
        test_checkpoints.write(checkpoints, step, frozen=step // 2)
        trace.reported(step)


def read_checkpoint(root: Path, reported: int | None) -> None:
    """See that the newest checkpoint of those under their final names is whole and new enough."""
    checkpoints = Checkpoints(settings(root))
    paths = list(checkpoints.newest_first())
    assert paths or reported is None, "no checkpoint"
    if paths:
        checkpoint = checkpoints.read(paths[0])
        step = checkpoint.progress.consumed
        assert step >= (reported or 1), f"checkpoint {step} although {reported} was done"
        assert digest(checkpoint.state) == digest(test_checkpoints.state(step, frozen=step // 2))


def publish_snapshots(root: Path, trace: Trace) -> None:
    writer = SnapshotWriter(root)
    for step in STEPS:
        trace.reported(test_checkpoints.publish(writer, step, frozen=step // 2))


def read_snapshot(root: Path, reported: int | None) -> None:
    """See that the served snapshot is whole and new enough."""
    reader = SnapshotReader(root)
    version = reader.newest_version()
    assert (version or 0) >= (reported or 0), f"snapshot {version} although {reported} was done"
    if version is not None:
        assert reader.load(version).info.step == version


DECISIONS = [
    Decision(kind="skip", after=n, until=n + 1, reason="because " * (600 * n)) for n in range(3)
]


def decide(root: Path, trace: Trace) -> None:
    decisions = Decisions(root)
    for count, one in enumerate(DECISIONS, 1):
        decisions.add(one)
        trace.reported(count)


def read_decisions(root: Path, reported: int | None) -> None:
    """See that every decision taken is there, and that more can be taken."""
    decisions = Decisions(root)
    assert list(decisions) == DECISIONS[: len(decisions)]
    assert len(decisions) >= (reported or 0), f"{len(decisions)} decisions of {reported}"
    decisions.add(DECISIONS[0])
    assert list(Decisions(root))[-1] == DECISIONS[0]


def entries(last: int) -> list[Record]:
    return [test_archive.record(number, size=300) for number in range(1, last + 1)]


def archive(root: Path, trace: Trace) -> None:
    archived = Archive(root, None)
    for last in (3, 6, 9):
        archived.append(entries(last))
        trace.reported(last)


def read_archive(root: Path, reported: int | None) -> None:
    """See that every entry archived is there, once a worker has cut off what was torn."""
    archived = Archive(root, None)
    there = 0 if archived.last is None else archived.last.number
    assert there >= (reported or 0), f"{there} entries of {reported}"
    archived.append(entries(9))
    assert list(Archive(root, None).read(0)) == entries(9)


Write = Callable[[Path, Trace], None]
Read = Callable[[Path, Any], None]
SUBJECTS: dict[str, tuple[Write, Read]] = {
    "checkpoints": (write_checkpoints, read_checkpoint),
    "snapshots": (publish_snapshots, read_snapshot),
    "decisions": (decide, read_decisions),
    "archive": (archive, read_archive),
}
each_subject = pytest.mark.parametrize("subject", SUBJECTS.values(), ids=SUBJECTS.keys())


@pytest.fixture(autouse=True)
def _small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a file of the archive hold some four entries."""
    monkeypatch.setattr("service.store.segments.SEGMENT_BYTES", 2500)


@pytest.fixture
def trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, subject: tuple[Write, Read]) -> Trace:
    """What the writer does in an empty state directory."""
    root = tmp_path / "recorded"
    root.mkdir()
    with recorded(root, monkeypatch) as trace:
        subject[0](root, trace)
    return trace


def verdicts(trace: Trace, read: Read, tmp_path: Path) -> list[str]:
    """Return what is wrong with each state that a power cut may leave; empty where it is good."""
    root = tmp_path / "state"
    found = []
    for reported, tree in trace.states():
        root.mkdir()
        materialise(tree, root)
        try:
            read(root, reported)
        except (AssertionError, CorruptState) as error:
            found.append(f"{error}, in {sorted(tree)}")
        else:
            found.append("")
        shutil.rmtree(root)
    return found


@each_subject
def test_no_power_cut_takes_what_was_done(
    tmp_path: Path, trace: Trace, subject: tuple[Write, Read]
) -> None:
    found = verdicts(trace, subject[1], tmp_path)

    assert [verdict for verdict in found if verdict] == []
    assert len(found) >= 20


@each_subject
def test_without_any_one_fsync_a_power_cut_could_take_something(
    tmp_path: Path, trace: Trace, subject: tuple[Write, Read]
) -> None:
    first, second, *_ = [at for at, one in enumerate(trace.events) if isinstance(one, Reported)]
    events = trace.events[: second + 1]
    fsyncs = [at for at in trace.fsyncs() if first < at < second]

    needless = [
        at
        for at in fsyncs
        if not any(
            verdicts(replace(trace, events=events[:at] + events[at + 1 :]), subject[1], tmp_path)
        )
    ]

    assert len(fsyncs) >= 1
    assert needless == []


def test_no_power_cut_leaves_half_a_pin_or_half_a_fork(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, redis_server: str
) -> None:
    fence, sample = claimed(redis_server), np.ones((8, 8, 1), np.uint8)
    ReplayStore(fence).put({(3, 0): (sample, 1), (3, 1): (sample, None)})
    fence.redis.set(names.schema, StreamSchema(SCHEMA, "int").to_record())
    root = tmp_path / "recorded"
    root.mkdir()
    with recorded(root, monkeypatch) as trace:
        test_checkpoints.write(Checkpoints(settings(root)), 3)
        pin(root, 1, "kept", fence)
        trace.reported(["pins/kept"])
        fork(root, "kept", root / "fork", redis_server)
        trace.reported(["pins/kept", "fork/pins/origin", "fork/checkpoints"])

    def read(root: Path, reported: list[str] | None) -> None:
        assert all((root / path).exists() for path in reported or [])
        for path in (root / "pins" / "kept", root / "fork" / "pins" / "origin"):
            if path.exists():
                (part,) = samples(open_pin(path))
                assert len(part) == 2
        if (root / "fork").exists():
            read_checkpoint(root / "fork", 3)

    assert set(verdicts(trace, read, tmp_path)) == {""}
