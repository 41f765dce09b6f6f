"""The Open Inference Protocol V2, asked by NVIDIA's client: the answers are those of /predict."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from service import __version__
from service.api.body import SAFETENSORS
from service.demo.data import DemoData, load_data
from service.engine.load import load_engines
from service.engine.protocol import Array, Engines
from service.settings import Settings
from service.store.entry import encode
from service.store.keys import create_key
from tests.conftest import DATA, MakeSettings
from tests.oip import an_input, arrays, by_hand, decoded, listening, spelled, tensor
from tests.served import PIXELS, UNANSWERED, load_pixel_engines, logged, publish, stored
from tests.toy_engine import ToyEngines
from tests.toy_learning import learn_all

INFER = "/v2/models/default/infer"
OBSERVE = "/v2/models/default/observe"
LEVIT = partial(load_engines, 1)
TYPE = {"Content-Type": "application/octet-stream"}


@dataclass(frozen=True, slots=True)
class Service:
    """A service on a port, and NVIDIA's client of it."""

    url: str
    client: triton.InferenceServerClient
    settings: Settings
    key: Mapping[str, str] = field(default_factory=dict)
    """The header that lets in, where a key is needed."""

    def predict(self, x: Array) -> dict[str, Array]:
        """Return what /predict answers."""
        headers = {"Content-Type": SAFETENSORS, **self.key}
        answer = httpx.post(f"{self.url}/predict", content=encode(x, None), headers=headers)
        return arrays(answer.json())

    def until_served(self, position: str) -> None:
        asked = partial(httpx.get, f"{self.url}/experts", headers=dict(self.key))
        while asked().json()["position"] != position:
            time.sleep(0.05)

    def until_ready(self) -> None:
        while not self.client.is_model_ready("default"):
            time.sleep(0.01)


@pytest.fixture
def service(settings: MakeSettings) -> Iterator[Service]:
    """A service whose model answers with the class that the first pixel names."""
    served = settings(insecure=True)
    with (
        listening(served, load_pixel_engines) as address,
        triton.InferenceServerClient(address) as client,
    ):
        yield Service(f"http://{address}", client, served)


@pytest.fixture(params=[[5, 6, 7], ["five", "six", "Käfer"]], ids=["integers", "strings"])
def serving_labels(request: pytest.FixtureRequest, service: Service) -> Service:
    """The same, once a model of three classes is published."""
    publish(service.settings.state_dir, classes=request.param)
    service.until_ready()
    return service


# What NVIDIA's client asks


def test_the_server_is_live_before_it_is_ready(service: Service) -> None:
    client = service.client

    assert client.is_server_live()
    assert not client.is_server_ready()
    assert not client.is_model_ready("default")
    with pytest.raises(InferenceServerException, match="not_ready: no model is published yet"):
        client.get_model_metadata("default")

    publish(service.settings.state_dir, classes=[1])
    service.until_ready()

    assert client.is_server_ready()


def test_the_server_declares_its_extensions(service: Service) -> None:
    assert service.client.get_server_metadata() == {
        "name": "levit-stream",
        "version": __version__,
        "extensions": ["binary_tensor_data", "observe"],
    }


def test_the_metadata_are_those_of_the_served_model(serving_labels: Service) -> None:
    labels = decoded(serving_labels.predict(PIXELS)["label"]).dtype.kind

    found = serving_labels.client.get_model_metadata("default", "1")

    datatype = "INT64" if labels == "i" else "BYTES"
    assert found == {
        "name": "default",
        "versions": ["1"],
        "platform": "levit",
        "inputs": [{"name": "x", "datatype": "UINT8", "shape": [-1, 8, 8, 1]}],
        "outputs": [
            {"name": "label", "datatype": datatype, "shape": [-1]},
            {"name": "probabilities", "datatype": "FP32", "shape": [-1, -1]},
            {"name": "classes", "datatype": datatype, "shape": [-1, -1]},
            {"name": "expert", "datatype": "INT64", "shape": [-1]},
            {"name": "novelty", "datatype": "FP32", "shape": [-1]},
        ],
    }


