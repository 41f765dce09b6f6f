"""Where bytes of strangers arrive: how many connections, how long a head, how slow a client.

A connection waits either for us or for its client. While it waits for the client, it has a
deadline: for the head of a request, for the rest of it, for the reading of an answer. One sweep
twice a second closes what is past it, so that a request costs no timer.

    head      `head_timeout_s` after its first byte, or after the connection
    body      `receive_timeout_s` after the first byte of the head
    stream    (NDJSON to observe) `receive_timeout_s` from its last bytes, in all `stream_timeout_s`
    answer    `receive_timeout_s` in which the client reads none of it
    rest      of a body that was answered before its end: thrown away for `REST_S`

uvicorn has a deadline only between requests, and limits only what it has not parsed yet.
"""

import asyncio
import math
import socket
import struct
from http import HTTPStatus
from typing import Any, ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from service.api.connections import SWEEP_S, Connections, Limits
from service.api.schemas import Problem

MOST_HEAD_BYTES = 16 * 2**10
"""Longest request line and headers together."""
REST_S = 1.0
"""Longest time for which bytes that nobody wants are read, so that the answer arrives."""
_SLACK_S = 1.0
"""Later by so much than uvicorn, which ends what idles, and than the route of a stream."""
_UNREAD_BYTES = 128 * 2**10
"""Kept by the kernel for a client that does not read; it would take 4 MB, and for minutes."""
_NO_LINGER = struct.pack("ii", 1, 0)
"""Of a socket: what is not sent yet will not be."""
_REFUSALS = {
    400: ("bad_http", f"expected HTTP/1.1 with a head of at most {MOST_HEAD_BYTES} bytes"),
    408: ("too_slow", "expected the whole request, got its beginning; then nothing came in time"),
    503: ("too_many_connections", "there are as many connections as are allowed; try again later"),
}


