"""Floods against an API process, and what a prober and the kernel see of them meanwhile."""

import contextlib
import http.client
import select
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from service.settings import Settings
from service.supervisor import child_environment
from tests.chaos.clients import until_up
from tests.chaos.parts import TOY_API, Part
from tests.listening import PATIENCE_S, caller

PROBE_EVERY_S = 0.05
_RECEIVED_BYTES = 4096
"""Taken by the kernel for a client that reads nothing: the rest fills the service's buffers."""
DRIP_EVERY_S = 1.0
_GONE = select.POLLRDHUP | select.POLLHUP | select.POLLERR
_HOST = b"Host: 127.0.0.1\r\n"
_OBSERVE = b"POST /observe HTTP/1.1\r\n" + _HOST
_NDJSON = b"Content-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
_LINE = b'{"x": [[0.5]], "y": [1]}\n'
KINDS: dict[str, tuple[bytes, bytes]] = {
    "nothing": (b"", b""),
    "head": (b"GET /livez HTTP/1.1\r\n" + _HOST + b"X-A: ", b"a"),
    "body": (_OBSERVE + b"Content-Type: application/json\r\nContent-Length: 999\r\n\r\n", b" "),
    "lines": (_OBSERVE + _NDJSON + b"%x\r\n%b\r\n" % (len(_LINE), _LINE), b""),
}
"""What a slow client sends at once, and then each second; it reads nothing."""
_ANSWERS = (b"GET /openapi.json HTTP/1.1\r\n" + _HOST + b"\r\n") * 10
"""Asks for 1 MB that are not read."""
_DEAF_EVERY = 25
"""So few ask for them, as the answers cost time: this is no test of how fast they are."""


@contextmanager
def api_process(settings: Settings, log: Path) -> Iterator[Part]:
    """Yield an API in a process of its own that answers."""
    part = Part("api", TOY_API, child_environment(settings) | {"OMP_NUM_THREADS": "1"}, log)
    part.start()
    try:
        until_up(settings.port)
        yield part
    finally:
        part.close()


class Prober(threading.Thread):
    """Asks /livez and /readyz in turn, a connection each, as an orchestrator does."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self._port = port
        self._done = threading.Event()
        self.statuses: list[int] = []
        """Of each probe; 0 where no answer came."""
        self.took_s: list[float] = []

    def run(self) -> None:
        """Probe until told to stop."""
        for path in _alternately("/livez", "/readyz"):
            began = time.monotonic()
            self.statuses.append(self._ask(path))
            self.took_s.append(time.monotonic() - began)
            if self._done.wait(PROBE_EVERY_S):
                return

    def stop(self) -> None:
        """Ask no more."""
        self._done.set()
        self.join()

    @property
    def p99_ms(self) -> float:
        """How long all but 1 % took at most."""
        return float(np.percentile(self.took_s, 99)) * 1000

    def _ask(self, path: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=PATIENCE_S)
        try:
            connection.request("GET", path)
            return connection.getresponse().status
        except (OSError, http.client.HTTPException):
            return 0
        finally:
            connection.close()


@contextmanager
def probing(port: int) -> Iterator[Prober]:
    """Probe for as long as the block lasts."""
    prober = Prober(port)
    prober.start()
    try:
        yield prober
    finally:
        prober.stop()


class SlowSockets:
    """Connections from one address that send slowly, and read nothing."""

    def __init__(self, port: int, number: int, *, of: str) -> None:
        self._poll = select.poll()
        self._open: dict[int, tuple[socket.socket, bytes]] = {}
        slow, deaf = list(KINDS.values()), (_ANSWERS, b"")
        for at in range(number):
            first, later = slow[at % len(slow)] if at % _DEAF_EVERY else deaf
            one = caller(port, of=of)
            one.setblocking(False)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVED_BYTES)
            with contextlib.suppress(OSError):
                one.send(first)
            self._open[one.fileno()] = (one, later)
            self._poll.register(one, _GONE)

    def __len__(self) -> int:
        """Return how many the service has not closed yet."""
        for number, _ in self._poll.poll(0):
            one, _ = self._open.pop(number)
            self._poll.unregister(one)
            one.close()
        return len(self._open)

    def drip(self) -> None:
        """Send a byte on each."""
        for one, later in self._open.values():
            with contextlib.suppress(OSError):
                one.send(later)

    def close(self) -> None:
        """Hang up."""
        for one, _ in self._open.values():
            one.close()


@contextmanager
def slow_sockets(port: int, number: int, *, of: str = "127.0.0.2") -> Iterator[SlowSockets]:
    """Open slow connections, and close what is left of them."""
    sockets = SlowSockets(port, number, of=of)
    try:
        yield sockets
    finally:
        sockets.close()


def until_closed(sockets: SlowSockets, *, within_s: float) -> float:
    """Return after how many seconds the service had closed the last; `within_s` if it has not."""
    began = dripped = time.monotonic()
    while len(sockets):
        now = time.monotonic()
        if now - began > within_s:
            return within_s
        if now - dripped > DRIP_EVERY_S:
            sockets.drip()
            dripped = now
        time.sleep(0.02)
    return time.monotonic() - began


@contextmanager
def memory_peak(pid: int) -> Iterator[list[float]]:
    """Yield a list that holds, after the block, by how many MB the process was ever larger."""
    rise: list[float] = []
    before = _memory_mb(pid, "VmRSS")
    Path(f"/proc/{pid}/clear_refs").write_text("5")  # the peak begins anew
    yield rise
    rise.append(_memory_mb(pid, "VmHWM") - before)


def _memory_mb(pid: int, name: str) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    said = dict(line.split(":", 1) for line in lines)
    return int(said[name].split()[0]) / 1024


def _alternately(*paths: str) -> Iterator[str]:
    while True:
        yield from paths