@pytest.mark.parametrize("binary_out", [True, False], ids=["binary out", "json out"])
@pytest.mark.parametrize("binary_in", [True, False], ids=["binary in", "json in"])
def test_an_inference_answers_what_predict_answers(
    serving_labels: Service, *, binary_in: bool, binary_out: bool
) -> None:
    x = np.random.default_rng(0).integers(0, UNANSWERED, (70, 8, 8), np.uint8)
    expected = serving_labels.predict(x)
    wanted = [triton.InferRequestedOutput(name, binary_data=binary_out) for name in expected]

    answer = serving_labels.client.infer("default", [tensor("x", x, binary=binary_in)], "", wanted)

    found = {name: decoded(answer.as_numpy(name)) for name in expected}
    np.testing.assert_equal(found, expected)
    assert answer.get_output("label").get("parameters", {}).keys() == (
        {"binary_data_size"} if binary_out else set()
    )


def test_without_wanted_outputs_all_come_with_the_models_version(serving_labels: Service) -> None:
    answer = serving_labels.client.infer("default", [tensor("x", PIXELS)], request_id="mine")

    said = answer.get_response()
    assert [output["name"] for output in said["outputs"]] == [*serving_labels.predict(PIXELS)]
    assert (said["model_name"], said["model_version"], said["id"]) == ("default", "1", "mine")
    assert said["parameters"] == {"model_version": 1, "position": "7-0"}


def test_a_sample_without_an_answer_has_no_label(serving_labels: Service) -> None:
    x = np.full((1, 8, 8), UNANSWERED, np.uint8)

    answer = serving_labels.client.infer("default", [tensor("x", x)])

    label = decoded(answer.as_numpy("label")).tolist()[0]
    assert label in (-1, "")
    assert decoded(answer.as_numpy("classes")).tolist() == [[label] * 3]
    assert answer.as_numpy("probabilities").tolist() == [[0.0] * 3]


@pytest.mark.parametrize("asked", ["0", "2", "01", "latest", "9" * 400])
def test_another_version_than_the_served_one_is_not_found(service: Service, asked: str) -> None:
    publish(service.settings.state_dir, classes=[1])
    service.until_ready()
    client = service.client

    assert not client.is_model_ready("default", asked)
    with pytest.raises(InferenceServerException, match="unknown_version: expected version 1"):
        client.get_model_metadata("default", asked)
    with pytest.raises(InferenceServerException, match="unknown_version: expected version 1"):
        client.infer("default", [tensor("x", PIXELS)], asked)


def test_a_stream_that_does_not_exist_is_no_model(service: Service) -> None:
    client = service.client

    assert not client.is_model_ready("other")
    with pytest.raises(InferenceServerException, match="unknown_stream"):
        client.get_model_metadata("other")
    with pytest.raises(InferenceServerException, match="unknown_stream"):
        client.infer("other", [tensor("x", PIXELS)])


def test_a_compressed_request_is_refused_in_words(service: Service) -> None:
    publish(service.settings.state_dir, classes=[1])
    service.until_ready()

    with pytest.raises(InferenceServerException, match="no Content-Encoding, got 'gzip'"):
        service.client.infer("default", [tensor("x", PIXELS)], request_compression_algorithm="gzip")


def test_what_the_server_does_not_have_is_told_in_the_protocols_form(service: Service) -> None:
    with pytest.raises(InferenceServerException, match="not_found: there is no such route"):
        service.client.get_model_config("default")


def test_a_key_goes_in_the_headers_of_each_call(settings: MakeSettings) -> None:
    closed = settings()
    publish(closed.state_dir, classes=[1])
    asks, looks = (
        {"Authorization": f"Bearer {create_key(closed.state_dir, name=scope, scopes=[scope])[1]}"}
        for scope in ("predict", "read")
    )
    x = tensor("x", PIXELS)
    with (
        listening(closed, load_pixel_engines) as address,
        triton.InferenceServerClient(address) as client,
    ):
        while not client.is_server_ready(headers=dict(looks)):
            time.sleep(0.01)

        assert not client.is_server_live()
        assert client.is_server_live(headers=dict(asks))
        assert client.get_model_metadata("default", headers=dict(asks))["name"] == "default"
        with pytest.raises(InferenceServerException, match="unauthorized: expected the header"):
            client.infer("default", [x])
        with pytest.raises(InferenceServerException, match="foreign_scope: key "):
            client.infer("default", [x], headers=dict(looks))
        assert client.infer("default", [x], headers=dict(asks)).as_numpy("label").tolist() == [1, 1]


