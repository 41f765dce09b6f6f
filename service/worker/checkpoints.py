"""Checkpoints: all that the worker needs to go on as if it had never stopped.

    checkpoints/ckpt-<seq>/{expert-<id>.safetensors ..., served.safetensors, training.safetensors,
                            members.safetensors, recent.safetensors, canary.safetensors,
                            timeline.safetensors, waiting-<seq>.safetensors ..., manifest.json ...}

The position in the log is inside the checkpoint: a restart loads one and reads on. What came
after it is learned again by a learner that has forgotten it, so delivery at least once becomes an
effect exactly once. Replay payloads are not in here; `store.replay` holds them by member id.
"""

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.numpy import load, save

from service.engine.protocol import EngineState, MemberId, Tensors
from service.errors import CorruptState
from service.settings import Settings
from service.store import directory
from service.store.directory import StoredDirectory
from service.store.entry import BatchStatus
from service.store.read import Outcome
from service.store.snapshots import SERVED, expert_file, frozen_experts, split_frozen
from service.worker.environment import environment
from service.worker.step import Progress
from service.worker.waiting import WaitingState
from service.worker.waiting_files import read_waiting, waiting_files

FORMAT = 5
TRAINING = "training.safetensors"
MEMBERS = "members.safetensors"
ARRAYS = {name: f"{name}.safetensors" for name in ("recent", "canary", "timeline")}
OUTCOMES = "outcomes.json"
_PLAIN = ("summary", "writers", "health", "decisions", "identity", "writer_epoch")  # as JSON


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """What one checkpoint says."""

    progress: Progress
    outcomes: Sequence[Outcome]
    """Of entries that had not been told yet, so that a crash right after it tells them."""
    state: EngineState
    summary: Mapping[str, Any]
    """The fields of `protocol.Summary`."""
    recent: Tensors
    """Ids of the batches learned last; see `RecentBatches`."""
    waiting: WaitingState
    canary: Tensors
    timeline: Tensors
    """See `Timeline.dump`."""
    writers: Mapping[str, Any]
    health: Mapping[str, Any]
    """See `Writers.dump` and `Health.dump`; of health `canary` is the rest."""
    decisions: int
    """How many decisions had been followed."""
    identity: str
    """Of the log."""
    writer_epoch: int


@dataclass(frozen=True, slots=True)
class _Kept:
    seq: int
    progress: Progress
    members: frozenset[MemberId]
    epoch: int


