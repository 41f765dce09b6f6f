"""The worker process: the only one that learns. One loop in turn for each stream.

A signal only sets a flag. A stream whose state is corrupt stops learning, stays visible and waits
for a human; the others go on. A stream that is declared while the process runs joins the loop.
"""

import fcntl
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

import structlog
from prometheus_client import CollectorRegistry, start_http_server

from service import logs, tracing
from service.engine.protocol import Engines
from service.errors import CorruptState, SettingsError, StateDirectoryBusy, Unavailable
from service.metrics import WorkerMetrics
from service.settings import Settings
from service.store import directory
from service.store.declared import DeclaredStreams
from service.store.names import DEFAULT_STREAM
from service.worker.loop import BLOCK_MS, StepAbandoned, Worker

PATIENCE_S = 6.0
"""Longest wait for the entry that is being learned when the worker is told to stop."""
LOOK_S = 1.0
"""Time between looks for streams that were declared."""

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class Stream:
    """One stream of the process: its loop, or why it learns nothing."""

    def __init__(self, settings: Settings, engines: Engines, metrics: WorkerMetrics) -> None:
        self.worker = Worker(settings, engines, metrics)
        self.problem: CorruptState | SettingsError | None = None
        self._name = settings.stream
        self._begun = False

    def turn(self, block_ms: int | None) -> bool:
        """Go on for a few entries; return whether there were any.

        Raises:
            SettingsError: a learner setting does not fit the default stream or its state.
        """
        if self.problem is not None:
            return self._look()
        try:
            if not self._begun:
                self.worker.begin()
                self._begun = True
            return self.worker.turn(block_ms)
        except SettingsError as error:
            if self._name == DEFAULT_STREAM:
                raise
            self._stop(error)
        except CorruptState as error:
            self._stop(error)
        return False

    def _stop(self, problem: CorruptState | SettingsError) -> None:
        self.problem = problem
        log.critical("learning_stopped", stream=self._name, reason=str(problem))
        self.worker.stopped(str(problem))

    def _look(self) -> bool:
        if not self.worker.mended():
            return False
        self.problem, self._begun = None, False
        return True


class Process:
    """The streams that one process learns, in turn."""

    def __init__(self, settings: Settings, engines: Engines, metrics: WorkerMetrics) -> None:
        """Begin with the default stream.

        Raises:
            StateDirectoryBusy: another worker holds its state directory.
        """
        self._engines = engines
        self._metrics = metrics
        self._declared = DeclaredStreams(settings)
        self._streams: dict[str, Stream] = {}
        self._locks = ExitStack()
        self._looked_at = float("-inf")
        self._stopping = False
        self._add(settings)

    def stop(self) -> None:
        """Ask for the end after the current entry; a signal handler may call it."""
        self._stopping = True
        for one in list(self._streams.values()):
            one.worker.stop()

    def hurry(self) -> None:
        """Give up the entry that is being learned, if one is; a signal handler may call it.

        Raises:
            StepAbandoned: out of the step, so that nothing since its checkpoint is saved.
        """
        for one in list(self._streams.values()):
            one.worker.hurry()

    def run(self) -> None:
        """Learn until `stop`; then everything learned is in a checkpoint, if Redis is there.

        After a step that was abandoned nothing of its stream is saved: its end may have been
        reached by half.

        Raises:
            CorruptState: after `stop`, when a stream had stopped learning for it.
            SettingsError: a learner setting does not fit the default stream or its state.
            StateDirectoryBusy: another worker holds a state directory or writes to its log.
        """
        met = True
        try:
            while not self._stopping:
                self._join_declared()
                block_ms = None if met else max(1, BLOCK_MS // len(self._streams))
                met = False
                for one in list(self._streams.values()):
                    met |= one.turn(block_ms)
                if not met and all(one.problem for one in self._streams.values()):
                    time.sleep(BLOCK_MS / 1000)
        except StepAbandoned:
            log.warning("step_abandoned", waited_s=PATIENCE_S)
        problems = [one.problem for one in self._streams.values() if one.problem is not None]
        for one in self._streams.values():
            if one.problem is None:
                one.worker.end()
        if problems:
            raise problems[0]

    def close(self) -> None:
        """Close files, connections and locks."""
        for one in self._streams.values():
            one.worker.close()
        self._declared.close()
        self._locks.close()

    def _join_declared(self) -> None:
        now = time.monotonic()
        if now - self._looked_at < LOOK_S:
            return
        self._looked_at = now
        try:
            found = self._declared.all()
        except (Unavailable, OSError) as error:
            log.warning("streams_unknown", reason=str(error))
            return
        for settings in found:
            if settings.stream not in self._streams:
                self._add(settings)
                log.info("stream_joined", stream=settings.stream)

    def _add(self, settings: Settings) -> None:
        settings.state_dir.mkdir(parents=True, exist_ok=True)
        self._locks.enter_context(_lock(settings.state_dir))
        self._streams[settings.stream] = Stream(settings, self._engines, self._metrics)


def run(settings: Settings, engines: Engines) -> int:
    """Learn until SIGTERM or SIGINT; return the exit code 0.

    Raises:
        StateDirectoryBusy: another worker holds a state directory or writes to its log.
        CorruptState: after a signal, when learning had stopped for it.
        SettingsError: a learner setting does not fit the stream or its state, or there is no key.
    """
    logs.configure("worker")
    tracing.configure("worker")
    directory.sign_with(settings.state_hmac_key_file)
    registry = CollectorRegistry()
    process = Process(settings, engines, WorkerMetrics(registry))
    try:
        with _listener(settings, registry):
            _listen_to_signals(process)
            log.info("started", state_dir=str(settings.state_dir))
            process.run()
    finally:
        process.close()
    log.info("stopped")
    return 0


def _listen_to_signals(process: Process) -> None:
    """Stop on SIGTERM and SIGINT: after the current entry, or without it if that takes long."""

    def end(_signal: int, _frame: FrameType | None) -> None:
        process.stop()
        signal.setitimer(signal.ITIMER_REAL, PATIENCE_S)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    signal.signal(signal.SIGALRM, lambda *_: process.hurry())


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
