"""A worker with the toy engine in this process, which ends when there is nothing left to learn."""

from prometheus_client import CollectorRegistry

from service.engine.protocol import Engines
from service.metrics import WorkerMetrics
from service.settings import Settings
from service.worker.checkpoints import Checkpoint, Checkpoints
from service.worker.loop import Worker
from tests.toy_engine import ToyEngines


class StopsWhenIdle(Worker):
    """A worker that ends once everything in the log is in a checkpoint."""

    def _idle(self) -> None:
        super()._idle()
        if not self._learning.unsaved:
            self.stop()


def newest(settings: Settings) -> Checkpoint:
    """Return the newest checkpoint."""
    checkpoints = Checkpoints(settings)
    return checkpoints.read(next(checkpoints.newest_first()))


def learn_all(settings: Settings, engines: Engines | None = None) -> Checkpoint:
    """Let a worker learn the log; return its last checkpoint."""
    worker = StopsWhenIdle(settings, engines or ToyEngines(), WorkerMetrics(CollectorRegistry()))
    try:
        worker.run()
    finally:
        worker.close()
    return newest(settings)
