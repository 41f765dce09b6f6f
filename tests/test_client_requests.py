"""What the client asks for and how it reads what is said, against a script; its two editions."""

import base64
import hashlib
import json
from collections.abc import Callable
from contextlib import aclosing

import httpx
import numpy as np
import pytest

from service.client import ApiError, AsyncClient, Client, Event, generate
from service.client.answers import EventReader
from service.client.models import Receipt
from service.client.pauses import Pauses
from tests.scripted import ACCEPTED, Script, accepted, answering, lost, refused, scripted

VECTORS = np.ones((2, 3), np.float32)
ANSWERED = {
    "labels": [4, 7],
    "probabilities": [[0.75], [0.5]],
    "classes": [[4], [7]],
    "experts": [0, 1],
    "novelty": [0.5, 0.5],
    "model_version": 3,
    "position": "1-0",
}
PNG = b"\x89PNG\r\n\x1a\n and so on"


# The two editions


def test_the_synchronous_edition_is_made_out_of_the_asynchronous_one() -> None:
    stale = [
        path.name
        for path, text in generate.editions().items()
        if path.read_text(encoding="utf-8") != text
    ]

    assert stale == [], "run `make generate`"


def test_a_change_of_the_source_alone_would_be_noticed() -> None:
    source = "async def f() -> None:\n    await g()\n"

    assert generate.synchronous(source) == "def f() -> None:\n    g()\n"


def test_both_editions_have_the_same_methods() -> None:
    def public(edition: type) -> set[str]:
        return {name for name in dir(edition) if not name.startswith("_")}

    assert public(AsyncClient) - {"aclose"} == public(Client) - {"close"}


# What is sent


@pytest.mark.parametrize(("key", "sent"), [(None, None), ("levit_secret", "Bearer levit_secret")])
def test_a_key_goes_along_as_a_bearer(key: str | None, sent: str | None) -> None:
    script = Script(accepted)

    with scripted(script, key=key) as client:
        client.observe(VECTORS)

    assert script.requests[0].headers.get("Authorization") == sent


def test_a_body_carries_its_digest() -> None:
    script = Script(accepted)

    with scripted(script) as client:
        client.observe(VECTORS)

    [request] = script.requests
    digest = base64.b64encode(hashlib.sha256(request.content).digest()).decode()
    assert request.headers["Content-Digest"] == f"sha-256=:{digest}:"


def test_a_stream_stands_before_the_path_of_its_routes() -> None:
    script = Script(accepted, answering(ANSWERED), accepted, *[answering(ANSWERED)] * 2)

    with scripted(script, stream="cams") as client:
        client.observe(VECTORS)
        client.predict(VECTORS)
        client.label({"a:0": 1})
        client.experts()
        client.command("/resync", {"accept_loss": 1})

    paths = [request.url.path for request in script.requests]
    verbs = ("observe", "predict", "labels", "experts", "resync")
    assert paths == [f"/streams/cams/{verb}" for verb in verbs]


def test_a_name_of_a_stream_cannot_leave_its_place() -> None:
    script = Script(answering({}))

    with scripted(script, stream="../quarantine?") as client:
        client.experts()

    assert script.requests[0].url.raw_path == b"/streams/..%2Fquarantine%3F/experts"


def test_labels_are_told_by_sample_id() -> None:
    script = Script(lost, accepted)

    with scripted(script) as client:
        receipt = client.label({"a:0": np.int64(7), "a:1": "seven"})

    assert receipt.batch_id == ACCEPTED["batch_id"]
    assert json.loads(script.requests[1].content) == {"labels": {"a:0": 7, "a:1": "seven"}}
    assert script.requests[1].headers["Content-Type"] == "application/json"
    assert len(set(script.keys)) == 1


def test_a_receipt_tells_the_ids_of_its_samples() -> None:
    receipt = Receipt(
        batch_id="ab", n=2, position="1-0", backlog=1, replayed=False, durability="always"
    )

    assert receipt.sample_ids == ["ab:0", "ab:1"]


def test_a_prediction_changes_nothing_unless_it_is_asked_to() -> None:
    script = Script(answering(ANSWERED))

    with scripted(script) as client:
        answers = client.predict(VECTORS)

    assert script.requests[0].url == "http://levit/predict"
    assert "Idempotency-Key" not in script.requests[0].headers
    assert answers.sample_ids == ()


def test_a_kept_prediction_is_kept_once_and_tells_its_ids() -> None:
    script = Script(lost, answering(ANSWERED | {"sample_ids": ["ab:0", "ab:1"]}))

    with scripted(script) as client:
        answers = client.predict(VECTORS, keep=True, wait_for="17-0")

    assert script.requests[1].url == "http://levit/predict?keep=true&wait_for=17-0"
    assert len(set(script.keys)) == 1
    assert answers.sample_ids == ("ab:0", "ab:1")