# What is observed


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
@pytest.mark.parametrize(
    "labels", [np.array([3, -1]), np.array(["Käfer", ""], object)], ids=["integers", "strings"]
)
async def test_what_is_observed_lies_in_the_log_as_by_observe(
    api: httpx.AsyncClient, redis_server: str, labels: Array, *, binary: bool
) -> None:
    body, headers = spelled(tensor("x", PIXELS, binary=binary), tensor("y", labels, binary=binary))
    headers |= {"Idempotency-Key": "a-key-of-this-test"}

    first = await api.post(OBSERVE, content=body, headers=headers | TYPE)
    again = await api.post(OBSERVE, content=body, headers=headers | TYPE)

    plain_labels = [None if label in (-1, "") else label for label in labels.tolist()]
    plain = await api.post("/observe", json={"x": PIXELS.tolist(), "y": plain_labels})
    by_protocol, by_observe = logged(redis_server)
    assert (first.status_code, again.status_code, plain.status_code) == (202, 202, 202)
    assert again.headers["Idempotent-Replayed"] == "true"
    assert again.json()["batch_id"] == first.json()["batch_id"]
    assert first.json().keys() == plain.json().keys()
    assert by_protocol.payload == by_observe.payload


async def test_labels_may_be_left_out(api: httpx.AsyncClient, redis_server: str) -> None:
    body, headers = spelled(tensor("x", PIXELS))

    answer = await api.post(OBSERVE, content=body, headers=headers)

    assert answer.status_code == 202
    assert logged(redis_server)[0].labels is None


async def test_a_page_of_another_origin_cannot_observe(
    api: httpx.AsyncClient, redis_server: str
) -> None:
    """Without a type, or of one of three types, a browser sends bodies without asking first."""
    body, _ = spelled(tensor("x", PIXELS, binary=False))

    untyped = await api.post(OBSERVE, content=body)
    text = await api.post(OBSERVE, content=body, headers={"Content-Type": "text/plain"})

    assert (untyped.status_code, text.status_code) == (415, 415)
    assert stored(redis_server) == []


# What is refused

BIG = np.zeros((16, 64, 64, 3), np.uint8)
ONE = np.full((1, 8, 8, 1), 2, np.float32)
MANY = np.zeros((17, 8, 8), np.uint8)
TOO_LONG = {"Inference-Header-Content-Length": "3"}
BAD = [
    ("no JSON", 400, "bad_json", by_hand(b"{")),
    ("more JSON than the body", 400, "bad_inference", (b"{}", TOO_LONG)),
    ("shared memory", 400, "bad_inference", by_hand({"inputs": [an_input(parameters={})]})),
    ("too many samples", 413, "batch_too_large", spelled(tensor("x", MANY))),
    ("too many bytes", 413, "body_too_large", spelled(tensor("x", BIG))),
    ("too much JSON", 413, "body_too_large", spelled(tensor("x", BIG, binary=False))),
    ("another shape", 422, "schema_mismatch", spelled(tensor("x", BIG[:1]))),
    ("NaN", 422, "not_finite", spelled(tensor("x", ONE * np.nan))),
    ("an image of 2.0", 422, "out_of_range", spelled(tensor("x", ONE))),
    ("another input", 422, "unknown_field", spelled(tensor("z", PIXELS))),
]


@pytest.mark.parametrize("route", [INFER, "/v2/models/default/versions/1/infer", OBSERVE])
@pytest.mark.parametrize(
    ("status", "code", "sent"), [pytest.param(*case[1:], id=case[0]) for case in BAD]
)
async def test_a_refusal_has_the_protocols_form(
    serving: httpx.AsyncClient,
    redis_server: str,
    route: str,
    status: int,
    code: str,
    sent: tuple[bytes, dict[str, str]],
) -> None:
    await serving.post("/observe", json={"x": PIXELS.tolist()})
    before = stored(redis_server)
    body, headers = sent

    answer = await serving.post(route, content=body, headers=headers | TYPE)

    said = answer.json()
    assert (answer.status_code, said["error"].split(": ")[0]) == (status, code)
    assert list(said) == ["error"]
    assert answer.headers["content-type"] == "application/json"
    assert stored(redis_server) == before


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/v2/nowhere", 404), ("POST", "/v2", 405), ("GET", INFER, 405), ("PUT", OBSERVE, 405)],
)
async def test_the_router_refuses_in_the_protocols_form(
    api: httpx.AsyncClient, method: str, path: str, status: int
) -> None:
    answer = await api.request(method, path)

    assert (answer.status_code, list(answer.json())) == (status, ["error"])


