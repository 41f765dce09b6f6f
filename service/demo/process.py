"""The demo's own service: `levit serve` as a child process with a state directory of its own."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from service.client import Client
from service.errors import DemoFailed, SettingsError
from service.processes import end
from service.settings import PREFIX

STATE_DIR = Path("demo-state")
LOG = "demo.log"
"""Standard output and error of the service; also the mark of a directory that a demo made."""
OTHER_STREAMS = (PREFIX + "REDIS_URL", PREFIX + "INPUT")
"""Settings of this environment that belong to a stream with another log."""
START_LIMIT_S = 60.0
STOP_LIMIT_S = 40.0
"""Longest wait for the service to save and stop, before it is killed."""


@contextmanager
def running_service(
    settings: Mapping[str, object], *, without: Collection[str] = ()
) -> Iterator[str]:
    """Yield the address of a fresh service in `STATE_DIR`; stop it afterwards, keep its state.

    Args:
        settings: of the service, by field; ports are chosen unless they are among them.
        without: settings of this environment that it is not to be told.

    Raises:
        SettingsError: `STATE_DIR` exists and no demo made it.
        DemoFailed: the service did not become ready within `START_LIMIT_S`.
    """
    _clear_state()
    ports = {"port": free_port(8000), "worker_metrics_port": free_port(9101)}
    environment = os.environ | environment_of(ports | dict(settings))
    for name in (*OTHER_STREAMS, *(PREFIX + name.upper() for name in without)):
        environment.pop(name, None)
    command = [
        sys.executable,
        "-m",
        "service",
        "serve",
        "--insecure",
        "--state-dir",
        str(STATE_DIR),
    ]
    with (STATE_DIR / LOG).open("wb") as log:
        # The same process group: the terminal's Ctrl-C and hang-up reach the service as well.
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        url = f"http://127.0.0.1:{environment[PREFIX + 'PORT']}"
        _wait_until_ready(process, url)
        yield url
    finally:
        end(process, patience_s=STOP_LIMIT_S)


def environment_of(settings: Mapping[str, object]) -> dict[str, str]:
    """Return settings as environment variables, for a process or for a shell."""
    return {PREFIX + name.upper(): str(value) for name, value in settings.items()}


def _clear_state() -> None:
    """Make `STATE_DIR` an empty directory; only what a demo left there is removed."""
    if STATE_DIR.exists():
        if not (STATE_DIR / LOG).exists():
            raise SettingsError(f"{STATE_DIR} exists and no demo made it; move it away")
        shutil.rmtree(STATE_DIR)
    STATE_DIR.mkdir()


def free_port(wanted: int) -> int:
    """Return `wanted`, or a port that is free if something listens there already."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError:
            probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_until_ready(process: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + START_LIMIT_S
    with Client(url) as client:
        while not client.ready():
            if process.poll() is not None:
                raise DemoFailed(
                    f"the service ended with {process.returncode}; see {STATE_DIR / LOG}"
                )
            if time.monotonic() > deadline:
                raise DemoFailed(
                    f"the service was not ready within {START_LIMIT_S:.0f} s; see {STATE_DIR / LOG}"
                )
            time.sleep(0.1)
