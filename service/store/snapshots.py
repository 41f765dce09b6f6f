"""Snapshots: what predictors serve from; the worker writes them, every API process reads them.

    snapshots/snap-<version>/{expert-<id>.safetensors ..., served.safetensors,
                              timeline.safetensors, manifest.json}
    snapshots/current        the newest version, replaced atomically

A new directory each time, never a file overwritten in place. Frozen experts are hard links to
the newest checkpoint's files, and a reader that has seen their hash does not read them again.
"""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load, save

from service.engine.protocol import EngineState, Summary, Tensors
from service.errors import CorruptState
from service.store import directory
from service.store.directory import StoredDirectory

FORMAT = 2
KEPT = 2
"""Newest snapshots kept, so that a reader of the last but one can finish."""
SERVED = "served.safetensors"
TIMELINE = "timeline.safetensors"
POINTER = "current"


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotInfo:
    """What a snapshot says of itself without its arrays."""

    version: int
    """Counts publications, from 1."""
    position: str
    """Id of the last log entry that was consumed."""
    step: int
    """Entries learned."""
    quarantined: int
    published_at: float
    """Unix seconds; of the files only, no clock enters the learner."""
    summary: Mapping[str, Any]
    """The fields of `protocol.Summary`."""
    labels: Mapping[str, int] = field(default_factory=dict)
    """Late labels since the start, by what became of them."""
    waiting: int = 0
    """Samples that wait for a label."""


@dataclass(frozen=True, slots=True)
class StreamFacts:
    """What a snapshot tells of its stream beside the learner."""

    timeline: Tensors
    """See `Timeline.dump`."""
    labels: Mapping[str, int] = field(default_factory=dict)
    """Late labels since the start, by what became of them."""
    waiting: int = 0
    """Samples that wait for a label."""


@dataclass(frozen=True, slots=True)
class LoadedSnapshot:
    """A snapshot whose every byte was checked."""

    info: SnapshotInfo
    state: EngineState
    """With `frozen`, `served` and `values`; `training` and `members` are empty."""
    timeline: Tensors
    """See `Timeline.dump`."""


def expert_file(expert: int) -> str:
    """Return the name of a frozen expert's file, the same in checkpoints and snapshots."""
    return f"expert-{expert}.safetensors"


class SnapshotWriter:
    """Publishes snapshots; only the worker that holds the state directory has one."""

    def __init__(self, state_dir: Path) -> None:
        self._root = state_dir / "snapshots"
        directory.make(self._root)
        directory.remove_temporaries(self._root)
        self.version = max(_versions(self._root), default=0)
        """The version published last; 0 before the first."""

    def published_position(self) -> str | None:
        """Return the position of the current snapshot; None if there is none to serve."""
        try:
            current = int((self._root / POINTER).read_bytes())
            return str(directory.open_directory(self._root / f"snap-{current}").facts["position"])
        except (FileNotFoundError, CorruptState):
            return None

    def publish(
        self,
        state: EngineState,
        summary: Summary,
        *,
        position: str,
        quarantined: int,
        stream: StreamFacts,
        checkpoint: StoredDirectory | None,
    ) -> SnapshotInfo:
        """Return the facts of the snapshot that readers find from now on.

        Args:
            state: what to serve.
            summary: what to show of it.
            position: of the last entry consumed.
            quarantined: entries set aside so far.
            stream: what is told of the stream so far.
            checkpoint: a directory whose files of frozen experts may be linked to, and, where it
                was written at the same position, the one of the active expert too.

        Raises:
            OSError: the disk is full or refuses; the snapshot before is still current.
        """
        info = SnapshotInfo(
            version=self.version + 1,
            position=position,
            step=summary.step,
            quarantined=quarantined,
            labels=stream.labels,
            waiting=stream.waiting,
            published_at=time.time(),
            summary=asdict(summary),
        )
        facts = {"format": FORMAT, "kind": "snapshot", **asdict(info), "values": state.values}
        self._remove_unpublished()
        contents, linked = split_frozen(state.frozen, checkpoint)
        if checkpoint is not None and checkpoint.facts["progress"]["position"] == position:
            linked |= {SERVED: checkpoint, TIMELINE: checkpoint}  # one position, one state
        else:
            contents |= {SERVED: save(dict(state.served)), TIMELINE: save(dict(stream.timeline))}
        directory.write(self._root / f"snap-{info.version}", contents, facts, linked=linked)
        directory.replace_file(self._root / POINTER, str(info.version).encode())
        self.version = info.version
        for version in _versions(self._root)[:-KEPT]:
            directory.remove(self._root / f"snap-{version}")
        return info

    def _remove_unpublished(self) -> None:
        """Make room where the disk was full before `current` could name the version."""
        for version in _versions(self._root):
            if version > self.version:
                directory.remove(self._root / f"snap-{version}")


class SnapshotReader:
    """Loads published snapshots; one per predictor, used from one thread."""

    def __init__(self, state_dir: Path) -> None:
        self._root = state_dir / "snapshots"
        self._frozen: dict[str, Tensors] = {}  # by sha256, those of the snapshot loaded last

    def newest_version(self) -> int | None:
        """Return the version to serve, or None before the first; reads one small file."""
        try:
            return int((self._root / POINTER).read_bytes())
        except FileNotFoundError:
            return None
        except ValueError:
            raise CorruptState(f"{self._root / POINTER} holds no version") from None

    def load(self, version: int) -> LoadedSnapshot:
        """Return a snapshot, every file checked against its hash.

        Raises:
            CorruptState: a file is missing or not what was written.
        """
        stored = directory.open_directory(self._root / f"snap-{version}")
        facts = dict(stored.facts)
        if (facts.pop("format", None), facts.pop("kind", None)) != (FORMAT, "snapshot"):
            raise CorruptState(f"{stored.path} is no snapshot of format {FORMAT}")
        values = facts.pop("values")
        state = EngineState(
            frozen=self._load_frozen(stored),
            served=load(stored.read(SERVED)),
            training={},
            members=np.empty((0, 2), np.int64),
            values=values,
        )
        return LoadedSnapshot(SnapshotInfo(**facts), state, load(stored.read(TIMELINE)))

    def _load_frozen(self, stored: StoredDirectory) -> dict[int, Tensors]:
        names = {expert: expert_file(expert) for expert in frozen_experts(stored)}
        by_hash: dict[str, Tensors] = {}
        for name in names.values():
            sha256 = stored.files[name].sha256
            by_hash[sha256] = self._frozen.get(sha256) or load(stored.read(name))
        self._frozen = by_hash
        return {expert: by_hash[stored.files[name].sha256] for expert, name in names.items()}


def split_frozen(
    frozen: Mapping[int, Tensors], earlier: StoredDirectory | None
) -> tuple[dict[str, bytes], dict[str, StoredDirectory]]:
    """Return the experts' files to write and those to link to in `earlier`."""
    contents: dict[str, bytes] = {}
    linked: dict[str, StoredDirectory] = {}
    for expert, tensors in frozen.items():
        name = expert_file(expert)
        if earlier is not None and name in earlier.files:
            linked[name] = earlier
        else:
            contents[name] = save(dict(tensors))
    return contents, linked


def frozen_experts(stored: StoredDirectory) -> list[int]:
    """Return the ids of the frozen experts in a checkpoint or snapshot, ascending."""
    names = [name for name in stored.files if name.startswith("expert-")]
    return sorted(int(name.removeprefix("expert-").removesuffix(".safetensors")) for name in names)


def _versions(root: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("snap-")) for path in root.glob("snap-*"))