async def test_before_the_first_model_an_inference_is_to_come_back(api: httpx.AsyncClient) -> None:
    body, headers = spelled(tensor("x", PIXELS))

    answer = await api.post(INFER, content=body, headers=headers)

    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    assert answer.json() == {
        "error": "not_ready: no model is published yet; observe something first"
    }


async def test_inferences_are_counted_as_predictions_and_store_nothing(
    serving: httpx.AsyncClient, redis_server: str
) -> None:
    body, headers = spelled(tensor("x", PIXELS))

    await serving.post(INFER, content=body, headers=headers)
    await serving.post(INFER, content=b"{", headers=headers)

    told = (await serving.get("/metrics")).text
    assert 'levit_predictions_total{outcome="answered",stream="default"} 1.0' in told
    assert 'levit_predictions_total{outcome="refused",stream="default"} 1.0' in told
    assert stored(redis_server) == []


# Learned by way of the protocol, end to end


@pytest.mark.parametrize(
    ("data", "limit", "least", "load"),
    [
        pytest.param("digits", 300, 0.8, ToyEngines, id="digits, the toy"),
        pytest.param("digits", None, 0.95, LEVIT, id="digits", marks=pytest.mark.slow),
        pytest.param("mnist", 2000, 0.8, LEVIT, id="MNIST", marks=pytest.mark.slow),
    ],
)
@pytest.mark.timeout(300)
def test_a_learned_stream_answers_nvidias_client_as_it_answers_predict(
    settings: MakeSettings, data: str, limit: int | None, least: float, load: Callable[[], Engines]
) -> None:
    if data != "digits" and DATA is None:
        pytest.skip("there is no LEVIT_DATA")
    stream = load_data(data, Path(DATA or ""), limit=limit)
    served, engines = settings(), load()
    _, token = create_key(served.state_dir, name="me", scopes=["observe", "predict", "read"])
    key = {"Authorization": f"Bearer {token}"}
    with (
        listening(served, lambda: engines) as address,
        triton.InferenceServerClient(address) as client,
    ):
        service = Service(f"http://{address}", client, served, key)
        _observe(service, stream)
        learned = learn_all(served, engines)
        service.until_served(learned.progress.position)
        x, y = stream.x_test[:500], stream.y_test[:500]

        assert client.is_server_ready(headers=dict(key))
        assert client.is_model_ready("default", headers=dict(key))
        described = client.get_model_metadata("default", headers=dict(key))
        expected = service.predict(x)
        in_binary = client.infer("default", [tensor("x", x)], headers=dict(key))
        wanted = [triton.InferRequestedOutput(name, binary_data=False) for name in expected]
        in_json = client.infer(
            "default", [tensor("x", x[:50], binary=False)], outputs=wanted, headers=dict(key)
        )
        few = service.predict(x[:50])

    assert described["inputs"] == [
        {"name": "x", "datatype": "UINT8", "shape": [-1, *x.shape[1:], 1]}
    ]
    np.testing.assert_equal({name: in_binary.as_numpy(name) for name in expected}, expected)
    np.testing.assert_equal({name: in_json.as_numpy(name) for name in few}, few)
    assert np.mean(in_binary.as_numpy("label") == y) >= least


def _observe(service: Service, stream: DemoData) -> None:
    """Hand in the whole stream by way of the extension."""
    with httpx.Client(base_url=service.url, headers=dict(service.key)) as http:
        for at in range(0, len(stream.x_train), stream.batch_size):
            batch = slice(at, at + stream.batch_size)
            labels = stream.y_train[batch].astype(np.int64)
            body, headers = spelled(tensor("x", stream.x_train[batch]), tensor("y", labels))
            http.post(OBSERVE, content=body, headers=headers).raise_for_status()
