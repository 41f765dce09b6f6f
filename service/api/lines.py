"""NDJSON bodies of /observe: a batch a line, and an answer a line while the next ones are coming.

    line -> decoded -> in the log -> its answer         the next line is read only then

So a client can be no faster than the log, and is slowed down by TCP. A line that is refused for
what it says (400, 413 and 422) is skipped. One that cannot be taken now (409, 429 and 503) ends
the stream, as learning the lines behind it first would change their order: send the same body
with the same Idempotency-Key again, and what was taken is recognised.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.api.body import LINES, content_digest, media_type_of, refuse_query_label
from service.api.bounds import Limits
from service.errors import BadRequest, ServiceError, TooLarge, TooSlow

_MOST_KEY_CHARACTERS = 56
"""Of a whole body; the key of a line, at most 64 characters, has its number behind this."""
_SKIPPED = (400, 413, 422)
"""Refusals of a line that say nothing about the next one."""

TakeLine = Callable[[bytes, str | None], Awaitable[Mapping[str, Any]]]
"""Appends a line's batch under its Idempotency-Key; returns what is said of it. Raises
ServiceError."""


class LineAnswers(Response):
    """The answers of the lines of a request, written while its body is still being read."""

    media_type = LINES

    def __init__(
        self,
        request: Request,
        take: TakeLine,
        *,
        key: str | None,
        limits: Limits,
    ) -> None:
        """Prepare; a server that calls this begins to read.

        Args:
            request: whose body is lines.
            take: appends a line.
            key: Idempotency-Key of the whole body.
            limits: how large and how slow a line may be, before it ends the stream.

        Raises:
            UnsupportedMedia: `unsupported_type` or `unsupported_encoding`.
            BadRequest: `bad_idempotency_key`, or `digest_mismatch`: a digest comes too late to
                refuse what was taken before it.
            Unprocessable: `bad_label`, one in the query.
        """
        super().__init__()
        media_type_of(request, LINES)
        refuse_query_label(request)
        del self.headers["content-length"]
        if key is not None and len(key) > _MOST_KEY_CHARACTERS:
            raise BadRequest(
                "bad_idempotency_key",
                f"expected an Idempotency-Key of at most {_MOST_KEY_CHARACTERS} characters for "
                f"lines, got {len(key)}",
            )
        if content_digest(request) is not None:
            raise BadRequest("digest_mismatch", "expected no Content-Digest of lines, got one")
        self._take, self._key = take, key
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer line by line; return early where nobody reads."""
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            async with aclosing(self._answers(Request(scope, receive))) as answers:
                async for answer in answers:
                    await self._write(answer, send)
        except ClientDisconnect:
            return  # what was taken is in the log
        await send({"type": "http.response.body", "body": b""})

    async def _write(self, answer: Mapping[str, Any], send: Send) -> None:
        line = json.dumps(answer, separators=(",", ":")).encode() + b"\n"
        try:
            async with asyncio.timeout(self._limits.line_s):
                await send({"type": "http.response.body", "body": line, "more_body": True})
        except TimeoutError:  # it sends and sends, and reads nothing
            raise ClientDisconnect from None

    async def _answers(self, request: Request) -> AsyncGenerator[dict[str, Any]]:
        """Take line after line; yield what is said of each."""
        loop = asyncio.get_running_loop()
        end = loop.time() + self._limits.stream_s
        number = 0
        async with aclosing(split(request.stream(), self._limits.max_json_bytes)) as lines:
            while True:
                number += 1
                try:
                    line = await _next(lines, min(loop.time() + self._limits.line_s, end))
                    if line is None:
                        return
                    if not line:
                        continue
                    key = None if self._key is None else f"{self._key}-{number}"
                    said = await self._take(line, key)
                except ServiceError as error:
                    yield {"line": number, **_refusal(error)}
                    if error.status not in _SKIPPED or error.code == "line_too_large":
                        return
                else:
                    yield {"line": number, "status": 202, **said}


async def split(chunks: AsyncIterator[bytes], max_line_bytes: int) -> AsyncGenerator[bytes]:
    """Yield each line of `chunks`, blanks around it left out; the last may lack its end.

    Raises:
        TooLarge: `line_too_large`; where that line ends is not looked for.
    """
    rest = bytearray()
    async for chunk in chunks:
        rest += chunk
        while (end := rest.find(b"\n")) >= 0:
            if end > max_line_bytes:
                break
            yield bytes(rest[:end]).strip()
            del rest[: end + 1]
            await asyncio.sleep(0)  # a chunk may hold 65,536 empty lines
        if len(rest) > max_line_bytes:
            raise TooLarge("line_too_large", f"expected lines of at most {max_line_bytes} bytes")
    if rest:
        yield bytes(rest).strip()


async def _next(lines: AsyncIterator[bytes], deadline: float) -> bytes | None:
    """Return the next line; None after the last one.

    Raises:
        TooSlow: `too_slow`, it did not come until `deadline`.
        ServiceError: as `split`.
        ClientDisconnect: the client is gone.
    """
    try:
        async with asyncio.timeout_at(deadline):
            return await anext(lines, None)
    except TimeoutError:
        raise TooSlow("too_slow", "expected a whole line in time, got none or a part") from None


def _refusal(error: ServiceError) -> dict[str, Any]:
    said: dict[str, Any] = {"status": error.status, "code": error.code, "detail": error.message}
    if error.retry_after_s is not None:
        said["retry_after_s"] = error.retry_after_s
    return said
