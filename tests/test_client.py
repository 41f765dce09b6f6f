"""The Python client: against the real service over a socket, and its patience against a script."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import httpx
import numpy as np
import pytest

from service.client import ApiError, Client, Receipt
from service.engine.protocol import Array
from service.settings import Settings
from tests.images import as_file
from tests.scripted import ACCEPTED, Script, accepted, answering, lost, refused, scripted
from tests.served import PIXELS, logged

VECTORS = np.ones((2, 3), np.float32)


# Against the real service


@pytest.fixture
def client(live: Settings) -> Iterator[Client]:
    with Client(f"http://127.0.0.1:{live.port}", retry_s=10) as client:
        yield client


@pytest.mark.usefixtures("learning")
def test_what_was_observed_is_predicted(client: Client) -> None:
    x = np.concatenate([np.zeros((4, 8, 8), np.uint8), np.full((4, 8, 8), 200, np.uint8)])

    receipt = client.observe(x, ["dark"] * 4 + ["light"] * 4)
    learned = client.wait_until_learned(receipt, timeout_s=20)
    answers = client.predict(x[[0, 7]])

    assert (learned.state, learned.step, learned.expert) == ("learned", 1, 0)
    assert answers.labels.tolist() == ["dark", "light"]
    assert answers.classes.tolist() == [["dark", "light"], ["light", "dark"]]
    assert answers.probabilities.shape == (2, 2)
    assert answers.experts.tolist() == [0, 0]
    assert answers.novelty.shape == (2,)
    assert answers.position == receipt.position
    assert client.experts()["samples_learned"] == 8


@pytest.mark.usefixtures("learning")
def test_an_answer_is_explained_and_the_expert_shows_its_samples(client: Client) -> None:
    x = np.concatenate([np.zeros((4, 8, 8), np.uint8), np.full((4, 8, 8), 200, np.uint8)])
    client.wait_until_learned(client.observe(x, ["dark"] * 4 + ["light"] * 4), timeout_s=20)

    answers = client.predict(x[[0, 7]], explain=True)
    shown = client.samples(0, n=3)

    assert [one["expert"] for one in answers.explanations] == answers.experts.tolist() == [0, 0]
    for answer, label in zip(answers.explanations, ("dark", "light"), strict=True):
        assert {one["label"] for one in answer["nearest"][:3]} == {label}
        assert answer["nearest"][0]["distance"] == 0
    assert len(shown["replay"]) == 3
    assert client.predict(x).explanations == ()
    assert client.predict_image(as_file(x[0]), explain=True).explanations[0]["expert"] == 0


@pytest.mark.usefixtures("learning")
def test_a_prediction_waits_for_what_was_just_observed(client: Client) -> None:
    for shade in (10, 60, 110, 160):
        x = np.full((1, 8, 8), shade, np.uint8)
        receipt = client.observe(x, [f"shade {shade}"])
        answers = client.predict(x, wait_for=receipt.position)

        assert answers.labels.tolist() == [f"shade {shade}"]


@pytest.mark.usefixtures("learning")
def test_a_quarantined_batch_tells_its_reason(client: Client) -> None:
    refused_by_the_engine = np.full((1, 8, 8), 255, np.uint8)

    found = client.wait_until_learned(client.observe(refused_by_the_engine), timeout_s=20)

    assert (found.state, found.step) == ("quarantined", None)
    assert found.reason == "loss is not finite: nan"


def test_a_batch_that_nobody_learns_times_out(client: Client) -> None:
    receipt = client.observe(PIXELS)

    with pytest.raises(TimeoutError, match=r"still queued after 0\.2 s"):
        client.wait_until_learned(receipt, timeout_s=0.2)


@pytest.mark.parametrize(
    ("labels", "logged_labels"),
    [
        pytest.param([3, None], [3, -1], id="integers and None"),
        pytest.param(np.array([3, -1]), [3, -1], id="int64"),
        pytest.param(np.array([3, 4], np.uint8), [3, 4], id="small integers"),
        pytest.param(["a", None], ["a", ""], id="strings and None"),
        pytest.param(np.array(["a", ""]), ["a", ""], id="string array"),
        pytest.param(None, None, id="none"),
    ],
)
def test_labels_of_any_spelling_arrive(
    client: Client, redis_server: str, labels: Array | Sequence[Any] | None, logged_labels: object
) -> None:
    client.observe(PIXELS, labels)

    [entry] = logged(redis_server)
    found = entry.labels
    assert (found.tolist() if isinstance(found, np.ndarray) else found) == logged_labels


def test_doubles_are_sent_as_float32(client: Client, redis_server: str) -> None:
    client.observe(np.array([[0.1, 0.2]]))

    [entry] = logged(redis_server)
    np.testing.assert_array_equal(entry.x, np.array([[0.1, 0.2]], np.float32))


def test_a_refusal_is_an_error_with_status_and_code(client: Client) -> None:
    with pytest.raises(ApiError, match="got nan at sample 1") as refused:
        client.observe(np.array([[0.0], [np.nan]]))

    assert (refused.value.status, refused.value.code) == (422, "not_finite")


@pytest.mark.usefixtures("learning")
def test_an_image_file_is_predicted_as_its_pixels_are(client: Client) -> None:
    dark, light = np.zeros((8, 8), np.uint8), np.full((8, 8), 200, np.uint8)
    receipt = client.observe(np.stack([dark, light]), ["dark", "light"])
    client.wait_until_learned(receipt, timeout_s=20)

    answers = client.predict_image(as_file(light))

    assert answers.labels.tolist() == ["light"]


def test_a_running_service_is_ready(client: Client) -> None:
    assert client.ready()


def test_nothing_there_is_not_ready() -> None:
    with Client("http://127.0.0.1:9", retry_s=0) as client:
        assert not client.ready()


def test_nothing_there_is_an_error_of_ours() -> None:
    with Client("http://127.0.0.1:9", retry_s=0) as client, pytest.raises(ApiError) as refused:
        client.experts()

    assert (refused.value.status, refused.value.code) == (0, "unreachable")


def test_importing_the_client_does_not_import_torch_or_redis() -> None:
    code = "import sys, service.client; sys.exit(bool({'torch', 'redis'} & set(sys.modules)))"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("x", "labels"),
    [
        pytest.param(np.zeros((2, 3), np.int64), None, id="integers that are no pixels"),
        pytest.param(VECTORS, [1, "a"], id="labels of two kinds"),
        pytest.param(VECTORS, [0.5, 1.0], id="fractions as labels"),
    ],
)
def test_what_the_wire_does_not_have_is_refused_before_sending(
    client: Client, redis_server: str, x: Array, labels: Sequence[Any] | None
) -> None:
    with pytest.raises(ValueError, match="expected"):
        client.observe(x, labels)

    assert logged(redis_server) == []


# Against a script of answers


@pytest.mark.parametrize("first", [lost, refused(503), refused(429), refused(409)])
def test_a_retry_repeats_key_and_body(first: Callable[[], httpx.Response]) -> None:
    script = Script(first, accepted)

    with scripted(script) as client:
        receipt = client.observe(VECTORS)

    assert receipt.batch_id == "a" * 32
    assert len(set(script.keys)) == 1
    assert script.requests[0].content == script.requests[1].content


def test_every_batch_has_a_key_of_its_own() -> None:
    script = Script(accepted, accepted)

    with scripted(script) as client:
        client.observe(VECTORS)
        client.observe(VECTORS)

    assert len(set(script.keys)) == 2


def test_the_wait_is_as_long_as_the_service_asks() -> None:
    started = time.monotonic()

    with scripted(Script(refused(503, "1"), accepted)) as client:
        client.observe(VECTORS)

    assert time.monotonic() - started >= 1


def test_patience_ends_with_the_refusal_that_was_last() -> None:
    script = Script(*[refused(503)] * 50)

    with scripted(script, retry_s=0.3) as client, pytest.raises(ApiError) as error:
        client.observe(VECTORS)

    assert (error.value.status, error.value.code) == (503, "redis_unavailable")
    assert len(script.requests) > 1


def test_a_refusal_of_the_batch_itself_is_not_repeated() -> None:
    script = Script(refused(422), accepted)

    with scripted(script) as client, pytest.raises(ApiError):
        client.observe(VECTORS)

    assert len(script.requests) == 1


def test_an_answer_that_is_no_problem_document_is_still_our_error() -> None:
    script = Script(lambda: httpx.Response(502, text="<html>bad gateway</html>"))

    with scripted(script) as client, pytest.raises(ApiError) as error:
        client.experts()

    assert (error.value.status, error.value.code) == (502, "unknown")


def test_a_replayed_receipt_says_so() -> None:
    replayed = httpx.Response(202, json=ACCEPTED, headers={"Idempotent-Replayed": "true"})

    with scripted(Script(lambda: replayed)) as client:
        receipt = client.observe(VECTORS)

    assert receipt == Receipt(
        batch_id="a" * 32, n=2, position="1-0", backlog=1, replayed=True, durability="always"
    )


def test_rows_without_an_answer_are_filled() -> None:
    said = {
        "labels": [4, None],
        "probabilities": [[0.75, 0.25], []],
        "classes": [[4, 7], []],
        "experts": [0, 1],
        "novelty": [0.5, None],
        "model_version": 3,
        "position": "1-0",
    }

    with scripted(Script(lambda: httpx.Response(200, json=said))) as client:
        answers = client.predict(VECTORS)

    assert answers.labels.tolist() == [4, -1]
    assert answers.probabilities.tolist() == [[0.75, 0.25], [0, 0]]
    assert answers.classes.tolist() == [[4, 7], [-1, -1]]
    assert np.isnan(answers.novelty[1])


def test_a_key_that_may_not_look_at_the_model_waits_until_it_is_learned() -> None:
    learned = {"batch_id": "a" * 32, "state": "learned", "n": 2, "position": "9-0"}
    learned |= {"step": 4, "expert": 0, "reason": None}
    script = Script(accepted, answering(learned), refused(403))

    with scripted(script) as client:
        found = client.wait_until_learned(client.observe(VECTORS))

    assert found.step == 4


def test_waiting_ends_when_the_served_model_has_learned_the_batch() -> None:
    learned = {"batch_id": "a" * 32, "state": "learned", "n": 2, "position": "9-0"}
    learned |= {"step": 4, "expert": 0, "reason": None}
    served = iter([None, "8-5", "10-0"])
    script = Script(
        accepted,
        *[
            lambda: httpx.Response(200, json=learned),
            lambda: httpx.Response(200, json={"position": next(served)}),
        ]
        * 3,
    )

    with scripted(script) as client:
        found = client.wait_until_learned(client.observe(VECTORS))

    assert found.position == "9-0"
    assert next(served, "asked for all") == "asked for all"
