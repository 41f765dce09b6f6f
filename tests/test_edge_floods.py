"""Floods: slow clients are closed and big bodies refused, while probes are answered."""

import contextlib
import json
import re
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest

from service.settings import Settings
from tests.chaos.parts import free_port
from tests.chaos.report import say
from tests.conftest import MakeSettings
from tests.flood import api_process, memory_peak, probing, slow_sockets, until_closed
from tests.listening import caller, rest, statuses
from tests.patience import BUSY

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

SLOW, CLOSED_S, P99_MS = 300, 12.0, 250.0
"""Promised."""
SETTLED_S = 2.0
"""After which those beyond the cap are closed."""
BODIES, DECLARED, RISE_MB = 50, 2**30, 32.0
POST = b"POST /observe HTTP/1.1\r\nHost: 127.0.0.1\r\n"
SAFETENSORS = b"Content-Type: application/x-safetensors\r\n"
HOSTILE = [
    "%0d%0aX:%201",
    "%0a{}",
    "%00",
    "%1b[2J",
    "%e2%80%a8",
    "..%2f..%2fetc%2fpasswd",
    "a" * 900,
]


@pytest.fixture
def flooded(settings: MakeSettings) -> Callable[..., Settings]:
    """A function that makes settings for an API process."""

    def make(**options: object) -> Settings:
        return settings(insecure=True, port=free_port(), **options)

    return make


def hold_off(settings: Settings, log: Path, *, probed: int, most: int) -> None:
    """Flood a new service, which has to close the sockets and to answer probes meanwhile.

    Args:
        settings: of the service.
        log: of it.
        probed: the port that must answer every probe.
        most: sockets that may be open at once.
    """
    with (
        api_process(settings, log),
        probing(probed) as prober,
        slow_sockets(settings.port, SLOW) as sockets,
    ):
        began = time.monotonic()
        time.sleep(SETTLED_S)
        at_once = len(sockets)
        with probing(settings.port) as beside:
            time.sleep(1)
        until_closed(sockets, within_s=2 * CLOSED_S)
        closed_s = time.monotonic() - began

    say(
        f"{SLOW} slow sockets: {at_once} open at once, the last closed after {closed_s:.1f} s; "
        f"{len(prober.statuses)} probes, p99 {prober.p99_ms:.0f} ms"
    )
    assert 0 < at_once <= most
    assert set(prober.statuses) == {200}
    assert (200 in beside.statuses) == (probed == settings.port)
    assert closed_s <= 2 * CLOSED_S
    assert prober.p99_ms <= BUSY * P99_MS


def test_three_hundred_slow_sockets_are_closed_while_probes_are_answered(
    flooded: Callable[..., Settings], tmp_path: Path
) -> None:
    settings = flooded()
    most = settings.connections_per_address

    hold_off(settings, tmp_path / "log", probed=settings.port, most=most)


def test_with_the_cap_per_address_off_the_second_listener_answers_probes(
    flooded: Callable[..., Settings], tmp_path: Path
) -> None:
    settings = flooded(connections_per_address=0, probe_port=free_port())
    port, most = settings.probe_port, settings.connections

    hold_off(settings, tmp_path / "log", probed=port, most=most)


def test_without_deadlines_the_sockets_would_stay(
    flooded: Callable[..., Settings], tmp_path: Path
) -> None:
    settings = flooded(head_timeout_s=1e9, receive_timeout_s=1e9, stream_timeout_s=1e9)
    with (
        api_process(settings, tmp_path / "log"),
        slow_sockets(settings.port, SLOW) as sockets,
    ):
        time.sleep(SETTLED_S)
        at_once = len(sockets)
        until_closed(sockets, within_s=CLOSED_S)

        assert len(sockets) > at_once / 2  # of lines the route itself has a deadline


@pytest.mark.parametrize("coding", ["declared", "chunked"])
def test_fifty_giant_bodies_are_refused_in_little_memory(
    flooded: Callable[..., Settings], tmp_path: Path, coding: str
) -> None:
    settings = flooded(max_body_bytes=2**18)
    with api_process(settings, tmp_path / "log") as api:
        _bodies(settings.port, coding, number=1)  # what the first one costs, none else does
        with memory_peak(api.pid) as rise:
            found = _bodies(settings.port, coding, number=BODIES)

    say(f"{BODIES} bodies of 1 GiB {coding}: RSS up by {rise[0]:.1f} MB")
    assert found == [413] * BODIES
    assert rise[0] <= RISE_MB


def test_bodies_that_are_allowed_would_be_noticed(
    flooded: Callable[..., Settings], tmp_path: Path
) -> None:
    settings = flooded(max_body_bytes=2**31)
    with api_process(settings, tmp_path / "log") as api, memory_peak(api.pid) as rise:
        _bodies(settings.port, "declared", number=4, sent=2**24)

    assert rise[0] > RISE_MB


def test_ten_thousand_hostile_paths_leave_no_metric_and_no_line_of_their_own_in_the_log(
    flooded: Callable[..., Settings], tmp_path: Path
) -> None:
    settings, log = flooded(), tmp_path / "log"
    paths = [f"/{HOSTILE[at % len(HOSTILE)]}{at}?{quote(str(at))}=%0d%0a" for at in range(10_000)]
    with api_process(settings, log), httpx.Client(base_url=_base(settings)) as client:
        client.get("/nowhere")
        before = _series(client)
        found = _answers(settings.port, paths)
        after = _series(client)

    assert found == [404] * len(paths)
    assert after == before
    assert b"\r" not in log.read_bytes()
    assert all(json.loads(line)["process"] == "api" for line in log.read_text().splitlines())
    assert len(log.read_text().splitlines()) < 100


def _bodies(port: int, coding: str, *, number: int, sent: int = 2**22) -> list[int]:
    """Return the statuses of bodies that are sent at once."""
    found: list[int] = []

    def send() -> None:
        framing = f"Content-Length: {DECLARED}" if coding == "declared" else _CHUNKED
        with caller(port) as connection:
            connection.sendall(POST + SAFETENSORS + framing.encode() + b"\r\n\r\n")
            with contextlib.suppress(ConnectionError):
                _send(connection, coding, sent)
            found.extend(statuses(rest(connection)))

    threads = [threading.Thread(target=send) for _ in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


_CHUNKED = "Transfer-Encoding: chunked"


def _send(connection: socket.socket, coding: str, size: int) -> None:
    piece = b" " * 65536
    framed = piece if coding == "declared" else b"10000\r\n" + piece + b"\r\n"
    for _ in range(size // len(piece)):
        connection.sendall(framed)


def _answers(port: int, paths: list[str]) -> list[int]:
    """Return the statuses of requests that are sent a hundred at once."""
    found: list[int] = []
    for at in range(0, len(paths), 100):
        lines = [f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" for path in paths[at : at + 100]]
        lines[-1] = lines[-1].replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n")
        with caller(port) as connection:
            connection.sendall("".join(lines).encode())
            found += statuses(rest(connection))
    return found


def _series(client: httpx.Client) -> set[str]:
    """Return the names and labels of all series, but not their values."""
    text = client.get("/metrics").text
    return {re.sub(r" \S+$", "", line) for line in text.splitlines() if line[0] != "#"}


def _base(settings: Settings) -> str:
    return f"http://127.0.0.1:{settings.port}"
