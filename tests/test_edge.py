"""The edge: what is no HTTP, too much of it, from too many or for somebody else is refused."""

import contextlib
import socket
import time
from collections.abc import Iterator

import httpx
import pytest
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.api.app import create_app
from service.api.connections import network_of
from service.api.listeners import server_of
from service.settings import Settings
from tests.chaos.parts import free_port
from tests.conftest import MakeSettings
from tests.listening import (
    caller,
    exchange,
    is_closed,
    listening,
    rest,
    running,
    status_and_code,
    statuses,
)
from tests.patience import BUSY
from tests.served import assert_problem, load_pixel_engines, running_api

HOST = b"Host: 127.0.0.1\r\n"
POST = b"POST /observe HTTP/1.1\r\n" + HOST + b"Content-Type: application/json\r\n"
GET = b"GET /livez HTTP/1.1\r\n" + HOST
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n"
MANY = b"".join(b"x-%05d: 1\r\n" % number for number in range(10_000))


@pytest.fixture
def hasty(settings: MakeSettings) -> Iterator[Settings]:
    """A service whose patience is short."""
    options = {"head_timeout_s": 0.4, "receive_timeout_s": 0.8, "stream_timeout_s": 2.5}
    with listening(settings(insecure=True, connections_per_address=4, **options)) as served:
        yield served


