"""The service on a port of this machine, without a worker, and sockets that say what they like."""

import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from starlette.types import ASGIApp

from service.api.app import create_app
from service.api.listeners import server_of
from service.engine.protocol import Engines
from service.settings import Settings
from tests.toy_engine import ToyEngines

PATIENCE_S = 20.0
"""Longest wait for the service."""


@contextmanager
def listening(
    settings: Settings, load_engines: Callable[[], Engines] = ToyEngines
) -> Iterator[Settings]:
    """Serve in a thread of this process; yield the settings with the port that was free."""
    app = create_app(settings, load_engines)
    with running(app, app.state.probes, settings, app.state.end_waiting) as port:
        yield settings.model_copy(update={"port": port})


@contextmanager
def running(
    app: ASGIApp,
    probes: ASGIApp,
    settings: Settings,
    end_waiting: Callable[[], object] = bool,
) -> Iterator[int]:
    """Serve apps as the service does; yield the port that was free."""
    free = settings.model_copy(update={"port": 0})
    server = server_of(app, probes, free, end_waiting=end_waiting)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()


def caller(port: int, *, of: str = "127.0.0.1") -> socket.socket:
    """Return a connection from an address of this machine; all of 127.0.0.0/8 are."""
    return socket.create_connection(("127.0.0.1", port), PATIENCE_S, source_address=(of, 0))


def rest(connection: socket.socket) -> bytes:
    """Return what the service says until it closes."""
    said = b""
    try:
        while piece := connection.recv(65536):
            said += piece
    except ConnectionError:  # closed with bytes unread
        pass
    return said


def exchange(port: int, request: bytes) -> bytes:
    """Return the answer to a request after which the service closes."""
    with caller(port) as connection:
        with suppress(ConnectionError):  # it had read enough
            connection.sendall(request)
        return rest(connection)


def status_and_code(answer: bytes) -> tuple[int, str]:
    """Return the status of an answer and the code of its problem."""
    head, _, body = answer.partition(b"\r\n\r\n")
    problem: Any = json.loads(body)
    return int(head.split()[1]), problem["code"]


def statuses(answers: bytes) -> list[int]:
    """Return the status of each of several answers."""
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", answers)]


def is_closed(connection: socket.socket) -> bool:
    """Say whether the service has closed a connection, throwing away what it said before."""
    connection.setblocking(False)
    try:
        while connection.recv(65536):
            pass
    except BlockingIOError:
        return False
    except ConnectionError:
        pass
    return True
