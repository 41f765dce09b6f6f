"""Checkpoints: all that the worker needs to go on as if it had never stopped.

    checkpoints/ckpt-<seq>/{expert-<id>.safetensors ..., served.safetensors, training.safetensors,
                            members.safetensors, outcomes.json, manifest.json}

The position in the log is inside the checkpoint: a restart loads one and reads on. What came
after it is learned again by a learner that has forgotten it, so delivery at least once becomes an
effect exactly once. Replay payloads are not in here; `store.replay` holds them by member id.
"""

import importlib.metadata
import json
import math
import platform
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.numpy import load, save

from service import __version__
from service.engine.protocol import EngineState, MemberId, Summary
from service.errors import CorruptState
from service.settings import Settings
from service.store import directory
from service.store.directory import StoredDirectory
from service.store.entry import BatchStatus
from service.store.read import START, Outcome
from service.store.snapshots import SERVED, expert_file, frozen_experts, split_frozen

FORMAT = 1
TRAINING = "training.safetensors"
MEMBERS = "members.safetensors"
OUTCOMES = "outcomes.json"
CPU_INFO = Path("/proc/cpuinfo")


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far the worker has come in the log; consumed = learned + quarantined."""

    position: str = START
    consumed: int = 0
    learned: int = 0
    quarantined: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """What one checkpoint says."""

    progress: Progress
    outcomes: Sequence[Outcome]
    """Of entries that had not been told yet, so that a crash right after it tells them."""
    state: EngineState
    summary: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Kept:
    seq: int
    progress: Progress
    members: frozenset[MemberId]


class Checkpoints:
    """The checkpoints of a state directory; only the worker that holds its lock has one."""

    def __init__(self, settings: Settings) -> None:
        self._root = settings.state_dir / "checkpoints"
        self._root.mkdir(parents=True, exist_ok=True)
        directory.remove_temporaries(self._root)
        self._most_kept = settings.checkpoints_kept
        self._environment = _environment(settings)
        self._kept = [kept for path in self._paths() if (kept := _facts(path)) is not None]
        self.newest: StoredDirectory | None = None
        """The checkpoint that was restored or written last."""

    @property
    def oldest(self) -> Progress:
        """Up to where the log may be trimmed: the oldest checkpoint kept, else the start."""
        return self._kept[0].progress if self._kept else Progress()

    @property
    def members(self) -> frozenset[MemberId]:
        """Ids of all replay members that a kept checkpoint names."""
        return frozenset().union(*(kept.members for kept in self._kept))

    def newest_first(self) -> Iterator[Path]:
        """Yield the directories there are, to be tried in this order."""
        yield from reversed(self._paths())

    def read(self, path: Path) -> Checkpoint:
        """Return a checkpoint, every file checked against its hash.

        Raises:
            CorruptState: a file is missing or not what was written.
        """
        stored = _open(path)
        facts = stored.facts
        state = EngineState(
            frozen={id_: load(stored.read(expert_file(id_))) for id_ in frozen_experts(stored)},
            served=load(stored.read(SERVED)),
            training=load(stored.read(TRAINING)),
            members=load(stored.read(MEMBERS))["members"],
            values=facts["values"],
        )
        self.newest = stored
        return Checkpoint(
            progress=Progress(**facts["progress"]),
            outcomes=_decode_outcomes(stored.read(OUTCOMES)),
            state=state,
            summary=facts["summary"],
        )

    def write(
        self,
        state: EngineState,
        summary: Summary,
        progress: Progress,
        outcomes: Sequence[Outcome],
    ) -> StoredDirectory:
        """Return the checkpoint that is now on disk; drop those beyond the number kept.

        Raises:
            OSError: the disk is full or refuses; the checkpoints before are untouched.
        """
        paths = self._paths()
        seq = 1 + (_seq(paths[-1]) if paths else 0)
        contents, linked = split_frozen(state.frozen, self.newest)
        contents[SERVED] = save(dict(state.served))
        contents[TRAINING] = save(dict(state.training))
        contents[MEMBERS] = save({"members": state.members})
        contents[OUTCOMES] = _encode_outcomes(outcomes)
        facts = {
            "format": FORMAT,
            "kind": "checkpoint",
            "seq": seq,
            "progress": asdict(progress),
            "values": state.values,
            "summary": asdict(summary),
            "environment": self._environment,
        }
        path = self._root / f"ckpt-{seq:08}"
        self.newest = directory.write(path, contents, facts, linked=linked)
        self._kept.append(_Kept(seq, progress, member_ids(state)))
        self._drop_old()
        return self.newest

    def age_s(self) -> float:
        """Return the age of the newest checkpoint in seconds; not a number before the first."""
        if self.newest is None:
            return math.nan
        return time.time() - (self.newest.path / directory.MANIFEST).stat().st_mtime

    def other_environment(self) -> dict[str, Any]:
        """Return what differs here from where `newest` was written; then bits may differ."""
        if self.newest is None:
            return {}
        then = self.newest.facts["environment"]
        return {
            name: then.get(name) for name, v in self._environment.items() if then.get(name) != v
        }

    def _drop_old(self) -> None:
        self._kept = self._kept[-self._most_kept :]
        for path in self._paths():
            if _seq(path) < self._kept[0].seq:
                directory.remove(path)

    def _paths(self) -> list[Path]:
        return sorted(self._root.glob("ckpt-*"), key=_seq)


def member_ids(state: EngineState) -> frozenset[MemberId]:
    """Return the ids of the replay members that a state names."""
    return frozenset((number, index) for number, index in state.members.tolist())


def _seq(path: Path) -> int:
    return int(path.name.removeprefix("ckpt-"))


def _open(path: Path) -> StoredDirectory:
    stored = directory.open_directory(path)
    if (stored.facts.get("format"), stored.facts.get("kind")) != (FORMAT, "checkpoint"):
        raise CorruptState(f"{path} is no checkpoint of format {FORMAT}")
    return stored


def _facts(path: Path) -> _Kept | None:
    """Return what trimming needs of a checkpoint, or None where that cannot be read."""
    try:
        stored = _open(path)
        members = load(stored.read(MEMBERS))["members"].tolist()
    except CorruptState:
        return None
    ids = frozenset((number, index) for number, index in members)
    return _Kept(_seq(path), Progress(**stored.facts["progress"]), ids)


def _encode_outcomes(outcomes: Sequence[Outcome]) -> bytes:
    rows = [(o.number, o.idempotency_key, o.status.to_record()) for o in outcomes]
    return json.dumps(rows).encode()


def _decode_outcomes(content: bytes) -> list[Outcome]:
    return [
        Outcome(number=number, idempotency_key=key, status=BatchStatus.from_record(record))
        for number, key, record in json.loads(content)
    ]


def _environment(settings: Settings) -> dict[str, Any]:
    """Return what bit-identity rests on besides log, seed and settings."""
    return {
        "levit": __version__,
        "torch": importlib.metadata.version("torch"),
        "numpy": importlib.metadata.version("numpy"),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpu": _cpu_capability(),
        "device": settings.device,
        "threads": settings.learner_threads,
    }


def _cpu_capability() -> str:
    """Return the vector instructions of this CPU by which torch chooses its kernels.

    `baseline` where it has none of them, `unknown` where the system does not list them.
    """
    try:
        listed = re.search(r"^flags\s*:(.*)$", CPU_INFO.read_text(), re.MULTILINE)
    except OSError:
        return "unknown"
    if listed is None:
        return "unknown"
    return " ".join(sorted({"avx2", "avx512f"}.intersection(listed[1].split()))) or "baseline"