@pytest.mark.parametrize(
    ("content", "media_type"), [(PNG, "image/png"), (b"\xff\xd8\xff\xe0", "image/jpeg")]
)
def test_an_image_is_sent_as_its_file_is(content: bytes, media_type: str) -> None:
    script = Script(answering(ANSWERED))

    with scripted(script) as client:
        client.predict_image(content)

    assert script.requests[0].content == content
    assert script.requests[0].headers["Content-Type"] == media_type


def test_another_file_is_no_image() -> None:
    with scripted(Script()) as client, pytest.raises(ValueError, match="a PNG or a JPEG"):
        client.predict_image(b"GIF89a")


def test_streams_are_those_of_the_service() -> None:
    script = Script(answering({"streams": [{"name": "cams"}]}), lost, answering({"name": "more"}))

    with scripted(script, stream="cams") as client:
        assert client.streams() == [{"name": "cams"}]
        assert client.create_stream("more", "vector:3", max_experts=4) == {"name": "more"}

    assert [request.url.path for request in script.requests] == ["/streams"] * 3
    asked = json.loads(script.requests[2].content)
    assert asked == {"name": "more", "input": "vector:3", "max_experts": 4}


def test_a_conflict_that_is_a_decision_is_not_asked_for_again() -> None:
    exists = answering({"code": "stream_exists", "detail": "declared otherwise"}, 409)
    script = Script(exists)

    with scripted(script) as client, pytest.raises(ApiError) as error:
        client.create_stream("more")

    assert (error.value.code, len(script.requests)) == ("stream_exists", 1)


def test_an_answer_of_something_else_is_an_error_of_ours() -> None:
    page = httpx.Response(200, text="<html>log in</html>")

    with scripted(Script(lambda: page)) as client, pytest.raises(ApiError) as error:
        client.experts()

    assert (error.value.status, error.value.code) == (200, "bad_answer")


# Pauses


def test_pauses_grow_to_their_bound_and_end_with_the_time() -> None:
    pauses = Pauses(100, longest_s=0.4)

    waits = [pauses.next_s() or 0 for _ in range(6)]

    for wait, most in zip(waits, [0.05, 0.1, 0.2, 0.4, 0.4, 0.4], strict=True):
        assert most / 2 <= wait <= most
    assert Pauses(0).next_s() is None


def test_a_pause_is_as_long_as_is_asked_and_clients_part() -> None:
    waits = [Pauses(100).next_s(3) or 0 for _ in range(50)]

    assert all(3 <= wait <= 3.3 for wait in waits)
    assert len(set(waits)) > 40


# Events


def told(*lines: str, status: int = 200) -> Callable[[], httpx.Response]:
    return lambda: httpx.Response(status, text="".join(f"{line}\n" for line in lines))


BORN = ("id: 5", "event: expansion", 'data: {"expert": 2}', "")
SNAPSHOT = ("id: 6", "event: snapshot", 'data: {"version": 9}', "")


def test_an_event_is_put_together_of_its_lines() -> None:
    reader = EventReader()
    lines = (": still here", "", "retry: 10", "id:7", 'data: {"a":', "data: 1}", "")

    found = [reader.feed(line) for line in lines]

    assert found[:-1] == [None] * 6
    assert found[-1] == Event(id="7", kind="message", data={"a": 1})


def test_events_go_on_behind_the_last_one_when_the_connection_is_lost() -> None:
    script = Script(told(*BORN, "id: 6"), lost, refused(503), told(*SNAPSHOT))

    with scripted(script) as client:
        events = client.events()
        found = [next(events), next(events)]
        events.close()

    assert [(event.id, event.kind) for event in found] == [("5", "expansion"), ("6", "snapshot")]
    assert found[1].data == {"version": 9}
    assert "Last-Event-ID" not in script.requests[0].headers
    assert [one.headers["Last-Event-ID"] for one in script.requests[1:]] == ["5"] * 3


def test_events_begin_behind_the_one_that_is_named() -> None:
    script = Script(told(*SNAPSHOT))

    with scripted(script) as client:
        events = client.events(after="5")
        next(events)
        events.close()

    assert script.requests[0].headers["Last-Event-ID"] == "5"


def test_events_that_are_refused_are_not_asked_for_again() -> None:
    script = Script(refused(403))

    with scripted(script) as client, pytest.raises(ApiError) as error:
        next(client.events())

    assert (error.value.status, len(script.requests)) == (403, 1)


def test_a_service_that_stays_away_ends_the_events() -> None:
    script = Script(told(*BORN), *[lost] * 50)

    with scripted(script, retry_s=0.3) as client, pytest.raises(ApiError) as error:
        list(client.events())

    assert error.value.code == "unreachable"


async def test_the_asynchronous_client_waits_and_retries_alike() -> None:
    script = Script(lost, accepted, told(*BORN), told(*SNAPSHOT))
    transport = httpx.MockTransport(script)

    async with AsyncClient("http://levit", transport=transport) as client:
        receipt = await client.observe(VECTORS)
        async with aclosing(client.events()) as events:
            found = [await anext(events), await anext(events)]

    assert receipt.batch_id == "a" * 32
    assert len({one.headers["Idempotency-Key"] for one in script.requests[:2]}) == 1
    assert [event.id for event in found] == ["5", "6"]
