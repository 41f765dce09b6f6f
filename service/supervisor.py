"""`levit serve`: everything on one machine, started, watched, restarted, and stopped in order.

    levit serve
    +-- Redis            unless LEVIT_REDIS_URL names one
    +-- levit worker     the only process that learns
    +-- levit api        accepts and answers

A child that dies comes back after a wait that doubles while it keeps dying. Stopping is API,
worker, Redis: nothing more is accepted, what was learned is saved, then its store ends. Children
are processes of their own, so that killing any of them harms no other.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from types import FrameType

import structlog

from service import logs
from service.errors import SettingsError, Unavailable
from service.exposure import check_exposure
from service.processes import end, spawn
from service.settings import PREFIX, Settings
from service.store.server import EmbeddedServer

POLL_S = 0.1
"""Time between looks at the children, so also the longest wait for a signal to be seen."""
SHORTEST_BACK_OFF_S, LONGEST_BACK_OFF_S = 0.5, 10.0
"""Wait before a child is restarted: doubled with each death, back at first after a quiet while."""
QUIET_S = 30.0
"""A child that lived this long has recovered."""
STOP_S = 20.0
"""Longest wait for a child that was asked to end, before it is killed."""
PORT_S = 5.0
"""Longest wait for the port of the API to be free."""
QUIET_THREADS = {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}
"""OpenMP threads without work sleep: spinning, those of API and worker take each other's cores."""
SETTINGS_ARE_WRONG = 2
"""Exit code after which a restart cannot help."""

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class Child:
    """One `levit` command as a process."""

    def __init__(self, command: str, environment: dict[str, str]) -> None:
        self.command = command
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; the caller is the main thread, whose death ends it too."""
        self._process = spawn(child_arguments(self.command), environment=self._environment)

    def exit_code(self) -> int | None:
        """Return how it ended, or None while it runs."""
        return None if self._process is None else self._process.poll()

    def died(self) -> bool:
        """Say whether it has ended."""
        return self.exit_code() is not None

    def stop(self) -> None:
        """Ask it to end, wait, and kill it if it does not."""
        if self._process is not None and end(self._process, patience_s=STOP_S):
            log.warning("child_killed", child=self.command, waited_s=STOP_S)


class Restarts:
    """When a part that died may be started again."""

    def __init__(self, name: str, died: Callable[[], bool], start: Callable[[], None]) -> None:
        self._name = name
        self._died = died
        self._start = start
        self._back_off_s = SHORTEST_BACK_OFF_S
        self._started_at = time.monotonic()
        self._restart_at: float | None = None

    def look(self) -> None:
        """Notice a death, or start again what has waited long enough."""
        now = time.monotonic()
        if self._restart_at is None:
            if self._died():
                self._wait(now)
        elif now >= self._restart_at:
            self._restart_at = None
            self._started_at = now
            try:
                self._start()
            except Unavailable as error:
                log.warning("start_failed", part=self._name, reason=str(error))
                self._wait(now)

    def _wait(self, now: float) -> None:
        if now - self._started_at > QUIET_S:
            self._back_off_s = SHORTEST_BACK_OFF_S
        log.warning("died", part=self._name, restart_in_s=self._back_off_s)
        self._restart_at = now + self._back_off_s
        self._back_off_s = min(LONGEST_BACK_OFF_S, 2 * self._back_off_s)


class Supervisor:
    """The parts of `levit serve`, in the order in which they start."""

    def __init__(self, settings: Settings) -> None:
        environment = child_environment(settings)
        self._redis = None if settings.redis_url else EmbeddedServer(settings)
        self._children = [Child("worker", environment), Child("api", environment)]
        self._parts = [Restarts(c.command, c.died, c.start) for c in self._children]
        if self._redis is not None:
            self._parts.append(Restarts("redis", self._redis.died, self._redis.start))
        self._stopping = False

    def stop(self, _signal: int = 0, _frame: FrameType | None = None) -> None:
        """Ask for the end; also a signal handler, so it only sets a flag."""
        self._stopping = True

    def run(self) -> int:
        """Run the parts until `stop`; return 0, 1 without Redis, or 2 when settings are refused.

        Raises:
            SettingsError: there is no Redis server to start.
        """
        try:
            if self._redis is not None:
                self._redis.start()
            for child in self._children:
                child.start()
            return self._watch()
        except Unavailable as error:
            log.critical("redis_did_not_start", reason=str(error))
            return 1
        finally:
            self._end()

    def _watch(self) -> int:
        while not self._stopping:
            if any(child.exit_code() == SETTINGS_ARE_WRONG for child in self._children):
                return SETTINGS_ARE_WRONG
            for part in self._parts:
                part.look()
            time.sleep(POLL_S)
        return 0

    def _end(self) -> None:
        for child in reversed(self._children):
            child.stop()
        if self._redis is not None:
            self._redis.stop()


def serve(settings: Settings) -> int:
    """Run everything on this machine until SIGTERM or SIGINT; return the exit code.

    Raises:
        SettingsError: there is no Redis server to start, it would be open to strangers, or another
            program listens on its port.
    """
    logs.configure("serve")
    check_exposure(settings)
    check_port(settings)
    settings.state_dir.mkdir(parents=True, exist_ok=True)
    supervisor = Supervisor(settings)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, supervisor.stop)
    return supervisor.run()


def check_port(settings: Settings) -> None:
    """Check that nobody listens where the API will; else it would be started again for ever.

    An API whose supervisor was killed is given a moment to end.

    Raises:
        SettingsError: naming the port.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    deadline = time.monotonic() + PORT_S
    while True:
        try:
            socket.create_server((settings.host, settings.port), family=family).close()
        except OSError as error:
            if time.monotonic() > deadline:
                raise SettingsError(
                    f"{PREFIX}PORT: expected a free port of {settings.host}, got {settings.port}: "
                    f"{error.strerror}"
                ) from error
            time.sleep(POLL_S)
        else:
            return


def child_arguments(command: str) -> list[str]:
    """Return what starts `levit <command>` with this Python."""
    return [sys.executable, "-m", "service", command]


def child_environment(settings: Settings) -> dict[str, str]:
    """Return this process' environment with every setting made explicit, for its children.

    A wait policy of threads that is set already stays.
    """
    made = {name: value for name, value in settings.model_dump().items() if value is not None}
    told = {PREFIX + name.upper(): str(value) for name, value in made.items()}
    return QUIET_THREADS | dict(os.environ) | told
