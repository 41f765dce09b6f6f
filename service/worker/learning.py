"""What the worker knows and does, without deciding when: restore, learn, save, publish.

The order of `save` is the promise. Replay members, then the checkpoint that names them, then the
snapshot, then `learned` is told, then what no kept checkpoint needs is dropped. A crash between
any two steps leaves a state from which a restart learns the same again.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import structlog

from service.engine.protocol import (
    Array,
    Engine,
    Engines,
    EntryRefused,
    Label,
    Labels,
    MemberId,
)
from service.errors import CorruptState, Unavailable
from service.metrics import WorkerMetrics
from service.settings import Settings
from service.store.entry import BatchStatus, Entry, State
from service.store.read import Log, Outcome, RawEntry
from service.store.replay import ReplayStore
from service.store.snapshots import SnapshotWriter
from service.worker.checkpoints import Checkpoint, Checkpoints, Progress, member_ids

BUFFERED_BYTES = 64 * 2**20
"""Samples waiting for the next checkpoint above which those evicted meanwhile are let go."""

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class Learning:
    """The engine, how far it has come, and what no checkpoint holds yet."""

    def __init__(
        self, settings: Settings, engines: Engines, url: str, metrics: WorkerMetrics
    ) -> None:
        self._settings = settings
        self._engines = engines
        self._metrics = metrics
        self._log = Log(url)
        self._replay = ReplayStore(url)
        self._checkpoints = Checkpoints(settings)
        self._snapshots = SnapshotWriter(settings.state_dir)
        self._engine: Engine | None = None
        self.progress = Progress()
        self.unsaved = False
        """Whether an entry is in no checkpoint yet, or its outcome has not been told."""
        self._outcomes: list[Outcome] = []
        self._set_aside: list[tuple[Entry, str]] = []
        self._members = _NewMembers()
        self._stored: set[MemberId] = set()
        metrics.checkpoint_age.set_function(self._checkpoints.age_s)

    def restore(self) -> None:
        """Go on from the newest checkpoint that is whole, or begin where there never was one.

        Raises:
            CorruptState: no checkpoint is whole, or the log lacks entries.
            SettingsError: a learner setting differs from those of the checkpoint.
            Unavailable: Redis is away; may be called again.
        """
        self._load_newest()
        self.check_log()
        self._stored = self._replay.ids()
        if self._engine is None:
            return
        if self._snapshots.published_step() < self.progress.learned:
            self.publish()
        self._tell()
        log.info("restored", **asdict(self.progress))
        if differences := self._checkpoints.other_environment():
            log.warning("environment_changed", was=differences, promise="bits may differ now")

    def _load_newest(self) -> None:
        paths = list(self._checkpoints.newest_first())
        for path in paths:
            try:
                self._resume(self._checkpoints.read(path))
            except CorruptState as error:
                log.critical("checkpoint_damaged", path=str(path), reason=str(error))
            else:
                return
        # Never begin anew over a state that was learned, however much of the log is there.
        if paths:
            raise CorruptState(f"none of {len(paths)} checkpoints can be restored")

    def _resume(self, checkpoint: Checkpoint) -> None:
        ids = [(number, index) for number, index in checkpoint.state.members.tolist()]
        members = self._replay.fetch(ids)
        self._engine = self._engines.restore(self._settings, checkpoint.state, members)
        self.progress = checkpoint.progress
        self._outcomes = list(checkpoint.outcomes)

    def check_log(self) -> None:
        """Trim the log behind the oldest checkpoint and see that nothing else is missing.

        Raises:
            CorruptState: naming how many entries are.
        """
        oldest = self._checkpoints.oldest
        gap = self._log.trim(oldest.position, oldest.consumed, self.progress.consumed)
        self._metrics.gap.set(gap)
        if gap:
            raise CorruptState(
                f"the log lacks {gap} entries: {self.progress.consumed} were consumed, "
                f"{oldest.consumed} of them trimmed, up to position {oldest.position}"
            )

    def read(self, *, count: int, block_ms: int) -> list[RawEntry]:
        """Return the next entries of the log, waiting a little for one."""
        return self._log.read(self.progress.position, count=count, block_ms=block_ms)

    def learn(self, raw: RawEntry) -> bool:
        """Learn the next entry, or set it aside; return whether the mixture expanded.

        Raises:
            CorruptState: the entry is not what was accepted; nothing was learned.
        """
        position, fields = raw
        entry = Entry.from_fields(self.progress.consumed + 1, position, fields)
        if self._engine is None:
            self._engine = self._engines.create(self._settings, entry.schema)
        self.unsaved = True
        try:
            with self._metrics.step_duration.time():
                report = self._engine.observe(entry.number, entry.x, entry.labels)
        except EntryRefused as refusal:
            self._quarantine(entry, str(refusal))
            return False
        self._advance(entry, "learned", step=report.step, expert=report.expert)
        self._members.add(entry, report.added)
        if self._members.nbytes > self._members.limit:
            self._members.keep_only(member_ids(self._engine.dump()))
        return report.expanded

    def save(self) -> None:
        """Put everything learned into a checkpoint, publish it and tell it.

        Raises:
            CorruptState: the log has lost entries; nothing is saved.
            Unavailable: Redis is away; may be called again.
            OSError: the disk is full or refuses; may be called again.
        """
        self.check_log()
        if self._engine is None:
            return
        with (
            self._metrics.checkpoint_failures.count_exceptions((OSError, Unavailable)),
            self._metrics.checkpoint_duration.time(),
        ):
            state = self._engine.dump()
            self._members.keep_only(member_ids(state))
            self._stored |= self._members.samples.keys()
            self._replay.put(self._members.samples)
            self._log.set_aside(self._set_aside)
            stored = self._checkpoints.write(
                state, self._engine.summary(), self.progress, self._outcomes
            )
        self._metrics.checkpoint_bytes.set(stored.size)
        self._members.clear()
        self._set_aside.clear()
        self.publish()
        self._tell()
        self.check_log()
        dropped = self._stored - self._checkpoints.members
        self._replay.delete(dropped)
        self._stored -= dropped

    def publish(self) -> None:
        """Let predictors serve what is learned by now; nothing before the first entry.

        Raises:
            OSError: the disk is full or refuses; the snapshot before stays current.
        """
        if self._engine is None or self.progress.learned == 0:
            return
        with self._metrics.snapshot_duration.time():
            self._snapshots.publish(
                self._engine.dump(),
                self._engine.summary(),
                position=self.progress.position,
                quarantined=self.progress.quarantined,
                checkpoint=self._checkpoints.newest,
            )

    @property
    def published(self) -> bool:
        """Whether there is a snapshot to serve."""
        return self._snapshots.version > 0

    def close(self) -> None:
        """Close the connections."""
        self._log.close()
        self._replay.close()

    def _tell(self) -> None:
        self._log.tell(self.progress.position, self.progress.consumed, self._outcomes)
        self._outcomes.clear()
        self.unsaved = False

    def _quarantine(self, entry: Entry, reason: str) -> None:
        self._set_aside.append((entry, reason))
        self._advance(entry, "quarantined", reason=reason)
        log.warning("entry_quarantined", position=entry.position, reason=reason)

    def _advance(self, entry: Entry, state: State, **outcome: Any) -> None:  # noqa: ANN401  fields of BatchStatus
        before = self.progress
        self.progress = Progress(
            position=entry.position,
            consumed=entry.number,
            learned=before.learned + (state == "learned"),
            quarantined=before.quarantined + (state == "quarantined"),
        )
        status = BatchStatus(
            batch_id=entry.batch_id, state=state, n=entry.n, position=entry.position, **outcome
        )
        self._outcomes.append(
            Outcome(number=entry.number, status=status, idempotency_key=entry.idempotency_key)
        )


class _NewMembers:
    """Samples that entered the replay memory since the last checkpoint.

    They are written to Redis only with the next checkpoint: most of a busy stream's samples are
    evicted again before it.
    """

    def __init__(self) -> None:
        self.samples: dict[MemberId, tuple[Array, Label | None]] = {}
        self.nbytes = 0
        self.limit = BUFFERED_BYTES

    def add(self, entry: Entry, indexes: Sequence[int]) -> None:
        for index in indexes:
            # A copy, as a view would hold the whole mini-batch for the sake of one sample.
            x = entry.x[index].copy()
            self.samples[entry.number, index] = (x, _label(entry.labels, index))
            self.nbytes += x.nbytes

    def keep_only(self, ids: frozenset[MemberId]) -> None:
        self.samples = {id_: sample for id_, sample in self.samples.items() if id_ in ids}
        self.nbytes = sum(x.nbytes for x, _ in self.samples.values())
        # Doubling keeps the cost of this linear in the samples, however large the memory is.
        self.limit = max(BUFFERED_BYTES, 2 * self.nbytes)

    def clear(self) -> None:
        self.keep_only(frozenset())


def _label(labels: Labels | None, index: int) -> Label | None:
    if labels is None:
        return None
    label = labels[index]
    if isinstance(label, str):
        return label or None
    return None if label < 0 else int(label)