@pytest.fixture(scope="module")
def port(_embedded: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a service with the shipped limits."""
    home = tmp_path_factory.mktemp("served")
    with listening(Settings(insecure=True, redis_url=_embedded, state_dir=home)) as served:
        yield served.port


# What is no HTTP


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 300, id="TLS"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", id="HTTP/2"),
        pytest.param(b"GET /livez\r\n\r\n", id="HTTP/0.9"),
        pytest.param(b"GET /livez HTTP/1.1\r\n\r\n", id="no host"),
        pytest.param(GET + HOST + b"\r\n", id="two hosts"),
        pytest.param(b"GET  /livez HTTP/1.1\r\n" + HOST + b"\r\n", id="two blanks"),
        pytest.param(b"GET /\x00livez HTTP/1.1\r\n" + HOST + b"\r\n", id="NUL in the path"),
        pytest.param(b"GET /\xc3\xa4 HTTP/1.1\r\n" + HOST + b"\r\n", id="umlaut in the path"),
        pytest.param(GET + b"X-A : 1\r\n\r\n", id="blank before the colon"),
        pytest.param(GET + b"X-A: 1\x00\r\n\r\n", id="NUL in a header"),
        pytest.param(GET + b"X-A: 1\rX-B: 2\r\n\r\n", id="bare CR in a header"),
        pytest.param(GET.replace(b"Host", b" Host") + b"\r\n", id="continued without a first"),
        pytest.param(POST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}", id="two lengths"),
        pytest.param(POST + b"Content-Length: +2\r\n\r\n{}", id="signed length"),
        pytest.param(POST + b"Content-Length: -2\r\n\r\n{}", id="negative length"),
        pytest.param(POST + b"Content-Length: 0x2\r\n\r\n{}", id="hexadecimal length"),
        pytest.param(POST + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n{}", id="long length"),
        pytest.param(
            CHUNKED + b"Content-Length: 2\r\n\r\n2\r\n{}\r\n0\r\n\r\n", id="length and chunks"
        ),
        pytest.param(
            POST + b"Content-Length: 2\r\nTransfer-Encoding: Chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
            id="chunks and length",
        ),
        pytest.param(CHUNKED + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", id="chunked twice"),
        pytest.param(POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", id="gzip chunks"),
        pytest.param(POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", id="unknown encoding"),
        pytest.param(CHUNKED + b"\r\nzz\r\n{}\r\n0\r\n\r\n", id="chunk of no size"),
        pytest.param(CHUNKED + b"\r\n-2\r\n{}\r\n0\r\n\r\n", id="negative chunk"),
        pytest.param(CHUNKED + b"\r\n2\r\n{}XX0\r\n\r\n", id="longer chunk than said"),
        pytest.param(CHUNKED + b"\r\n" + b"f" * 30 + b"\r\n{}\r\n", id="giant chunk"),
        pytest.param(CHUNKED + b"\r\n2;" + b"x" * 40_000, id="endless chunk extension"),
        pytest.param(GET + MANY + b"\r\n", id="10,000 headers"),
        pytest.param(GET + MANY, id="10,000 headers without end"),
        pytest.param(GET + b"X-A: " + b"a" * 20_000 + b"\r\n\r\n", id="long header"),
        pytest.param(b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n", id="long path"),
        pytest.param(b"\r\n" * 20_000, id="blank lines"),
    ],
)
def test_what_is_no_http_gets_400_and_is_closed(port: int, request_: bytes) -> None:
    assert status_and_code(exchange(port, request_)) == (400, "bad_http")


def test_a_bad_request_behind_a_good_one_is_refused_too(port: int) -> None:
    answers = exchange(port, GET + b"\r\n" + GET + MANY + b"\r\n")

    assert statuses(answers) == [200, 400]


def test_bad_chunks_behind_an_answer_only_close(port: int) -> None:
    with caller(port) as connection:
        connection.sendall(b"POST /nowhere HTTP/1.1\r\n" + HOST)
        connection.sendall(b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n")
        begun = connection.recv(65536)
        connection.sendall(b"zz\r\n")
        answer = begun + rest(connection)

    assert status_and_code(answer) == (404, "not_found")


def test_a_head_of_the_longest_length_is_read(port: int) -> None:
    header = b"X-A: " + b"a" * 16_000 + b"\r\nConnection: close\r\n"

    assert exchange(port, GET + header + b"\r\n").startswith(b"HTTP/1.1 200")


def test_a_chunk_of_zero_ends_a_body_and_what_follows_is_no_second_one(port: int) -> None:
    smuggled = b"GET /smuggled HTTP/1.1\r\n" + HOST + b"\r\n"

    answer = exchange(
        port, POST + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + smuggled
    )

    assert statuses(answer) == [400]


def test_forwarded_addresses_are_not_believed(hasty: Settings) -> None:
    forwarded = b"".join(
        b"X-Forwarded-For: 10.0.0.%d\r\nForwarded: for=10.0.0.1\r\n" % number for number in range(2)
    )
    with contextlib.ExitStack() as open_:
        for _ in range(4):
            open_.enter_context(caller(hasty.port)).sendall(GET + forwarded + b"\r\n")
        answer = exchange(hasty.port, GET + forwarded + b"\r\n")

    assert status_and_code(answer) == (503, "too_many_connections")


# Bodies


@pytest.mark.parametrize(
    "path", ["/observe", "/predict", "/checkpoints/1/rollback", "/resync", "/quarantine/x/drop"]
)
def test_a_declared_gigabyte_is_refused_before_it_comes(port: int, path: str) -> None:
    head = POST.replace(b"/observe", path.encode()) + b"Content-Length: 1073741824\r\n\r\n"
    if path.endswith("drop"):
        head = head.replace(b"/x/", b"/" + b"0" * 32 + b"/")

    assert status_and_code(exchange(port, head + b"{" * 1000)) == (413, "body_too_large")


def test_a_flood_of_chunks_is_refused_at_the_limit(port: int) -> None:
    chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"

    answer = exchange(port, CHUNKED + b"\r\n" + chunk * 200)

    assert status_and_code(answer) == (413, "body_too_large")


def test_a_body_shorter_than_declared_is_never_learned(hasty: Settings) -> None:
    answer = exchange(hasty.port, POST + b'Content-Length: 100\r\n\r\n{"x": [[1]]}')

    assert status_and_code(answer) == (408, "too_slow")


def test_a_refused_body_does_not_go_on_forever(hasty: Settings) -> None:
    with caller(hasty.port) as connection:
        connection.sendall(POST + b"Content-Length: 1073741824\r\n\r\n")
        took_s = _until_cut(connection, b" " * 65536)

    assert took_s < BUSY


# Deadlines


SLOW = {
    "nothing": b"",
    "half a head": GET,
    "half a body": POST + b"Content-Length: 100\r\n\r\n{",
    "half a chunk": CHUNKED + b"\r\n64\r\n{",
}


@pytest.mark.parametrize("sent", SLOW.values(), ids=SLOW.keys())
def test_who_stops_is_closed(hasty: Settings, sent: bytes) -> None:
    with caller(hasty.port) as connection:
        connection.sendall(sent)
        began = time.monotonic()
        said = rest(connection)

    assert time.monotonic() - began < BUSY
    assert said == b"" if not sent else status_and_code(said) == (408, "too_slow")


@pytest.mark.parametrize("sent", SLOW.values(), ids=SLOW.keys())
def test_without_deadlines_who_stops_would_stay(settings: MakeSettings, sent: bytes) -> None:
    never = dict.fromkeys(("head_timeout_s", "receive_timeout_s", "stream_timeout_s"), 1e9)
    with listening(settings(insecure=True, **never)) as served, caller(served.port) as connection:
        connection.sendall(sent)
        time.sleep(2.5)

        assert not is_closed(connection)


@pytest.mark.parametrize("sent", [GET, CHUNKED + b"\r\n", POST + b"Content-Length: 900\r\n\r\n"])
def test_a_byte_now_and_then_does_not_help(hasty: Settings, sent: bytes) -> None:
    piece = b"1\r\n \r\n" if b"chunked" in sent else b"a"
    with caller(hasty.port) as connection:
        connection.sendall(sent)
        began = time.monotonic()
        while not is_closed(connection) and time.monotonic() - began < BUSY:
            time.sleep(0.1)
            with contextlib.suppress(ConnectionError):
                connection.send(piece)

    assert time.monotonic() - began < BUSY


def test_who_does_not_read_is_closed(hasty: Settings) -> None:
    asked = (b"GET /openapi.json HTTP/1.1\r\n" + HOST + b"\r\n") * 1000
    with caller(hasty.port) as connection:
        took_s = _until_cut(connection, asked)

    assert took_s < BUSY


def _until_cut(connection: socket.socket, piece: bytes) -> float:
    """Return the seconds for which the service takes what is sent, and nothing is read."""
    connection.settimeout(0.2)
    began = time.monotonic()
    with contextlib.suppress(ConnectionError):
        while time.monotonic() - began < BUSY:
            with contextlib.suppress(TimeoutError):
                connection.send(piece)
    return time.monotonic() - began


def test_a_connection_that_is_used_stays(hasty: Settings) -> None:
    with httpx.Client(base_url=f"http://127.0.0.1:{hasty.port}") as client:
        for _ in range(6):
            assert client.get("/livez").status_code == 200
            time.sleep(0.3)
        used = client._transport._pool.connections  # type: ignore[attr-defined]

        assert len(used) == 1


async def _reads_all(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer when the body has ended: an app that takes streams on every path."""
    while (message := await receive()).get("more_body"):
        pass
    if message["type"] == "http.request":
        await Response()(scope, receive, send)


NDJSON = CHUNKED.replace(b"json", b"x-ndjson")


@pytest.mark.parametrize(
    ("head", "pieces_s", "least_s", "most_s"),
    [
        pytest.param(NDJSON, 10, 3.0, 6, id="it moves"),
        pytest.param(NDJSON.replace(b"/", b"/streams/a/", 1), 10, 3.0, 6, id="of a stream"),
        pytest.param(NDJSON, 0.5, 1.3, 2.9, id="it stops"),
        pytest.param(CHUNKED, 10, 0.4, 1.4, id="json"),
        pytest.param(NDJSON.replace(b"observe", b"predict"), 10, 0.4, 1.4, id="predict"),
    ],
)
def test_lines_to_observe_may_take_longer_than_a_request_while_they_come(
    settings: MakeSettings, head: bytes, pieces_s: float, least_s: float, most_s: float
) -> None:
    options = {"head_timeout_s": 0.2, "receive_timeout_s": 0.4, "stream_timeout_s": 2.5}
    with (
        running(_reads_all, _reads_all, settings(insecure=True, **options)) as port,
        caller(port) as connection,
    ):
        connection.sendall(head + b"\r\n")
        began = time.monotonic()
        while not is_closed(connection) and time.monotonic() - began < BUSY:
            time.sleep(0.05)
            if time.monotonic() - began < pieces_s:
                with contextlib.suppress(ConnectionError):
                    connection.send(b"1\r\n\n\r\n")
        closed_s = time.monotonic() - began

    assert least_s <= closed_s < most_s


# How many


def test_more_connections_than_allowed_from_one_address_are_refused(hasty: Settings) -> None:
    with contextlib.ExitStack() as open_:
        for _ in range(4):
            open_.enter_context(caller(hasty.port, of="127.0.0.2")).sendall(GET)
        refused = rest(open_.enter_context(caller(hasty.port, of="127.0.0.2")))
        other = exchange(hasty.port, GET + b"Connection: close\r\n\r\n")

    assert status_and_code(refused) == (503, "too_many_connections")
    assert b"Retry-After: 1\r\n" in refused
    assert other.startswith(b"HTTP/1.1 200")


def test_a_closed_connection_makes_room(hasty: Settings) -> None:
    answers = [exchange(hasty.port, GET + b"Connection: close\r\n\r\n") for _ in range(20)]

    assert all(answer.startswith(b"HTTP/1.1 200") for answer in answers)


@pytest.mark.parametrize(("per_address", "open_"), [(0, 6), (3, 3)])
def test_the_cap_per_address_can_be_turned_off_the_one_in_all_cannot(
    settings: MakeSettings, per_address: int, open_: int
) -> None:
    options = {"connections": 6, "connections_per_address": per_address}
    with listening(settings(insecure=True, **options)) as served, contextlib.ExitStack() as all_:
        called = [all_.enter_context(caller(served.port)) for _ in range(10)]
        time.sleep(0.3)

        assert sum(not is_closed(one) for one in called) == open_


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("10.1.2.3", "10.1.2.3"),
        ("::ffff:10.1.2.3", "10.1.2.3"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
    ],
)
def test_one_client_is_an_address_of_ipv4_or_a_network_of_ipv6(address: str, network: str) -> None:
    assert network_of(address) == network


