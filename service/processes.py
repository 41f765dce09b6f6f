"""Child processes: they end with the process that started them, when asked, or when killed."""

import ctypes
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)  # loaded here, as a child between fork and exec may not


def spawn(
    arguments: Sequence[str | Path],
    *,
    environment: dict[str, str] | None = None,
    stdout: int | None = None,
) -> subprocess.Popen[bytes]:
    """Return a child that ends when this thread does (Linux), so call it from the main thread.

    Args:
        arguments: the program and its arguments.
        environment: of the child; None for this process' own.
        stdout: `subprocess.DEVNULL` to drop what it prints; None to share this process' output.
    """
    return subprocess.Popen(
        arguments,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        process_group=0,  # Ctrl-C in a terminal is the supervisor's business
        preexec_fn=_die_with_parent,  # noqa: PLW1509  it only makes one system call
    )


def end(process: subprocess.Popen[bytes], *, patience_s: float) -> bool:
    """Ask a process to end and wait; return whether it had to be killed after `patience_s`."""
    process.terminate()
    try:
        process.wait(patience_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return True
    return False


def _die_with_parent() -> None:
    """Ask the kernel to end this process when the thread that started it does; Linux only."""
    if sys.platform == "linux":
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
