"""Text of any kind in every field that holds text: refused, and no file or name comes of it."""

import http.client
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.api.freshness import POSITION
from service.settings import STREAM_NAME, Settings
from tests.listening import listening
from tests.served import DOCUMENT, stored

BATCH_ID, KEY = r"[0-9a-f]{32}", r"[A-Za-z0-9_-]{16,64}"
Said = tuple[str, str, dict[str, str], Any]
"""Method, path, headers and document of a request."""
FIELDS: dict[str, tuple[str, Any]] = {
    "stream": (STREAM_NAME, lambda text: ("GET", f"/streams/{_quoted(text)}/experts", {}, None)),
    "model": (STREAM_NAME, lambda text: ("GET", f"/v2/models/{_quoted(text)}/ready", {}, None)),
    "batch": (BATCH_ID, lambda text: ("GET", f"/observations/{_quoted(text)}", {}, None)),
    "set aside": (BATCH_ID, lambda text: ("POST", f"/quarantine/{_quoted(text)}/retry", {}, {})),
    "after": (POSITION, lambda text: ("GET", f"/quarantine?after={_quoted(text)}", {}, None)),
    "wait_for": (POSITION, lambda text: ("POST", f"/predict?wait_for={_quoted(text)}", {}, {})),
    "name": (STREAM_NAME, lambda text: ("POST", "/streams", {}, {"name": text})),
    "pin": ("[a-z0-9-]{1,40}", lambda text: ("POST", "/checkpoints/1/pin", {}, {"name": text})),
    "input": ("-", lambda text: ("POST", "/streams", {}, {"name": "a", "input": text})),
    "sample": (BATCH_ID + ":0", lambda text: ("POST", "/labels", {}, {"labels": {text: 1}})),
    "key": (KEY, lambda text: ("POST", "/observe", {"Idempotency-Key": _visible(text)}, DOCUMENT)),
}
"""Each field with what is allowed in it, and the request that says a text there."""
HOSTILE = [
    *("../../etc/passwd", "..%2f..%2fx", "/etc/passwd", "file:///etc/passwd", "a/b", "C:\\x"),
    *("http://127.0.0.1:9/", "//127.0.0.1/x", "gopher://x", "a\r\nX-A: 1", "a\nSET x 1\r\n"),
    *("a\0b", "\u2028", "*", "{default}", "levit:*", "$(id)", "'; --", "{{7*7}}", "%s%n", " "),
]
TEXTS = st.sampled_from(HOSTILE) | st.text(max_size=80)


def _quoted(text: str) -> str:
    return quote(text.encode("utf-8", "surrogatepass"), safe="")


def _visible(text: str) -> str:
    """Return what a header can hold of a text, and never nothing."""
    return re.sub(r"[^!-~]", "", text) or "!"


@pytest.fixture(scope="module")
def served(_embedded: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """A service whose Redis and state directory are empty but for what a start leaves there."""
    home = tmp_path_factory.mktemp("served")
    with listening(Settings(insecure=True, redis_url=_embedded, state_dir=home)) as found:
        yield found


def answered(port: int, said: Said) -> tuple[int, bytes]:
    """Return status and body of an answer."""
    method, path, headers, document = said
    body = None if document is None else json.dumps(document).encode()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request(method, path, body, {"Content-Type": "application/json"} | headers)
    answer = connection.getresponse()
    try:
        return answer.status, answer.read()
    finally:
        connection.close()


def left(served: Settings) -> tuple[list[str], list[str]]:
    """Return every file of the state directory, and every name in Redis."""
    return sorted(map(str, Path(served.state_dir).rglob("*"))), stored(str(served.redis_url))


@pytest.mark.parametrize("field", FIELDS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(text=TEXTS)
def test_text_that_is_not_allowed_is_refused_and_leaves_nothing(
    served: Settings, field: str, text: str
) -> None:
    allowed, request = FIELDS[field]
    said = request(text)
    if re.fullmatch(allowed, said[2].get("Idempotency-Key", text)):
        return
    before = left(served)

    status, body = answered(served.port, said)

    assert status in {400, 404, 405, 422}
    assert not re.search(rb"[\r\n]", body)
    assert left(served) == before


def test_a_text_that_is_allowed_does_leave_something(served: Settings) -> None:
    before = left(served)

    status, _ = answered(served.port, FIELDS["name"][1]("allowed"))

    assert status == 201
    assert left(served) != before