class Checkpoints:
    """The checkpoints of a state directory; only the worker that holds its lock has one."""

    def __init__(self, settings: Settings) -> None:
        self._root = settings.state_dir / "checkpoints"
        directory.make(self._root)
        directory.remove_temporaries(self._root)
        self._most_kept = settings.checkpoints_kept
        self._environment = environment(settings)
        self._learner = settings.learner
        self._kept = [kept for path in self._paths() if (kept := _facts(path)) is not None]
        self._give_up_futures()
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
        self.newest, checkpoint = read_checkpoint(path)
        return checkpoint

    def write(self, checkpoint: Checkpoint, *, healthy_until: int) -> StoredDirectory:
        """Return the checkpoint that is now on disk; drop those that are not kept.

        Args:
            checkpoint: what it says.
            healthy_until: number of an entry; the newest checkpoint up to there is kept, too.

        Raises:
            OSError: the disk is full or refuses; the checkpoints before are untouched.
        """
        seq, state = self.newest_seq + 1, checkpoint.state
        contents, linked = split_frozen(state.frozen, self.newest)
        waiting = waiting_files(checkpoint.waiting, self.newest, seq)
        contents[SERVED] = save(dict(state.served))
        contents[TRAINING] = save(dict(state.training))
        contents[MEMBERS] = save({"members": state.members})
        for name, file in ARRAYS.items():
            contents[file] = save(dict(getattr(checkpoint, name)))
        contents[OUTCOMES] = _encode_outcomes(checkpoint.outcomes)
        facts = {
            "format": FORMAT,
            "kind": "checkpoint",
            "seq": seq,
            "progress": asdict(checkpoint.progress),
            "values": state.values,
            "environment": self._environment,
            "settings": self._learner,
            **waiting.facts,
            **{name: getattr(checkpoint, name) for name in _PLAIN},
        }
        contents |= waiting.contents
        linked |= waiting.linked
        self.newest = directory.write(self._path(seq), contents, facts, linked=linked)
        ids, epoch = member_ids(state), checkpoint.writer_epoch
        self._kept.append(_Kept(seq, checkpoint.progress, ids, epoch))
        self._drop_old(healthy_until)
        return self.newest

    @property
    def newest_seq(self) -> int:
        """Number of the newest checkpoint, whole or not; 0 before the first."""
        paths = self._paths()
        return sequence(paths[-1]) if paths else 0

    @property
    def current(self) -> int:
        """Number of the checkpoint that was restored or written last; 0 before the first."""
        return 0 if self.newest is None else int(self.newest.facts["seq"])

    @property
    def known_epoch(self) -> int:
        """The highest writer epoch among the checkpoints; 0 before the first."""
        return max((kept.epoch for kept in self._kept), default=0)

    def kept(self, seq: int) -> Progress | None:
        """Return how far the learner was at a checkpoint that is kept, else None."""
        return next((kept.progress for kept in self._kept if kept.seq == seq), None)

    def look(self, seq: int) -> Checkpoint:
        """Return a kept checkpoint, only to look at it.

        Raises:
            CorruptState: a file is missing or not what was written.
        """
        return read_checkpoint(self._path(seq))[1]

    def marks(self, number: int) -> list[int]:
        """Return those kept that hold nothing behind the entry of that number, newest first."""
        return [kept.seq for kept in reversed(self._kept) if kept.progress.consumed <= number]

    def keep_only_newest(self) -> None:
        """Drop all but the newest: there is no way back to the others any more."""
        self._kept = self._kept[-1:]
        for path in self._paths()[:-1]:
            directory.remove(path)

    def give_up(self, path: Path) -> None:
        """Let a damaged checkpoint take no place among those that are kept."""
        self._kept = [kept for kept in self._kept if kept.seq != sequence(path)]

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

    def _drop_old(self, healthy_until: int) -> None:
        self._give_up_futures()
        mark = self.marks(healthy_until)[:1]
        newest = self._kept[-self._most_kept :]
        self._kept = [kept for kept in self._kept if kept in newest or kept.seq in mark]
        seqs = {kept.seq for kept in self._kept}
        for path in self._paths():
            if sequence(path) not in seqs and sequence(path) < newest[-1].seq:
                directory.remove(path)

    def _give_up_futures(self) -> None:
        """Forget checkpoints ahead of a later one: the learner went back to before them."""
        reached = math.inf
        for kept in reversed(self._kept[:]):
            if kept.progress.consumed > reached:
                self._kept.remove(kept)
            reached = min(reached, kept.progress.consumed)

    def _path(self, seq: int) -> Path:
        return self._root / f"ckpt-{seq:08}"

    def _paths(self) -> list[Path]:
        return sorted(self._root.glob("ckpt-*"), key=sequence)


def read_checkpoint(path: Path) -> tuple[StoredDirectory, Checkpoint]:
    """Return a checkpoint and where it lies, every file checked against its hash.

    Raises:
        CorruptState: a file is missing or not what was written.
    """
    stored = _open(path)
    facts = stored.facts
    arrays: dict[str, Any] = {name: load(stored.read(file)) for name, file in ARRAYS.items()}
    state = EngineState(
        frozen={id_: load(stored.read(expert_file(id_))) for id_ in frozen_experts(stored)},
        served=load(stored.read(SERVED)),
        training=load(stored.read(TRAINING)),
        members=load(stored.read(MEMBERS))["members"],
        values=facts["values"],
    )
    checkpoint = Checkpoint(
        progress=Progress(**facts["progress"]),
        outcomes=_decode_outcomes(stored.read(OUTCOMES)),
        state=state,
        waiting=read_waiting(stored),
        **arrays,
        **{name: facts[name] for name in _PLAIN},
    )
    return stored, checkpoint


def member_ids(state: EngineState) -> frozenset[MemberId]:
    """Return the ids of the replay members that a state names."""
    return frozenset((number, index) for number, index in state.members.tolist())


def sequence(path: Path) -> int:
    """Return the sequence number of a checkpoint's directory."""
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
    facts = stored.facts
    return _Kept(sequence(path), Progress(**facts["progress"]), ids, facts["writer_epoch"])


def _encode_outcomes(outcomes: Sequence[Outcome]) -> bytes:
    rows = [(o.number, o.idempotency_key, o.status.to_record(), *o.born) for o in outcomes]
    return json.dumps(rows).encode()


def _decode_outcomes(content: bytes) -> list[Outcome]:
    return [
        Outcome(number=n, idempotency_key=key, status=BatchStatus.from_record(record), born=born)
        for n, key, record, *born in json.loads(content)
    ]
