"""The worker process: the only one that learns. This file decides when; `learning` does.

It reads the log behind its position, learns entry by entry, and makes checkpoints and snapshots as
often as 5 % of the time allows for each. When is a matter of clocks, so nothing of it may enter
the learner's state. A signal only sets a flag. While Redis is away it waits; where state is
corrupt it stops learning, stays visible and waits for a human.
"""

import fcntl
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import structlog
from prometheus_client import CollectorRegistry, start_http_server

from service import logs
from service.engine.protocol import Engines
from service.errors import CorruptState, StateDirectoryBusy, Unavailable
from service.metrics import WorkerMetrics
from service.settings import Settings
from service.store import directory
from service.store.server import server_url
from service.worker.learning import Learning
from service.worker.orders import Orders

READ_COUNT = 8
"""Entries read at once: at most 64 MiB of the largest bodies, and few enough round trips."""
BLOCK_MS = 100
"""Longest wait for an entry, so also for a signal to be seen."""
CHECK_INTERVAL_S = 10.0
"""Time between looks whether the log is whole, besides those before each checkpoint."""
SHARE = 0.05
"""Share of time that checkpoints, and likewise snapshots, may take."""
LONGEST_BACK_OFF_S = 2.0
"""Longest wait between attempts while Redis or the disk is away."""

PATIENCE_S = 6.0
"""Longest wait for the entry that is being learned when the worker is told to stop."""

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class StepAbandoned(BaseException):
    """The entry that was being learned is given up; a restart begins it again."""


