"""Messages between a process and its inference process: facts as JSON, arrays as safetensors.

4 bytes: length of the facts | 8 bytes: length of the arrays | facts | arrays
"""

import json
import socket
import struct
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from safetensors.numpy import load, save

from service.engine.protocol import Array, Tensors

_HEAD = struct.Struct(">IQ")
_READ_AHEAD = 2**20
"""Bytes asked for at once: most messages are one call of the system."""


class Message(NamedTuple):
    """What one side says."""

    facts: dict[str, Any]
    """JSON-able."""
    arrays: dict[str, Array]


class Connection:
    """One end of a pair of sockets; one thread at a time sends and receives."""

    def __init__(self, end: socket.socket) -> None:
        """Take the socket over."""
        self._socket = end
        self._incoming = end.makefile("rb", _READ_AHEAD)

    def send(self, facts: Mapping[str, Any], arrays: Tensors) -> None:
        """Send a message whole.

        Raises:
            OSError: the other end is closed.
        """
        told, body = json.dumps(facts).encode(), save(dict(arrays))
        self._socket.sendall(b"".join((_HEAD.pack(len(told), len(body)), told, body)))

    def receive(self) -> Message:
        """Return the next message.

        Raises:
            EOFError: the other end is closed.
            OSError: it was closed before it had read what it was sent.
        """
        told, body = _HEAD.unpack(self._read(_HEAD.size))
        return Message(json.loads(self._read(told)), load(self._read(body)))

    def close(self) -> None:
        """Close this end; whoever waits for a message by it is told."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._incoming.close()
        self._socket.close()

    def _read(self, n: int) -> bytes:
        found: bytes = self._incoming.read(n)
        if len(found) < n:
            raise EOFError("the other end is closed")
        return found