class EdgeProtocol(H11Protocol):
    """HTTP/1.1 of one connection, within limits; `edge_protocol` makes the class of a listener."""

    edge: ClassVar[Connections]

    def __init__(self, *arguments: Any, **named: Any) -> None:  # noqa: ANN401  uvicorn's affair
        super().__init__(*arguments, **named)
        self.conn = _Http(h11.SERVER, MOST_HEAD_BYTES)
        self.deadline = math.inf
        self._began: float | None = None
        """When the first byte of the request came that is being received."""
        self._unread_since: float | None = None
        """Since when the client has read too little of an answer."""
        self._answered_early = False
        """Whether the answer is complete and the request is not."""
        self._refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a head, or say that there are too many."""
        super().connection_made(transport)
        self._began = self.loop.time()
        if self.edge.admit(self, self.client[0] if self.client else ""):
            self._socket().setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _UNREAD_BYTES)
            self._reckon(self._began)
        else:
            self._refused = True
            transport.write(_refusal(503))
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Make room for another."""
        self.edge.forget(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes of the client, unless it was refused already."""
        if self._refused:
            return
        now = self.loop.time()
        if self._began is None:
            self._began = now
        super().data_received(data)
        if self._answered_early and self.conn.their_state is not h11.SEND_BODY:
            self._answered_early, self._began = False, now
        self._reckon(now)

    def on_response_complete(self) -> None:
        """Wait for the next request, or for the rest of this one."""
        self._answered_early = self.conn.their_state is h11.SEND_BODY
        if not self._answered_early:
            self._began = None
        super().on_response_complete()
        self._reckon(self.loop.time())

    def pause_writing(self) -> None:
        """Begin to wait for the client to read."""
        super().pause_writing()
        self._unread_since = self.loop.time()
        self._reckon(self._unread_since)

    def resume_writing(self) -> None:
        """Stop waiting: it has read."""
        super().resume_writing()
        self._unread_since = None
        self._reckon(self.loop.time())

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002  says nothing to a client
        """Refuse what is no HTTP; uvicorn calls it, and fails where an answer has begun."""
        self._refuse(400)
        if not self.transport.is_closing():
            self.transport.write_eof()

    def expire(self, now: float) -> None:
        """Close: the deadline is past. What does not go in a while is cut."""
        if self._refused or self.transport.is_closing():
            self._cut()
        elif self._waits_for_us():
            self.deadline = now + SWEEP_S
        else:
            self._refuse(408)
            self.transport.close()
            self.deadline = now

    def _cut(self) -> None:
        """End the connection, and throw away what the kernel still holds for its client."""
        self._socket().setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        self.transport.abort()

    def _socket(self) -> socket.socket:
        found: socket.socket = self.transport.get_extra_info("socket")
        return found

    def _waits_for_us(self) -> bool:
        """Say whether its body is not read at the moment, because the app has enough of it."""
        receiving = self.conn.their_state is h11.SEND_BODY and not self._answered_early
        return receiving and self.flow.read_paused and self._unread_since is None

    def _refuse(self, status: int) -> None:
        """Take nothing more; answer, if a request is under way and no answer has begun."""
        under_way = self.conn.their_state is not h11.IDLE or self.conn.trailing_data[0]
        if under_way and self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.write(_refusal(status))
        if self.cycle is not None:
            self.cycle.disconnected = True  # what the app still says would be a second answer
        self._refused = True
        self.deadline = self.loop.time() + REST_S

    def _reckon(self, now: float) -> None:
        """Set until when the client must have done what is waited for."""
        if self._refused:
            return
        limits = self.edge.limits
        deadline = math.inf
        if self.transport.is_closing():
            deadline = now + limits.receive_timeout_s
        elif self.conn.their_state is h11.IDLE:
            deadline = self._until_head(now)
        elif self.conn.their_state is h11.SEND_BODY:
            deadline = self._until_body(now)
        if self._unread_since is not None:
            deadline = min(deadline, self._unread_since + limits.receive_timeout_s)
        self.deadline = deadline

    def _until_head(self, now: float) -> float:
        if self._began is None:
            return now + self.timeout_keep_alive + _SLACK_S
        return self._began + self.edge.limits.head_timeout_s

    def _until_body(self, now: float) -> float:
        limits = self.edge.limits
        if self._answered_early:
            return min(self.deadline, now + REST_S)
        if self._began is None:  # the request came in one piece with the one before it
            self._began = now
        if self._is_stream():
            end = min(self._began + limits.stream_timeout_s, now + limits.receive_timeout_s)
            return end + _SLACK_S
        return self._began + limits.receive_timeout_s

    def _is_stream(self) -> bool:
        """Say whether the body is lines of /observe, which may come slowly."""
        if self.scope["method"] != "POST" or not self.scope["path"].endswith("/observe"):
            return False
        types = [value for name, value in self.headers if name == b"content-type"]
        return any(value.lower().startswith(b"application/x-ndjson") for value in types)


class _Http(h11.Connection):
    """h11, but strict: no long heads, even if they came whole, and one length a body."""

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        """Return what the client said.

        Raises:
            h11.RemoteProtocolError: nobody should say it so.
        """
        event = super().next_event()
        if isinstance(event, h11.Request) and (fault := _fault(event)) is not None:
            raise h11.RemoteProtocolError(fault)
        return event


def edge_protocol(limits: Limits) -> type[EdgeProtocol]:
    """Return the protocol of one listener, whose connections are counted together."""

    class OfListener(EdgeProtocol):
        """Of these limits."""

        edge = Connections(limits)

    return OfListener


def _fault(request: h11.Request) -> str | None:
    """Return what is wrong with a head that h11 lets pass."""
    names = {name for name, _ in request.headers}
    size = len(request.target) + sum(len(name) + len(value) for name, value in request.headers)
    if size + 4 * len(request.headers) > MOST_HEAD_BYTES:
        return "head too long"
    if {b"content-length", b"transfer-encoding"} <= names:
        return "two lengths of one body"
    return None if request.http_version in (b"1.0", b"1.1") else "another version"


def _refusal(status: int) -> bytes:
    """Return the whole answer of a connection that is closed behind it."""
    code, detail = _REFUSALS[status]
    title = HTTPStatus(status).phrase
    body = Problem(title=title, status=status, code=code, detail=detail).model_dump_json()
    lines = [
        f"HTTP/1.1 {status} {title}",
        "Content-Type: application/problem+json",
        f"Content-Length: {len(body)}",
        "Connection: close",
    ]
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        lines.append("Retry-After: 1")
    return "\r\n".join([*lines, "", body]).encode()
