"""What the worker knows and does, without deciding when: restore, learn, save, publish.

The order of `save` is the promise. Replay members, then the checkpoint that names them, then the
snapshot, then `learned` is told, then what no kept checkpoint needs is archived and dropped. After
a crash between any two a restart learns the same again. Going back is a decision on disk, then the
checkpoint of before, then a new one that has followed it.
"""

from dataclasses import asdict, replace
from typing import Literal

import structlog

from service import tracing
from service.engine.protocol import Engine, Engines
from service.errors import Unavailable
from service.metrics import WorkerMetrics
from service.settings import Settings
from service.store.decisions import Decision
from service.store.entry import Entry
from service.store.fence import Fence
from service.store.forks import adopt
from service.store.names import Names
from service.store.read import Log
from service.store.resync import Loss
from service.store.snapshots import SnapshotWriter, StreamFacts
from service.store.stream_ids import RawEntry
from service.worker.checkpoints import Checkpoints
from service.worker.custody import Custody
from service.worker.hindsight import Hindsight
from service.worker.judge import Judge
from service.worker.members import ReplayMembers
from service.worker.state import WorkerState
from service.worker.step import Progress, advance, advanced
from service.worker.telling import Telling
from service.worker.way_back import WayBack

Turn = Literal["on", "save", "back"]
"""After an entry: go on, save at once, or read anew from where the learner went back to."""

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class Learning:
    """The engine, how far it has come, and what no checkpoint holds yet."""

    def __init__(
        self, settings: Settings, engines: Engines, url: str, metrics: WorkerMetrics
    ) -> None:
        self._settings = settings
        self._engines = engines
        self._metrics = watched = metrics.of(settings.stream)
        self.fence = Fence(url, Names(settings.stream))
        """What keeps a worker that was superseded from writing."""
        self._log = Log(self.fence)
        self._custody = Custody(settings, self.fence, watched)
        self._hindsight = Hindsight(settings, url)
        self.checkpoints = Checkpoints(settings)
        self._snapshots = SnapshotWriter(settings.state_dir)
        self.judge = Judge(settings, watched)
        self._state = WorkerState.fresh(settings)
        self._unsaved = False
        self._astray = False
        """Whether to go on from the newest checkpoint, as what is in memory is no whole state."""
        self._members = ReplayMembers(self.fence)
        self._telling = Telling(self._log, self.judge.decisions)
        self.way_back = WayBack(self.checkpoints, self.judge.decisions, self._log, self._members)
        watched.checkpoint_age.set_function(self.checkpoints.age_s)
        watched.experts_limit.set(settings.max_experts)

    def restore(self) -> None:
        """Go on from the newest checkpoint that is whole, or begin where there never was one.

        Raises:
            CorruptState: no checkpoint is whole, or the log lacks entries.
            SettingsError: a learner setting differs from those of the checkpoint.
            StateDirectoryBusy: a later worker writes to this log.
            Unavailable: Redis is away; may be called again.
        """
        if not self.fence.epoch:
            self.fence.claim(self.checkpoints.known_epoch)
        if adopt(self.fence, self._settings.state_dir):
            log.info("fork_adopted")
        went_back = self._load_newest()
        self._custody.know(self._state.identity)
        self.check_log()
        self._members.know_stored()
        self._log.tell_state("learning")
        if self._state.engine is None:
            return
        if went_back:
            self.save()
        elif self._snapshots.published_position() != self.progress.position:
            self.publish()
        self._tell()
        self._release()
        log.info("restored", **asdict(self.progress))
        if differences := self.checkpoints.other_environment():
            log.warning("environment_changed", was=differences, promise="bits may differ now")

    @property
    def progress(self) -> Progress:
        """How far the learner has come."""
        return self._state.progress

    def check_log(self) -> None:
        """Trim the log behind the oldest checkpoint and see that nothing else is missing.

        Raises:
            CorruptState: naming how many entries are.
            OSError: the archive's disk is full or refuses; nothing was trimmed.
        """
        self._custody.check(self.checkpoints.oldest, self._state)

    @property
    def unsaved(self) -> bool:
        """Whether an entry is in no checkpoint yet, or its outcome has not been told."""
        return self._unsaved and not self._astray

    def catch_up(self) -> None:
        """Load what the decisions ask for, where something failed before that was done."""
        if self._astray:
            self._load_newest()
            self._unsaved = True

    def read(self, *, count: int, block_ms: int | None) -> list[RawEntry]:
        """Return the next entries of the log, waiting for one unless `block_ms` is None."""
        self.catch_up()
        return self._log.read(self.progress.position, count=count, block_ms=block_ms)

    def learn(self, raw: RawEntry) -> Turn:
        """Learn the next entry, or set it aside.

        Raises:
            CorruptState: the entry is not what was accepted; nothing was learned.
            OSError: a decision cannot be written; the next `read` begins at the checkpoint again.
        """
        (position, fields), state, judge = raw, self._state, self.judge
        entry = Entry.from_fields(self.progress.consumed + 1, position, fields)
        engine = state.engine or self._engines.create(self._settings, entry.schema)
        state.engine = engine
        lesson = state.memory.lesson(entry)
        self._unsaved = self._astray = True
        with judge.attempts.of(entry.number):
            judge.before(state.health, engine, lesson.taught)
            lesson = self._hindsight.looked_back(lesson, judge)
            traced = tracing.span("learn", entry.traceparent, position=position)
            with traced, self._metrics.step_duration.time():
                step = advance(engine, lesson, judge.decisions, state.memory)
            state.progress = advanced(state.progress, entry, step)
            state.books.enter(entry, step, state.memory.recent)
            if step.report is not None:
                self._members.take(lesson.taught, step.report.added, engine)
            verdict = judge.after(state.health, engine, lesson.taught, step)
        if verdict == "diverged":
            return self._go_back_from(entry.number)
        self._astray = False
        grown = verdict == "drifted" or (step.report is not None and step.report.expanded)
        if grown:
            state.books.grew(engine.summary())
        return "save" if grown or step.purged is not None else "on"

    def save(self) -> None:
        """Put everything learned into a checkpoint, publish it and tell it.

        Raises:
            CorruptState: the log has lost entries; nothing is saved.
            Unavailable: Redis is away; may be called again.
            OSError: the disk is full or refuses; may be called again.
        """
        self.check_log()
        state = self._state
        if state.engine is None:
            return
        with (
            self._metrics.checkpoint_failures.count_exceptions((OSError, Unavailable)),
            self._metrics.checkpoint_duration.time(),
        ):
            self._write(state.engine)
        self._members.new.clear()
        state.books.set_aside.clear()
        self.publish()
        self._tell()
        self.check_log()
        self.judge.attempts.forget_until(self.checkpoints.oldest.consumed)
        self._members.drop_all_but(self.checkpoints.members)
        self._release()

    def _write(self, engine: Engine) -> None:
        """Write a checkpoint, and before it what it names."""
        state = self._state
        checkpoint = state.checkpoint(
            engine,
            decisions=len(self.judge.decisions),
            identity=self._custody.identity or state.identity,
            writer_epoch=self.fence.epoch,
        )
        self._members.put(checkpoint.state)
        self._log.set_aside(state.books.set_aside)
        self.fence.check()
        healthy_until = state.health.facts.healthy_until
        stored = self.checkpoints.write(checkpoint, healthy_until=healthy_until)
        self._metrics.checkpoint_bytes.set(stored.size)

    def publish(self) -> None:
        """Let predictors serve what is learned by now; nothing before the first entry.

        Raises:
            OSError: the disk is full or refuses; the snapshot before stays current.
        """
        if self._state.engine is None or self.progress.learned == 0:
            return
        memory, waiting = self._state.memory, self._state.memory.waiting
        with self._metrics.snapshot_duration.time():
            self._snapshots.publish(
                self._state.engine.dump(),
                self._state.engine.summary(),
                position=self.progress.position,
                quarantined=self.progress.quarantined,
                stream=StreamFacts(memory.timeline.dump(), waiting.counts, waiting.samples),
                checkpoint=self.checkpoints.newest,
            )

    @property
    def published(self) -> bool:
        """Whether there is a snapshot to serve."""
        return self._snapshots.version > 0

    def load(self) -> None:
        """Go back to the newest checkpoint, whatever the log is like."""
        self._load_newest()
        self._unsaved = False

    def loss(self) -> Loss:
        """Return what the log lacks for going on from here."""
        return self._custody.loss(self.checkpoints.oldest, self._state)

    def close_way_back(self, position: str) -> None:
        """Read on behind a position from now on, and drop what older checkpoints would need."""
        self._custody.begin_archive_anew()
        self._state.progress = replace(self.progress, position=position)
        if self._state.engine is not None:
            self._write(self._state.engine)
            self.checkpoints.keep_only_newest()

    def check_room_for(self, after: str) -> None:
        """Check that the entries learned behind a position can be set aside; raises Misused."""
        self._log.check_room_for(after, self.progress.position)

    def go_back(self, decision: Decision) -> None:
        """Follow a decision that names a checkpoint; it is on disk before anything else happens.

        Raises:
            OSError, Unavailable: the disk or Redis refuses; the next `read` goes on with it.
        """
        self.judge.decide(decision)
        self._astray = True
        self.catch_up()
        self.save()

    def stopped(self, problem: str) -> None:
        """Say where others can read it that learning has stopped, and why."""
        self._log.tell_state("stopped", problem)

    def close(self) -> None:
        """Close files and connections."""
        self.judge.attempts.close()
        self._hindsight.close()
        self.fence.close()

    def _load_newest(self) -> bool:
        """Load the newest whole checkpoint; return whether a rollback was still to be followed."""
        self._state, self._astray = WorkerState.fresh(self._settings), True
        self._members.new.clear()
        self._state, went_back = self.way_back.newest(self._settings, self._engines)
        self._astray = False
        return went_back

    def _go_back_from(self, number: int) -> Turn:
        healthy_until = self._state.health.facts.healthy_until
        mark = next(filter(self.way_back.is_open, self.checkpoints.marks(healthy_until)), None)
        if mark is None:
            log.error("rollback_impossible", reason="no checkpoint is old enough", number=number)
            self._astray = False
            return "on"
        reason = self._state.health.harm
        self.go_back(
            Decision(kind="skip", after=healthy_until, until=number, reason=reason, checkpoint=mark)
        )
        return "back"

    def _release(self) -> None:
        """Append what was set aside for a drift to the log again; idempotent."""
        if (facts := self._state.health.facts).set_aside and not facts.probation_until:
            log.info("released", entries=self._log.release(facts.set_aside))
            facts.set_aside = []

    def _tell(self) -> None:
        self._telling.tell(self._state, self.checkpoints.current, self._snapshots.version)
        self._unsaved = False
