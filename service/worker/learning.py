"""What the worker knows and does, without deciding when: restore, learn, save, publish.

The order of `save` is the promise. Replay members, then the checkpoint that names them, then the
snapshot, then `learned` is told, then what no kept checkpoint needs is archived and dropped. A
crash between any two steps leaves a state from which a restart learns the same again. Going back
is a decision on disk, then the checkpoint of before, then a new checkpoint that has followed it.
"""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, Literal

import structlog

from service.engine.protocol import Engine, Engines, MemberId
from service.errors import CorruptState, Unavailable
from service.metrics import WorkerMetrics
from service.settings import Settings
from service.store.aside import SetAside
from service.store.decisions import Decision, Decisions
from service.store.entry import BatchStatus, Entry
from service.store.fence import Fence
from service.store.read import Log, Outcome, RawEntry
from service.store.replay import ReplayStore
from service.store.snapshots import SnapshotWriter
from service.worker.attempts import MOST_DEATHS, Attempts
from service.worker.checkpoints import Checkpoint, Checkpoints, member_ids, sequence
from service.worker.health import Health
from service.worker.members import NewMembers
from service.worker.step import Progress, RecentBatches, Step, advance, advanced

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
        self._metrics = metrics
        self._fence = Fence(url)
        self._log = Log(self._fence)
        self._replay = ReplayStore(self._fence)
        self._checkpoints = Checkpoints(settings)
        self._snapshots = SnapshotWriter(settings.state_dir)
        self._decisions = Decisions(settings.state_dir)
        self._attempts = Attempts(settings.state_dir)
        self._identity = ""
        self._engine: Engine | None = None
        self.progress = Progress()
        self._recent = RecentBatches()
        self._health = Health()
        self.unsaved = False
        """Whether an entry is in no checkpoint yet, or its outcome has not been told."""
        self.in_step = False
        """Whether the engine is learning an entry; may be left by an exception, as if never begun."""
        self._behind = False
        """Whether a decision to go back is on disk and not followed yet."""
        self._outcomes: list[Outcome] = []
        self._set_aside: list[SetAside] = []
        self._members = NewMembers()
        self._stored: set[MemberId] = set()
        metrics.checkpoint_age.set_function(self._checkpoints.age_s)

    def restore(self) -> None:
        """Go on from the newest checkpoint that is whole, or begin where there never was one.

        Raises:
            CorruptState: no checkpoint is whole, or the log lacks entries.
            SettingsError: a learner setting differs from those of the checkpoint.
            StateDirectoryBusy: a later worker writes to this log.
            Unavailable: Redis is away; may be called again.
        """
        if not self._fence.epoch:
            self._fence.claim(self._checkpoints.known_epoch)
        went_back = self._load_newest()
        self._know_log()
        self.check_log()
        self._stored = self._replay.ids()
        self._log.tell_state("learning")
        if self._engine is None:
            return
        if went_back:
            self.save()
        elif self._snapshots.published_position() != self.progress.position:
            self.publish()
        self._tell()
        self._release()
        log.info("restored", **asdict(self.progress))
        if differences := self._checkpoints.other_environment():
            log.warning("environment_changed", was=differences, promise="bits may differ now")

    def check_log(self) -> None:
        """Trim the log behind the oldest checkpoint and see that nothing else is missing.

        Raises:
            CorruptState: naming how many entries are.
        """
        oldest = self._checkpoints.oldest
        if self._log.identity() != self._identity:
            raise CorruptState("redis holds another log than the one that was learned from")
        self._log.trim(oldest.position)
        gap = self._log.gap(oldest.consumed, self.progress.consumed)
        self._metrics.gap.set(gap)
        if gap:
            raise CorruptState(
                f"the log lacks {gap} entries: {self.progress.consumed} were consumed, "
                f"{oldest.consumed} of them trimmed, up to position {oldest.position}"
            )

    def read(self, *, count: int, block_ms: int) -> list[RawEntry]:
        """Return the next entries of the log, waiting a little for one."""
        if self._behind:
            self._follow()
        return self._log.read(self.progress.position, count=count, block_ms=block_ms)

    def learn(self, raw: RawEntry) -> Turn:
        """Learn the next entry, or set it aside.

        Raises:
            CorruptState: the entry is not what was accepted; nothing was learned.
        """
        position, fields = raw
        entry = Entry.from_fields(self.progress.consumed + 1, position, fields)
        if self._engine is None:
            self._engine = self._engines.create(self._settings, entry.schema)
        self._judge(self._engine, entry)
        self.unsaved = True
        with self._metrics.step_duration.time(), self._attempts.of(entry.number), self._step():
            step = advance(self._engine, entry, self._decisions, self._recent)
        self._account(entry, step)
        if step.report is not None:
            self._members.add(entry, step.report.added)
            if self._members.too_many:
                self._members.keep_only(member_ids(self._engine.dump()))
        return self._look_after(self._engine, entry, step)

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
            checkpoint = self._checkpoint(self._engine)
            self._members.keep_only(member_ids(checkpoint.state))
            self._stored |= self._members.samples.keys()
            self._replay.put(self._members.samples)
            self._log.set_aside(self._set_aside)
            healthy_until = self._health.facts.healthy_until
            stored = self._checkpoints.write(checkpoint, healthy_until=healthy_until)
        self._metrics.checkpoint_bytes.set(stored.size)
        self._members.clear()
        self._set_aside.clear()
        self.publish()
        self._tell()
        self.check_log()
        self._attempts.forget_until(self._checkpoints.oldest.consumed)
        dropped = self._stored - self._checkpoints.members
        self._replay.delete(dropped)
        self._stored -= dropped
        self._release()

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

    def stopped(self, problem: str) -> None:
        """Say where others can read it that learning has stopped, and why.

        Raises:
            Unavailable: Redis is away.
        """
        self._log.tell_state("stopped", problem)

    def close(self) -> None:
        """Close files and connections."""
        self._attempts.close()
        self._fence.close()

    @contextmanager
    def _step(self) -> Iterator[None]:
        self.in_step = True
        try:
            yield
        finally:
            self.in_step = False

    def _load_newest(self) -> bool:
        """Load the newest whole checkpoint; return whether a rollback was still to be followed."""
        paths = list(self._checkpoints.newest_first())
        for path in paths:
            try:
                checkpoint = self._checkpoints.read(path)
                rollbacks = self._decisions.rollbacks(since=checkpoint.decisions)
                if any(sequence(path) > seq for seq, _ in rollbacks):
                    continue  # what it holds was given up
                self._resume(checkpoint)
            except CorruptState as error:
                log.critical("checkpoint_damaged", path=str(path), reason=str(error))
            else:
                if rollbacks and rollbacks[-1][1].command is None:
                    self._health.went_back(rollbacks[-1][1].until)
                return bool(rollbacks)
        # Never begin anew over a state that was learned, however much of the log is there.
        if paths:
            raise CorruptState(f"none of {len(paths)} checkpoints can be restored")
        return False

    def _resume(self, checkpoint: Checkpoint) -> None:
        ids = [(number, index) for number, index in checkpoint.state.members.tolist()]
        members = self._replay.fetch(ids)
        self._engine = self._engines.restore(self._settings, checkpoint.state, members)
        self.progress = checkpoint.progress
        self._recent.load(checkpoint.recent)
        self._health.load(checkpoint.health, checkpoint.canary)
        self._outcomes = list(checkpoint.outcomes)
        self._identity = checkpoint.identity

    def _know_log(self) -> None:
        """See that the log is the one that was learned from; give a fresh one its name."""
        found = self._log.identity()
        if self._identity and found != self._identity:
            problem = "none" if found is None else f"log {found}"
            raise CorruptState(f"redis holds {problem}, the checkpoints are of {self._identity}")
        if found is None:
            found = uuid.uuid4().hex
            self._log.identify(found)
        self._identity = found

    def _judge(self, engine: Engine, entry: Entry) -> None:
        """Decide whether an entry is set aside before it is tried."""
        reason = None
        if (deaths := self._attempts.deaths(entry.number)) >= MOST_DEATHS:
            reason = f"the worker died {deaths} times while it learned this batch"
        else:
            reason = self._health.contradiction(engine, entry)
        if reason is not None and self._decisions.skips(entry.number) is None:
            number = entry.number
            self._decide(Decision(kind="skip", after=number - 1, until=number, reason=reason))

    def _look_after(self, engine: Engine, entry: Entry, step: Step) -> Turn:
        """Look at the learner's health, go back or grow if it says so."""
        verdict = self._health.after(engine, entry, learned=step.state == "learned")
        if verdict == "diverged":
            return self._go_back_from(entry.number)
        if verdict == "drifted":
            if not self._decisions.expands(entry.number):
                number = entry.number
                why = "the evidence lasted: the world has changed"
                self._decide(Decision(kind="expand", after=number, until=number, reason=why))
                engine.expand()
            return "save"
        return "save" if step.report is not None and step.report.expanded else "on"

    def _go_back_from(self, number: int) -> Turn:
        healthy_until = self._health.facts.healthy_until
        mark = self._checkpoints.mark(healthy_until)
        if mark is None:
            log.error("rollback_impossible", reason="no checkpoint is old enough", number=number)
            return "on"
        reason = self._health.harm
        self.go_back(
            Decision(kind="skip", after=healthy_until, until=number, reason=reason, checkpoint=mark)
        )
        return "back"

    def go_back(self, decision: Decision) -> None:
        """Follow a decision that names a checkpoint; it is on disk before anything else happens."""
        self._decide(decision)
        self._behind = True
        self._follow()
        self.save()

    def _follow(self) -> None:
        """Load what the newest decisions ask for; whatever was learned since is given up."""
        self._members.clear()
        self._set_aside.clear()
        self._load_newest()
        self._outcomes.clear()  # they were told
        self._behind = False
        self.unsaved = True

    def _decide(self, decision: Decision) -> None:
        self._decisions.add(decision)
        self._metrics.decisions.labels(decision.kind).inc()
        log.warning("decided", **asdict(decision))

    def _release(self) -> None:
        """Append what was set aside for a drift to the log again; idempotent."""
        facts = self._health.facts
        if facts.set_aside and not facts.probation_until:
            log.info("released", entries=self._log.release(facts.set_aside))
            facts.set_aside = []

    def _checkpoint(self, engine: Engine) -> Checkpoint:
        return Checkpoint(
            progress=self.progress,
            outcomes=self._outcomes,
            state=engine.dump(),
            summary=asdict(engine.summary()),
            recent=self._recent.dump(),
            canary=self._health.canary.arrays(),
            health=self._health.dump(),
            decisions=len(self._decisions),
            identity=self._identity,
            writer_epoch=self._fence.epoch,
        )

    def _tell(self) -> None:
        self._log.tell(self.progress.position, self.progress.consumed, self._outcomes)
        self._outcomes.clear()
        self.unsaved = False

    def _account(self, entry: Entry, step: Step) -> None:
        """Count an entry and remember what to tell of it."""
        self.progress = advanced(self.progress, entry, step)
        facts: dict[str, Any] = {"state": "quarantined", "reason": step.reason}
        if step.report is not None:
            facts = {"state": "learned", "step": step.report.step, "expert": step.report.expert}
        elif step.state == "repeated":
            facts = {"state": "learned", "step": self._recent.step_of(entry.batch_id)}
        else:
            self._set_aside.append(SetAside.of(entry, str(step.reason)))
            log.warning("entry_quarantined", position=entry.position, reason=step.reason)
        status = BatchStatus(batch_id=entry.batch_id, n=entry.n, position=entry.position, **facts)
        key = entry.idempotency_key
        self._outcomes.append(Outcome(number=entry.number, status=status, idempotency_key=key))