# Probes


def test_probes_are_answered_where_nothing_else_is(settings: MakeSettings) -> None:
    port = free_port()
    with listening(settings(insecure=True, probe_port=port)) as served:
        base = f"http://127.0.0.1:{port}"
        answers = {path: httpx.get(base + path).status_code for path in ("/livez", "/readyz")}
        told = httpx.get(f"{base}/metrics").text
        others = [httpx.get(base + path).status_code for path in ("/", "/experts", "/docs")]
        posted = httpx.post(f"{base}/observe", json={"x": [[0.5]]})
        main = httpx.get(f"http://127.0.0.1:{served.port}/readyz").status_code

    assert answers == {"/livez": 200, "/readyz": 200}
    assert "levit_redis_ready 1.0" in told
    assert others == [404, 404, 404]
    assert_problem(posted, 404, "not_found")
    assert main == 200


def test_probes_are_answered_while_the_main_port_is_full(settings: MakeSettings) -> None:
    port = free_port()
    options = {"connections": 4, "connections_per_address": 0, "probe_port": port}
    with listening(settings(insecure=True, **options)) as served, contextlib.ExitStack() as open_:
        for _ in range(4):
            open_.enter_context(caller(served.port))
        refused = rest(open_.enter_context(caller(served.port)))

        assert status_and_code(refused) == (503, "too_many_connections")
        assert httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200


