"""Worker, API and Redis as processes that are started again the moment they have died.

The product's own supervisor waits between restarts; here nothing waits, so that more happens.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from service.errors import Unavailable
from service.processes import _die_with_parent
from service.settings import Settings
from service.store.link import connect
from service.store.names import DEFAULT as names
from service.store.server import EmbeddedServer, server_url
from service.supervisor import child_environment
from service.worker.checkpoints import Checkpoint, Checkpoints

ROOT = Path(__file__).parents[2]
TOY_WORKER = ("-m", "tests.toy_worker", "0")
TOY_API = ("-m", "tests.toy_api")
STOP_S = 30.0
"""Longest wait for a part that was asked to end."""


class Part:
    """One process of the service."""

    def __init__(
        self, name: str, arguments: Sequence[str], environment: Mapping[str, str], log: Path
    ) -> None:
        self.name = name
        self._arguments = [sys.executable, *arguments]
        self._environment = dict(environment)
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self.life = 0
        """Raised by each start and each kill; odd while it is meant to run."""
        self.starts: list[float] = []
        """Monotonic seconds."""
        self.expected_to_die = False
        self._log_start = 0

    @property
    def started_at(self) -> float:
        return self.starts[-1]

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it; call this from the main thread, whose death ends it too."""
        with self._log.open("ab") as log:
            self._log_start = log.tell()
            self._process = subprocess.Popen(
                self._arguments,
                env=self._environment,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                preexec_fn=_die_with_parent,  # noqa: PLW1509  it only makes one system call
            )
        self._came()

    def exit_code(self) -> int | None:
        return None if self._process is None else self._process.poll()

    def kill(self) -> None:
        """SIGKILL it and wait until the kernel has let go of what it held."""
        self._goes()
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def stop(self) -> tuple[int, float]:
        """Ask it to end; return its exit code and the seconds it took."""
        self._goes()
        asked_at = time.monotonic()
        self.signal(signal.SIGTERM)
        assert self._process is not None
        code = self._process.wait(STOP_S)
        return code, time.monotonic() - asked_at

    def wait(self) -> int:
        """Return how it ends by itself."""
        assert self._process is not None
        return self._process.wait(STOP_S)

    def beside(self, log: Path) -> "Part":
        """Return a second process of the same kind that is not started yet."""
        return Part(self.name, self._arguments[1:], self._environment, log)

    def says(self, text: bytes, *, within_s: float = 30.0) -> None:
        """Wait until it has logged a text since its last start, or has ended."""
        deadline = time.monotonic() + within_s
        while text not in self.said() and self.exit_code() is None:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.name} did not say {text!r} within {within_s} s")
            time.sleep(0.005)

    def said(self) -> bytes:
        """Return what it has logged since its last start."""
        with self._log.open("rb") as log:
            log.seek(self._log_start)
            return log.read()

    def close(self) -> None:
        """End it in any case."""
        if self._process is not None and self._process.poll() is None:
            self.kill()

    def _came(self) -> None:
        self.life += 1
        self.expected_to_die = False
        self.starts.append(time.monotonic())

    def _goes(self) -> None:
        if not self.expected_to_die:
            self.life += 1
        self.expected_to_die = True


class Redis(Part):
    """The server of a state directory, with the options the product gives it."""

    def __init__(self, settings: Settings, binary: Path, *, options: Mapping[str, str]) -> None:
        super().__init__("redis", [], {}, settings.state_dir / "redis" / "redis.log")
        self._server = EmbeddedServer(settings, binary)
        self._options = options
        self.url = self._server.url

    def start(self) -> None:
        try:
            self._server.start()
        finally:
            self._process = self._server._process or self._process
        redis = connect(self.url)
        for name, value in self._options.items():
            redis.config_set(name, value)
        redis.close()
        self._came()


class Service:
    """The three parts of one state directory."""

    def __init__(
        self,
        settings: Settings,
        binary: Path,
        *,
        worker: Sequence[str] = TOY_WORKER,
        api: Sequence[str] = TOY_API,
        redis_options: Mapping[str, str] | None = None,
        redis_at: Settings | None = None,
    ) -> None:
        """Name the parts; `start` starts them.

        Args:
            settings: of worker and API; its port and metrics port are used as they are.
            binary: the Redis server.
            worker: arguments to Python.
            api: arguments to Python.
            redis_options: set at each start of Redis.
            redis_at: whose state directory holds Redis; None for that of the service.
        """
        self.settings = settings
        logs = settings.state_dir.parent
        environment = child_environment(settings) | {"OMP_NUM_THREADS": "1"}
        self.redis = Redis(redis_at or settings, binary, options=redis_options or {})
        self.worker = Part("worker", worker, environment, logs / "worker.log")
        self.api = Part("api", api, environment, logs / "api.log")
        self.parts = {part.name: part for part in (self.redis, self.worker, self.api)}
        self.unexpected: list[str] = []
        """Deaths that nobody caused."""

    def __enter__(self) -> "Service":
        self.settings.state_dir.mkdir(parents=True, exist_ok=True)
        for part in self.parts.values():
            part.start()
        return self

    def __exit__(self, *_: object) -> None:
        for part in reversed(self.parts.values()):
            part.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.settings.port}"

    def tend(self) -> None:
        """Start again what has died."""
        for part in self.parts.values():
            code = part.exit_code()
            if code is None:
                continue
            if not part.expected_to_die:
                self.unexpected.append(f"{part.name} ended by itself with {code}")
                part.expected_to_die = True
            with suppress(Unavailable):  # Redis on a full disk: tried again with the next look
                part.start()

    def drain(self, *, within_s: float = 60.0) -> None:
        """Wait until a checkpoint holds all that was accepted."""
        deadline = time.monotonic() + within_s
        while True:
            self.tend()
            accepted, consumed = counts(self.redis.url)
            if accepted == consumed:
                return
            if time.monotonic() > deadline:
                raise TimeoutError(f"{consumed} of {accepted} entries learned after {within_s} s")
            time.sleep(0.05)

    def stop(self) -> dict[str, tuple[int, float]]:
        """Stop API, worker and Redis; return exit codes and seconds."""
        return {part.name: part.stop() for part in reversed(self.parts.values())}


def counts(redis_url: str) -> tuple[int, int]:
    """Return the entries accepted, and how many of them a checkpoint holds."""
    redis: Any = connect(redis_url)
    try:
        accepted, consumed = redis.get(names.accepted), redis.hget(names.progress, "consumed")
        return int(accepted or 0), int(consumed or 0)
    finally:
        redis.close()


def newest_checkpoint(settings: Settings) -> Checkpoint:
    """Return the newest whole checkpoint, when no worker runs."""
    checkpoints = Checkpoints(settings)
    return checkpoints.read(next(checkpoints.newest_first()))


def chaos_settings(home: Path, **options: object) -> Settings:
    """Return settings of a service of its own under `home` that saves ten times a second."""
    fixed: dict[str, object] = {
        "state_dir": home / "state",
        "insecure": True,
        "port": free_port(),
        "worker_metrics_port": 0,
        "checkpoint_interval_s": 0.1,
        "snapshot_interval_s": 0.1,
    }
    made = Settings.read(**(fixed | options))
    return made.model_copy(update={"redis_url": made.redis_url or server_url(made)})


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port
