"""All that changes while the worker learns, and that a checkpoint holds."""

from dataclasses import asdict, dataclass, field
from typing import Self

from service.engine.protocol import Engine
from service.settings import Settings
from service.worker.books import Books
from service.worker.checkpoints import Checkpoint
from service.worker.health import Health
from service.worker.step import Memory, Progress


@dataclass(slots=True, kw_only=True)
class WorkerState:
    """The engine, how far it has come, and what is to be told of it."""

    memory: Memory
    engine: Engine | None = None
    """None until the first entry says what a sample is."""
    progress: Progress = field(default_factory=Progress)
    health: Health = field(default_factory=Health)
    books: Books = field(default_factory=Books)
    identity: str = ""
    """Of the log that was learned from; empty when nothing was."""

    @classmethod
    def fresh(cls, settings: Settings) -> Self:
        """Return the state before the first entry."""
        return cls(memory=Memory.fresh(settings))

    @classmethod
    def of(cls, checkpoint: Checkpoint, engine: Engine, settings: Settings) -> Self:
        """Return the state of a checkpoint, around its engine.

        Raises:
            SettingsError: labels could be joined within other bounds.
        """
        state = cls.fresh(settings)
        state.engine, state.progress = engine, checkpoint.progress
        state.identity = checkpoint.identity
        state.memory.recent.load(checkpoint.recent)
        state.memory.waiting.load(checkpoint.waiting)
        state.memory.writers.load(checkpoint.writers)
        state.memory.timeline.load(checkpoint.timeline)
        state.health.load(checkpoint.health, checkpoint.canary)
        state.books.outcomes = list(checkpoint.outcomes)
        state.books.expansions = int(checkpoint.summary["expansions"])
        return state

    def checkpoint(
        self, engine: Engine, *, decisions: int, identity: str, writer_epoch: int
    ) -> Checkpoint:
        """Return what a checkpoint says of this state.

        Args:
            engine: its engine.
            decisions: how many were followed.
            identity: of the log.
            writer_epoch: of this worker.
        """
        return Checkpoint(
            progress=self.progress,
            outcomes=self.books.outcomes,
            state=engine.dump(),
            summary=asdict(engine.summary()),
            recent=self.memory.recent.dump(),
            waiting=self.memory.waiting.dump(),
            writers=self.memory.writers.dump(),
            canary=self.health.canary.arrays(),
            timeline=self.memory.timeline.dump(),
            health=self.health.dump(),
            decisions=decisions,
            identity=identity,
            writer_epoch=writer_epoch,
        )
