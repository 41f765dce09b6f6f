"""Which checkpoints and snapshots there are, read from their manifests; arrays stay on the disk.

Anybody may look while the worker writes: a directory that is whole is listed, one that vanishes
meanwhile, or is damaged, is passed over.
"""

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.errors import CorruptState
from service.store.directory import MANIFEST, StoredDirectory, open_directory


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointFacts:
    """One checkpoint, as GET /checkpoints lists it."""

    seq: int
    number: int
    """Of the last entry it has consumed."""
    position: str
    """Id of that entry in the log."""
    learned: int
    quarantined: int
    experts: int
    bytes: int
    age_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotFacts:
    """One snapshot, as GET /snapshots lists it."""

    version: int
    position: str
    step: int
    """Entries it has learned."""
    quarantined: int
    experts: int
    bytes: int
    age_s: float


def checkpoints(state_dir: Path) -> list[CheckpointFacts]:
    """Return the checkpoints that can be read, newest first."""
    found = _newest_first(state_dir / "checkpoints", "ckpt-")
    return [_checkpoint(one) for one in found if one.facts.get("kind") == "checkpoint"]


def snapshots(state_dir: Path) -> list[SnapshotFacts]:
    """Return the snapshots that can be read, newest first."""
    found = _newest_first(state_dir / "snapshots", "snap-")
    return [_snapshot(one) for one in found if one.facts.get("kind") == "snapshot"]


def newest_checkpoint_bytes(state_dir: Path) -> int:
    """Return the size of the newest checkpoint; 0 before the first."""
    newest = next(_newest_first(state_dir / "checkpoints", "ckpt-"), None)
    return 0 if newest is None else newest.size


def _newest_first(root: Path, prefix: str) -> Iterator[StoredDirectory]:
    paths = sorted(root.glob(f"{prefix}*"), key=lambda path: int(path.name.removeprefix(prefix)))
    for path in reversed(paths):
        try:
            yield open_directory(path)
        except CorruptState:
            continue


def _checkpoint(stored: StoredDirectory) -> CheckpointFacts:
    progress = stored.facts["progress"]
    return CheckpointFacts(
        seq=stored.facts["seq"],
        number=progress["consumed"],
        position=progress["position"],
        learned=progress["learned"],
        quarantined=progress["quarantined"],
        experts=_experts(stored.facts),
        bytes=stored.size,
        age_s=_age_s(stored),
    )


def _snapshot(stored: StoredDirectory) -> SnapshotFacts:
    return SnapshotFacts(
        version=stored.facts["version"],
        position=stored.facts["position"],
        step=stored.facts["step"],
        quarantined=stored.facts["quarantined"],
        experts=_experts(stored.facts),
        bytes=stored.size,
        age_s=_age_s(stored),
    )


def _experts(facts: Mapping[str, Any]) -> int:
    return len(facts["summary"]["experts"])


def _age_s(stored: StoredDirectory) -> float:
    """Return the age; not a number where the directory has vanished meanwhile."""
    try:
        return max(0.0, time.time() - (stored.path / MANIFEST).stat().st_mtime)
    except FileNotFoundError:
        return math.nan