class Pace:
    """When something costly may be done again."""

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._affordable_at = self._ended_at = time.monotonic()

    @property
    def affordable(self) -> bool:
        """Whether doing it now keeps its share of time."""
        return time.monotonic() >= self._affordable_at

    @property
    def due(self) -> bool:
        """Whether it is affordable and its interval has passed."""
        return self.affordable and time.monotonic() >= self._ended_at + self._interval_s

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Take what happens inside as its cost."""
        started_at = time.monotonic()
        yield
        self._ended_at = time.monotonic()
        cost_s = self._ended_at - started_at
        self._affordable_at = self._ended_at + cost_s * (1 / SHARE - 1)


class Worker:
    """The loop around one `Learning`."""

    def __init__(self, settings: Settings, engines: Engines, metrics: WorkerMetrics) -> None:
        self._learning = Learning(settings, engines, server_url(settings), metrics)
        self._orders = Orders(settings, self._learning)
        self._checkpoints = Pace(settings.checkpoint_interval_s)
        self._snapshots = Pace(settings.snapshot_interval_s)
        self._checked_at = time.monotonic()
        self._stopping = False

    def stop(self, _signal: int = 0, _frame: FrameType | None = None) -> None:
        """Ask the loop to end after the current entry; also a signal handler."""
        self._stopping = True

    @property
    def consumed(self) -> int:
        """Entries learned or set aside so far; any thread may read it."""
        return self._learning.progress.consumed

    def hurry(self, _signal: int = 0, _frame: FrameType | None = None) -> None:
        """Give up the entry that is being learned, if one is; also a signal handler.

        Raises:
            StepAbandoned: out of the step, so that nothing since the checkpoint is saved.
        """
        if self._learning.judge.attempts.running:
            raise StepAbandoned

    def run(self) -> None:
        """Learn until `stop`; then everything learned is in a checkpoint, if Redis is there.

        After a step that was abandoned nothing is saved: its end may have been reached by half.

        Raises:
            CorruptState: the log or what it must fit is damaged; a human decides.
            SettingsError: a learner setting does not fit the stream or its state.
        """
        try:
            self._insist(self._learning.restore)
            while not self._stopping:
                self._insist(self._turn)
        except StepAbandoned:
            log.warning("step_abandoned", waited_s=PATIENCE_S)
        try:
            if self._learning.unsaved:
                self._save()
        except (Unavailable, OSError) as error:
            log.warning("stopped_without_checkpoint", reason=str(error))

    def hold(self, problem: str) -> bool:
        """Tell the problem and learn nothing until `stop`, so that metrics can still be read.

        Returns:
            Whether an administrator has mended it, so that learning can go on.
        """
        mended = False

        def look() -> None:
            """See whether somebody has a command."""
            nonlocal mended
            mended = self._orders.follow(held=True)

        self._insist(lambda: self._learning.stopped(problem))
        while not self._stopping and not mended:
            time.sleep(BLOCK_MS / 1000)
            self._insist(look)
        return mended

    def close(self) -> None:
        """Close the connections."""
        self._learning.close()

    def _turn(self) -> None:
        """Learn some entries, saving and publishing when it is time."""
        if self._orders.follow():
            return
        entries = self._learning.read(count=READ_COUNT, block_ms=BLOCK_MS)
        for raw in entries:
            if self._stopping:
                return
            turn = self._learning.learn(raw)
            if turn == "back":
                return
            if turn == "save" or self._checkpoints.due:
                self._save()
            elif self._snapshots.due or not self._learning.published:
                self._publish()
        if not entries:
            self._idle()

    def _idle(self) -> None:
        if self._learning.unsaved and self._checkpoints.affordable:
            self._save()
        elif time.monotonic() - self._checked_at > CHECK_INTERVAL_S:
            self._learning.check_log()
            self._checked_at = time.monotonic()

    def _save(self) -> None:
        with self._checkpoints.measured():
            self._learning.save()
        self._checked_at = time.monotonic()

    def _publish(self) -> None:
        with self._snapshots.measured():
            self._learning.publish()

    def _insist(self, action: Callable[[], None]) -> None:
        """Do something, repeating it while Redis or the disk is away."""
        back_off_s = 0.0
        while not self._stopping:
            try:
                action()
            except (Unavailable, OSError) as error:
                if not back_off_s:
                    log.warning("waiting", reason=str(error), cause=str(error.__cause__))
                back_off_s = min(LONGEST_BACK_OFF_S, max(0.05, 2 * back_off_s))
                time.sleep(back_off_s)
            else:
                if back_off_s:
                    log.info("waited_long_enough")
                return


def run(settings: Settings, engines: Engines) -> int:
    """Learn until SIGTERM or SIGINT; return the exit code 0.

    Raises:
        StateDirectoryBusy: another worker holds the state directory or writes to its log.
        CorruptState: after a signal, when learning had stopped for it.
        SettingsError: a learner setting does not fit the stream or its state, or there is no key.
    """
    logs.configure("worker")
    directory.sign_with(settings.state_hmac_key_file)
    settings.state_dir.mkdir(parents=True, exist_ok=True)
    registry = CollectorRegistry()
    with _lock(settings.state_dir), _listener(settings, registry):
        worker = Worker(settings, engines, WorkerMetrics(registry))
        _listen_to_signals(worker)
        log.info("started", state_dir=str(settings.state_dir))
        try:
            _learn(worker)
        finally:
            worker.close()
    log.info("stopped")
    return 0


def _learn(worker: Worker) -> None:
    """Learn until a signal; where the log is damaged, wait for it or for a human."""
    while True:
        try:
            worker.run()
        except CorruptState as error:
            log.critical("learning_stopped", reason=str(error))
            if not worker.hold(str(error)):
                raise
        else:
            return


def _listen_to_signals(worker: Worker) -> None:
    """Stop on SIGTERM and SIGINT: after the current entry, or without it if that takes long."""

    def end(_signal: int, _frame: FrameType | None) -> None:
        worker.stop()
        signal.setitimer(signal.ITIMER_REAL, PATIENCE_S)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    signal.signal(signal.SIGALRM, worker.hurry)


@contextmanager
def _lock(state_dir: Path) -> Iterator[None]:
    """Hold the state directory; the kernel lets go of it when the process dies."""
    with (state_dir / "worker.lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StateDirectoryBusy(f"another worker holds {state_dir}") from None
        yield


@contextmanager
def _listener(settings: Settings, registry: CollectorRegistry) -> Iterator[None]:
    """Serve the metrics from a daemon thread, unless the port is 0.

    Raises:
        OSError: the address is taken; naming it and its setting.
    """
    host, port = settings.worker_metrics_host, settings.worker_metrics_port
    if port == 0:
        yield
        return
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as error:
        problem = f"LEVIT_WORKER_METRICS_PORT: cannot listen on {host}:{port}: {error.strerror}"
        raise OSError(error.errno, problem) from error
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