def test_a_probe_port_that_is_taken_stops_the_start(settings: MakeSettings) -> None:
    with listening(settings(insecure=True)) as first:
        second = settings(insecure=True, port=free_port(), probe_port=first.port)
        app = create_app(second, load_pixel_engines)

        with pytest.raises(SystemExit, match="3"):
            server_of(app, app.state.probes, second).run()


# For whom


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("127.0.0.1:8000", 200),
        ("localhost:9", 200),
        ("LOCALHOST", 200),
        ("[::1]:8000", 200),
        ("inside.example", 200),
        ("example.org", 421),
        ("127.0.0.1.example.org", 421),
        ("localhost.example.org:8000", 421),
        ("127.0.0.2", 421),
        ("0.0.0.0", 421),  # noqa: S104  binds nothing
        ("a@127.0.0.1", 421),
        ("127.0.0.1:8000:8000", 421),
        ("127.0.0.1, example.org", 421),
        ("", 421),
        ("[::1", 421),
    ],
)
async def test_an_insecure_service_answers_to_names_of_this_machine_only(
    settings: MakeSettings, host: str, status: int
) -> None:
    served = settings(insecure=True, allowed_hosts="Inside.example, other.example")
    async with running_api(served) as client:
        answer = await client.get("/livez", headers={"Host": host})

    assert answer.status_code == status
    if status != 200:
        assert_problem(answer, 421, "unknown_host")


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://localhost:8000", 200),
        ("https://inside.example", 200),
        ("http://example.org", 403),
        ("http://localhost.example.org", 403),
        ("null", 403),
        ("file://", 403),
        ("chrome-extension://127.0.0.1", 403),
    ],
)
async def test_an_insecure_service_answers_pages_of_this_machine_only(
    settings: MakeSettings, origin: str, status: int
) -> None:
    async with running_api(settings(insecure=True, allowed_hosts="inside.example")) as client:
        answer = await client.get("/livez", headers={"Origin": origin})

    assert answer.status_code == status
    if status != 200:
        assert_problem(answer, 403, "foreign_origin")


async def test_every_route_asks_for_whom_it_is(api: httpx.AsyncClient) -> None:
    paths = (await api.get("/openapi.json")).json()["paths"]
    asked = [(verb, path) for path in paths for verb in paths[path]]

    answers = [await api.request(*one, headers={"Host": "example.org"}) for one in asked]

    assert len(asked) > 10
    assert {answer.status_code for answer in answers} == {421}
