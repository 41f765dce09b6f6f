"""NDJSON bodies: a line is answered when it is in the log, and lost by nobody once it is."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from itertools import pairwise
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.types import Message

from service.api.body import LINES
from service.api.bounds import Limits
from service.api.lines import LineAnswers, split
from service.errors import Conflict, ServiceError, TooLarge, Unavailable, Unprocessable
from service.settings import Settings
from tests.conftest import MakeSettings
from tests.listening import listening
from tests.served import DOCUMENT, assert_problem, logged, running_api, stored

BATCH = json.dumps(DOCUMENT).encode()
SILENCE_S = 5.0
"""Longer than any line may take here."""
BAD = b'{"x": [[1, 2]], "dtype": "uint8"}'
KEY = "0123456789abcdef"


async def sent(api: httpx.AsyncClient, body: bytes, **headers: str) -> list[dict[str, Any]]:
    answer = await api.post("/observe", content=body, headers={"Content-Type": LINES, **headers})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == LINES
    return [json.loads(line) for line in answer.text.splitlines()]


async def test_each_line_is_a_batch_of_its_own(api: httpx.AsyncClient, redis_server: str) -> None:
    answers = await sent(api, BATCH + b"\n" + BATCH)

    entries = logged(redis_server)
    assert [(one["line"], one["status"], one["batch_id"]) for one in answers] == [
        (number, 202, entry.batch_id) for number, entry in enumerate(entries, 1)
    ]
    assert [one["position"] for one in answers] == [entry.position for entry in entries]
    assert [one["backlog"] for one in answers] == [1, 2]


async def test_a_line_is_answered_like_a_request_of_its_own(api: httpx.AsyncClient) -> None:
    alone = (await api.post("/observe", json=DOCUMENT)).json()

    [answer] = await sent(api, BATCH)

    assert set(answer) == set(alone) | {"line", "status", "replayed"}


@pytest.mark.parametrize("bad", [BAD, b"{", b"\xff", b'{"x": []}', b"[" * 50_000, b"{} {}"])
async def test_a_refused_line_is_skipped(
    api: httpx.AsyncClient, redis_server: str, bad: bytes
) -> None:
    answers = await sent(api, b"\n".join([BATCH, bad, BATCH]))

    assert [one["status"] == 202 for one in answers] == [True, False, True]
    assert set(answers[1]) == {"line", "status", "code", "detail"}
    assert answers[1]["status"] in (400, 422)
    assert len(logged(redis_server)) == 2


async def test_blank_lines_are_counted_and_skipped(api: httpx.AsyncClient) -> None:
    answers = await sent(api, b"\n\r\n  \n" + BATCH + b"\r\n\n" + BATCH + b"\n\n")

    assert [one["line"] for one in answers] == [4, 6]


@pytest.mark.parametrize("body", [b"", b"\n\n"])
async def test_no_line_has_no_answer(
    api: httpx.AsyncClient, redis_server: str, body: bytes
) -> None:
    assert await sent(api, body) == []
    assert stored(redis_server) == []


async def test_the_same_body_with_its_key_is_recognised_line_by_line(
    api: httpx.AsyncClient, redis_server: str
) -> None:
    body = b"\n".join([BATCH, BAD, BATCH])
    first = await sent(api, body, **{"Idempotency-Key": KEY})

    again = await sent(api, body + b"\n" + BATCH, **{"Idempotency-Key": KEY})

    keys = [entry.idempotency_key for entry in logged(redis_server)]
    assert keys == [f"{KEY}-1", f"{KEY}-3", f"{KEY}-4"]
    assert [one.get("replayed") for one in again] == [True, None, True, False]
    assert [one.get("batch_id") for one in again[:3]] == [one.get("batch_id") for one in first]


async def test_a_line_with_the_key_of_another_is_refused(api: httpx.AsyncClient) -> None:
    await sent(api, BATCH, **{"Idempotency-Key": KEY})

    [answer] = await sent(
        api, json.dumps({"x": DOCUMENT["x"]}).encode(), **{"Idempotency-Key": KEY}
    )

    assert (answer["status"], answer["code"]) == (422, "idempotency_key_reused")


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({"Idempotency-Key": "a" * 57}, 400, "bad_idempotency_key"),
        ({"Idempotency-Key": "short"}, 400, "bad_idempotency_key"),
        ({"Content-Digest": f"sha-256=:{'A' * 43}=:"}, 400, "digest_mismatch"),
        ({"Content-Encoding": "gzip"}, 415, "unsupported_encoding"),
        ({"Content-Type": LINES + "2"}, 415, "unsupported_type"),
        ({"Content-Type": LINES + "; charset=latin-1"}, 415, "unsupported_type"),
    ],
)
async def test_a_bad_header_is_refused_before_any_line(
    api: httpx.AsyncClient, redis_server: str, headers: dict[str, str], status: int, code: str
) -> None:
    answer = await api.post("/observe", content=BATCH, headers={"Content-Type": LINES, **headers})

    assert_problem(answer, status, code)
    assert stored(redis_server) == []


async def test_a_label_in_the_query_that_no_line_would_read_is_refused(
    api: httpx.AsyncClient, redis_server: str
) -> None:
    answer = await api.post("/observe?label=1", content=BATCH, headers={"Content-Type": LINES})

    assert_problem(answer, 422, "bad_label")
    assert stored(redis_server) == []


async def test_predict_takes_no_lines(api: httpx.AsyncClient) -> None:
    answer = await api.post("/predict", content=BATCH, headers={"Content-Type": LINES})

    assert_problem(answer, 415, "unsupported_type")


async def test_a_full_backlog_ends_the_stream_and_the_rest_can_be_sent_again(
    settings: MakeSettings, redis_server: str
) -> None:
    async with running_api(settings(insecure=True, max_backlog=2)) as api:
        answers = await sent(api, b"\n".join([BATCH] * 5), **{"Idempotency-Key": KEY})

    assert [one["status"] for one in answers] == [202, 202, 503]
    assert (answers[2]["code"], answers[2]["retry_after_s"] > 0) == ("backlog_full", True)

    async with running_api(settings(insecure=True)) as api:
        answers = await sent(api, b"\n".join([BATCH] * 5), **{"Idempotency-Key": KEY})

    assert [one["replayed"] for one in answers] == [True, True, False, False, False]
    assert len(logged(redis_server)) == 5


async def test_a_missing_key_is_refused_where_one_is_required(settings: MakeSettings) -> None:
    async with running_api(settings(insecure=True, require_idempotency_key=True)) as api:
        answer = await api.post("/observe", content=BATCH, headers={"Content-Type": LINES})

    assert_problem(answer, 400, "idempotency_key_required")


# The stream itself, without a log


async def answered(
    chunks: Sequence[bytes | float],
    *,
    error: ServiceError | None = None,
    read: Callable[[], Awaitable[None]] = lambda: asyncio.sleep(0),
    key: str | None = None,
    line_s: float = 0.2,
    stream_s: float = 60,
) -> list[dict[str, Any]]:
    """Return what is answered to a body whose numbers are pauses in seconds.

    The line `bad` raises the error; `read` is awaited before the client reads.
    """
    pieces = iter(chunks)
    said: list[bytes] = []

    async def receive() -> Message:
        for piece in pieces:
            if isinstance(piece, bytes):
                return {"type": "http.request", "body": piece, "more_body": True}
            await asyncio.sleep(piece)
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        await read()
        said.append(message.get("body", b""))

    async def take(line: bytes, key: str | None) -> dict[str, Any]:
        if error is not None and line == b"bad":
            raise error
        return {"took": line.decode(), "key": key}

    headers = [(b"content-type", LINES.encode())]
    scope = {"type": "http", "headers": headers, "query_string": b""}
    limits = Limits(
        max_body_bytes=10,
        max_json_bytes=10,
        max_batch=16,
        max_pixels=1,
        line_s=line_s,
        stream_s=stream_s,
    )
    answers = LineAnswers(Request(scope), take, key=key, limits=limits)
    await answers(scope, receive, send)
    return [json.loads(line) for line in b"".join(said).splitlines()]


@given(st.lists(st.binary(max_size=12)), st.lists(st.integers(0, 40)))
def test_lines_do_not_depend_on_how_they_are_cut(parts: list[bytes], cuts: list[int]) -> None:
    body = b"\n".join(parts)
    edges = sorted({min(cut, len(body)) for cut in cuts} | {0, len(body)})
    pieces = [body[a:b] for a, b in pairwise(edges)]

    assert asyncio.run(_split(pieces)) == asyncio.run(_split([body]))


async def _split(pieces: Sequence[bytes]) -> list[bytes | str]:
    async def chunks() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece

    found: list[bytes | str] = []
    try:
        async for line in split(chunks(), 10):
            found.append(line)  # noqa: PERF401  what came before an error counts
    except TooLarge as error:
        found.append(error.code)
    return found


async def test_a_line_at_the_limit_is_taken_and_a_longer_one_is_the_last() -> None:
    answers = await answered([b"0123456789\n01234567890\nnext\n"])

    assert [(one["line"], one["status"]) for one in answers] == [(1, 202), (2, 413)]
    assert answers[1]["code"] == "line_too_large"


async def test_a_line_without_end_is_not_held() -> None:
    [answer] = await answered([b"x" * 8] * 1000)

    assert answer["code"] == "line_too_large"


@pytest.mark.parametrize(
    ("error", "taken"),
    [
        (Unprocessable("bad_shape", "no"), 2),
        (TooLarge("batch_too_large", "no"), 2),
        (Conflict("conflict", "no"), 1),
        (Unavailable("backlog_full", "no", retry_after_s=2), 1),
    ],
    ids=lambda value: getattr(value, "code", ""),
)
async def test_what_cannot_be_taken_now_ends_the_stream(error: ServiceError, taken: int) -> None:
    answers = await answered([b"a\nbad\nc"], error=error)

    assert [one["line"] for one in answers] == list(range(1, taken + 2))
    assert answers[1]["code"] == error.code
    assert answers[1].get("retry_after_s") == error.retry_after_s


async def test_the_keys_of_lines_are_the_bodys_with_their_number() -> None:
    assert [one["key"] for one in await answered([b"a\n\nb"], key=KEY)] == [f"{KEY}-1", f"{KEY}-3"]


@pytest.mark.parametrize(
    "chunks",
    [
        pytest.param([b"a\n", SILENCE_S], id="silence"),
        pytest.param([b"a\nb", *[0.05, b"b"] * 8], id="a byte now and then"),
        pytest.param([b"a\n", *[0.05, b" "] * 8], id="blanks now and then"),
    ],
)
async def test_a_line_that_does_not_come_in_time_ends_the_stream(
    chunks: list[bytes | float],
) -> None:
    started = time.monotonic()

    answers = await answered(chunks)

    assert [(one["line"], one.get("code")) for one in answers] == [(1, None), (2, "too_slow")]
    assert answers[1]["status"] == 408
    assert time.monotonic() - started < SILENCE_S


async def test_slow_lines_are_taken_as_long_as_each_comes_in_time() -> None:
    pieces: list[bytes | float] = [0.6, b"a\n", 0.6, b"b\n"]

    assert len(await answered(pieces, line_s=1.0)) == 2


async def test_a_stream_has_its_time_in_all() -> None:
    often: list[bytes | float] = [0.05, b"b\n"] * 60

    answers = await answered([b"a\n", *often], stream_s=1.0)

    assert answers[-1]["code"] == "too_slow"
    assert 2 < len(answers) < 40


async def test_a_client_that_reads_no_answer_is_left() -> None:
    waits = iter([0.0, 0.0])

    answers = await answered(
        [b"a\nb\nc\n"], read=lambda: asyncio.sleep(next(waits, 60)), line_s=0.5
    )

    assert [one["took"] for one in answers] == ["a"]


# Through a real server


async def test_a_line_is_answered_before_the_next_one_is_sent(live: Settings) -> None:
    reader, writer = await _begun(live)
    try:
        writer.write(_chunk(BATCH + b"\n"))
        head = await reader.readuntil(b"\r\n\r\n")
        first = await _answer(reader)
        writer.write(_chunk(BAD + b"\n") + b"0\r\n\r\n")
        second = await _answer(reader)
    finally:
        writer.close()

    assert head.startswith(b"HTTP/1.1 200 ")
    assert [(one["line"], one["status"]) for one in (first, second)] == [(1, 202), (2, 422)]


async def test_a_stream_that_stops_is_told_so_before_it_is_closed(settings: MakeSettings) -> None:
    with listening(settings(insecure=True, receive_timeout_s=0.5)) as slow:
        reader, writer = await _begun(slow)
        writer.write(_chunk(BATCH + b"\n" + BATCH[:20]))
        await reader.readuntil(b"\r\n\r\n")
        answers = [await _answer(reader), await _answer(reader)]
        rest = await asyncio.wait_for(reader.read(), 5)
        writer.close()

    assert [one["status"] for one in answers] == [202, 408]
    assert rest == b"0\r\n\r\n"


async def test_a_client_that_goes_away_loses_no_answered_line(
    live: Settings, redis_server: str
) -> None:
    reader, writer = await _begun(live)
    writer.write(_chunk(BATCH + b"\n" + BATCH[:20]))
    await reader.readuntil(b"\r\n\r\n")
    first = await _answer(reader)
    writer.transport.abort()

    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{live.port}") as client:
        again = (await client.get(first["status_url"])).json()
        after = await sent(client, BATCH)

    assert again["state"] == "queued"
    assert [entry.batch_id for entry in logged(redis_server)] == [
        first["batch_id"],
        after[0]["batch_id"],
    ]


async def test_a_fast_client_is_slowed_and_nothing_is_lost(
    live: Settings, redis_server: str
) -> None:
    batch = json.dumps({"x": [[0] * 64]}).encode() + b"\n"
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{live.port}", timeout=60) as client:
        answers = await sent(client, batch * 300)

    assert {one["status"] for one in answers} == {202}
    assert [one["batch_id"] for one in answers] == [e.batch_id for e in logged(redis_server)]


async def _begun(live: Settings) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", live.port)
    writer.write(
        f"POST /observe HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {LINES}\r\n"
        "Transfer-Encoding: chunked\r\n\r\n".encode()
    )
    return reader, writer


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def _answer(reader: asyncio.StreamReader) -> dict[str, Any]:
    size = int(await reader.readuntil(b"\r\n"), 16)
    said: dict[str, Any] = json.loads(await reader.readexactly(size))
    await reader.readexactly(2)
    return said
