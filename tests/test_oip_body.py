"""Requests of the Open Inference Protocol as bytes: what is read, and what is refused."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from service.api import oip_tensors
from service.api.oip_body import HEADER_LENGTH, OUTPUTS, Inference, json_length, read_inference
from service.engine.protocol import Array
from service.errors import ServiceError
from tests.oip import an_input, by_hand, spelled, tensor

VECTORS = np.array([[0.5, -1.0], [2.0, 3e-9]], np.float32)
RAW = VECTORS.tobytes()
GOOD = {"inputs": [an_input()]}


def read(body: bytes, headers: dict[str, str], *, labels_allowed: bool = True) -> Inference:
    length = json_length(headers.get(HEADER_LENGTH), len(body))
    return read_inference(body, length, max_batch=16, labels_allowed=labels_allowed)


def two_labels(**said: object) -> dict[str, Any]:
    return {
        "inputs": [an_input(), an_input(name="y", shape=[2], parameters=None) | said],
    }


# What is read


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
@pytest.mark.parametrize(
    "labels",
    [
        pytest.param(np.array([3, -1]), id="integers"),
        pytest.param(np.array(["Käfer", ""], object), id="strings"),
    ],
)
@pytest.mark.parametrize(
    "samples",
    [
        pytest.param(VECTORS, id="vectors"),
        pytest.param(np.arange(128, dtype=np.uint8).reshape(2, 8, 8), id="grey images"),
        pytest.param(np.arange(384, dtype=np.uint8).reshape(2, 8, 8, 3), id="colour images"),
        pytest.param(np.linspace(0, 1, 24, dtype=np.float32).reshape(2, 3, 4), id="series"),
    ],
)
def test_what_the_client_spells_is_read(samples: Array, labels: Array, *, binary: bool) -> None:
    inputs = (tensor("x", samples, binary=binary), tensor("y", labels, binary=binary))

    asked = read(*spelled(*inputs))

    assert asked.labels is not None
    assert asked.x.dtype == samples.dtype
    assert np.array_equal(asked.x, samples)
    assert list(asked.labels) == labels.tolist()
    assert asked.x.flags.writeable


def test_lists_may_be_nested_and_doubles_become_floats() -> None:
    nested = an_input(data=[[0.5, 1], [2, 3]], datatype="FP64")

    assert read(*by_hand({"inputs": [nested]})).x.tolist() == [[0.5, 1], [2, 3]]


def test_binary_doubles_become_floats() -> None:
    doubles = an_input(datatype="FP64", parameters={"binary_data_size": 32})

    asked = read(*by_hand({"inputs": [doubles]}, VECTORS.astype(np.float64).tobytes()))

    assert asked.x.dtype == np.float32
    assert np.array_equal(asked.x, VECTORS)


def test_binary_data_of_inputs_lies_in_their_order() -> None:
    labels = np.array([7, 8], np.int32)
    y = an_input(
        name="y", shape=[2], datatype="INT32", parameters={"binary_data_size": labels.nbytes}
    )

    asked = read(*by_hand({"inputs": [y, an_input()]}, labels.tobytes() + RAW))

    assert asked.labels is not None
    assert list(asked.labels) == [7, 8]
    assert np.array_equal(asked.x, VECTORS)


@pytest.mark.parametrize(
    ("said", "outputs"),
    [
        pytest.param({}, dict.fromkeys(OUTPUTS, False), id="all as JSON"),
        pytest.param({"outputs": []}, dict.fromkeys(OUTPUTS, False), id="an empty list"),
        pytest.param(
            {"parameters": {"binary_data_output": True}},
            dict.fromkeys(OUTPUTS, True),
            id="all as binary data",
        ),
        pytest.param(
            {
                "parameters": {"binary_data_output": True},
                "outputs": [
                    {"name": "novelty"},
                    {"name": "label", "parameters": {"binary_data": False}},
                ],
            },
            {"novelty": True, "label": False},
            id="one of each, in their order",
        ),
    ],
)
def test_outputs_are_those_that_are_asked_for(
    said: dict[str, object], outputs: dict[str, bool]
) -> None:
    asked = read(*by_hand(GOOD | said, RAW))

    assert list(asked.outputs.items()) == list(outputs.items())


def test_the_id_and_the_protocols_own_fields_are_taken() -> None:
    said = {"id": "7", "model_name": "m", "model_version": "1", "parameters": {"sequence_id": 3}}

    assert read(*by_hand(GOOD | said, RAW)).id == "7"


# What is refused

HUGE = 10**400
REFUSED = [
    ("no JSON", "bad_json", b"{", b""),
    ("an empty body", "bad_json", b"", b""),
    ("NaN", "bad_json", b'{"inputs": [NaN]}', b""),
    ("no object", "bad_inference", [], b""),
    ("no inputs", "bad_inference", {}, b""),
    ("inputs of another kind", "bad_inference", {"inputs": {"x": 1}}, b""),
    ("an input of another kind", "bad_inference", {"inputs": [7]}, b""),
    ("no x", "missing_field", {"inputs": []}, b""),
    ("a field that nobody knows", "unknown_field", GOOD | {"shared": 1}, RAW),
    ("an input that nobody knows", "unknown_field", {"inputs": [an_input(name="z")]}, RAW),
    ("x twice", "bad_inference", {"inputs": [an_input(), an_input()]}, RAW + RAW),
    ("no shape", "bad_inference", {"inputs": [an_input(shape=None)]}, RAW),
    ("no datatype", "bad_inference", {"inputs": [an_input(datatype=None)]}, RAW),
    ("samples of INT64", "bad_dtype", {"inputs": [an_input(datatype="INT64")]}, RAW),
    ("samples of BYTES", "bad_dtype", {"inputs": [an_input(datatype="BYTES")]}, RAW),
    ("an unknown datatype", "bad_dtype", {"inputs": [an_input(datatype="F" * 99)]}, RAW),
    ("rank 0", "bad_shape", {"inputs": [an_input(shape=[])]}, RAW),
    ("rank 5", "bad_shape", {"inputs": [an_input(shape=[1, 1, 1, 2, 2])]}, RAW),
    ("a fraction in the shape", "bad_inference", {"inputs": [an_input(shape=[2, 2.0])]}, RAW),
    ("true in the shape", "bad_inference", {"inputs": [an_input(shape=[True, 4])]}, RAW),
    ("a negative extent", "bad_shape", {"inputs": [an_input(shape=[-2, -2])]}, RAW),
    ("an extent of 0", "bad_shape", {"inputs": [an_input(shape=[2, 0])]}, b""),
    ("0 samples", "empty_batch", {"inputs": [an_input(shape=[0, 2])]}, RAW),
    ("an extent of 401 digits", "bad_shape", {"inputs": [an_input(shape=[2, HUGE])]}, RAW),
    ("a product of 2 ** 64", "bad_inference", {"inputs": [an_input(shape=[2, 2**31 - 1])]}, RAW),
    ("too many samples", "batch_too_large", {"inputs": [an_input(shape=[17, 1])]}, RAW),
    (
        "4 billion samples of 4 billion values",
        "batch_too_large",
        {"inputs": [an_input(shape=[2**31 - 1] * 4)]},
        RAW,
    ),
    ("fewer bytes than the shape", "bad_inference", {"inputs": [an_input(shape=[2, 3])]}, RAW),
    ("more bytes than the size", "bad_inference", GOOD, RAW + b"\0"),
    ("fewer bytes than the size", "bad_inference", GOOD, RAW[:-1]),
    (
        "a negative size",
        "bad_inference",
        {"inputs": [an_input(parameters={"binary_data_size": -16})]},
        RAW,
    ),
    (
        "a size of 401 digits",
        "bad_inference",
        {"inputs": [an_input(parameters={"binary_data_size": HUGE})]},
        RAW,
    ),
    (
        "a size that is no integer",
        "bad_inference",
        {"inputs": [an_input(parameters={"binary_data_size": "16"})]},
        RAW,
    ),
    (
        "a size that is false",
        "bad_inference",
        {"inputs": [an_input(parameters={"binary_data_size": False})]},
        b"",
    ),
    (
        "shared memory",
        "bad_inference",
        {"inputs": [an_input(parameters={"shared_memory_region": "/etc/passwd"})]},
        b"",
    ),
    ("parameters of another kind", "bad_inference", {"inputs": [an_input(parameters=[])]}, RAW),
    (
        "data and a size",
        "bad_inference",
        {"inputs": [an_input(data=[1, 2, 3, 4], parameters={"binary_data_size": 16})]},
        RAW,
    ),
    ("data of another kind", "bad_inference", {"inputs": [an_input(data="abcd")]}, b""),
    ("too little data", "bad_shape", {"inputs": [an_input(data=[1, 2, 3])]}, b""),
    ("no data", "bad_shape", {"inputs": [an_input(data=[])]}, b""),
    ("uneven data", "bad_shape", {"inputs": [an_input(data=[[1, 2], [3]])]}, b""),
    ("transposed data", "bad_shape", {"inputs": [an_input(data=[[1], [2], [3], [4]])]}, b""),
    ("data of strings", "bad_value", {"inputs": [an_input(data=["1", "2", "3", "4"])]}, b""),
    (
        "a fraction for UINT8",
        "bad_dtype",
        {"inputs": [an_input(datatype="UINT8", data=[0.5, 1, 2, 3])]},
        b"",
    ),
    (
        "256 for UINT8",
        "out_of_range",
        {"inputs": [an_input(datatype="UINT8", data=[256, 1, 2, 3])]},
        b"",
    ),
    ("labels of FP32", "bad_dtype", two_labels(datatype="FP32", data=[1, 2]), RAW),
    ("labels of rank 2", "bad_label", two_labels(datatype="INT64", shape=[2, 1], data=[1, 2]), RAW),
    ("three labels", "label_count", two_labels(datatype="INT64", shape=[3], data=[1, 2, 3]), RAW),
    ("one label for two", "label_count", two_labels(datatype="INT64", data=[1]), RAW),
    ("a label below -1", "bad_label", two_labels(datatype="INT64", data=[1, -2]), RAW),
    ("a label beyond INT64", "bad_label", two_labels(datatype="INT64", data=[1, 2**63]), RAW),
    ("true as a label", "bad_label", two_labels(datatype="INT64", data=[1, True]), RAW),
    ("a number among strings", "bad_label", two_labels(datatype="BYTES", data=["a", 1]), RAW),
    ("an output that nobody knows", "unknown_field", GOOD | {"outputs": [{"name": "z"}]}, RAW),
    ("an output twice", "unknown_field", GOOD | {"outputs": [{"name": "label"}] * 2}, RAW),
    ("an output of another kind", "unknown_field", GOOD | {"outputs": ["label"]}, RAW),
    ("outputs of another kind", "bad_inference", GOOD | {"outputs": {"name": "label"}}, RAW),
    (
        "a classification",
        "unknown_field",
        GOOD | {"outputs": [{"name": "label", "parameters": {"classification": 3}}]},
        RAW,
    ),
    (
        "binary_data of another kind",
        "bad_inference",
        GOOD | {"outputs": [{"name": "label", "parameters": {"binary_data": 1}}]},
        RAW,
    ),
    (
        "binary_data_output of another kind",
        "bad_inference",
        GOOD | {"parameters": {"binary_data_output": "yes"}},
        RAW,
    ),
    ("an id of another kind", "bad_inference", GOOD | {"id": 7}, RAW),
    ("an id of 129 characters", "bad_inference", GOOD | {"id": "7" * 129}, RAW),
]


@pytest.mark.parametrize(
    ("code", "document", "binary"),
    [pytest.param(*case[1:], id=case[0]) for case in REFUSED],
)
def test_a_bad_request_is_refused_with_its_code(code: str, document: object, binary: bytes) -> None:
    with pytest.raises(ServiceError) as refused:
        read(*by_hand(document, binary))

    assert refused.value.code == code
    assert len(refused.value.message) < 300


@pytest.mark.parametrize(
    ("n", "raw"),
    [
        pytest.param(2, b"\1\0\0\0a", id="one element for two"),
        pytest.param(2, b"\1\0\0\0a\1\0\0\0b\1\0\0\0c", id="three elements for two"),
        pytest.param(2, b"\1\0\0\0a\1\0\0", id="a length of 3 bytes"),
        pytest.param(2, b"\1\0\0\0a\2\0\0\0b", id="an element cut short"),
        pytest.param(2, b"\1\0\0\0a\xff\xff\xff\xffb", id="a length of 4 GiB"),
        pytest.param(2, b"", id="nothing"),
    ],
)
def test_strings_of_another_layout_are_refused(n: int, raw: bytes) -> None:
    document = two_labels(datatype="BYTES", parameters={"binary_data_size": len(raw)})

    with pytest.raises(ServiceError, match="4 bytes") as refused:
        read(*by_hand(document, RAW + raw))

    assert refused.value.code == "bad_inference"


def test_labels_of_another_encoding_are_refused() -> None:
    raw = b"\1\0\0\0a\1\0\0\0\xff"
    document = two_labels(datatype="BYTES", parameters={"binary_data_size": len(raw)})

    with pytest.raises(ServiceError, match="UTF-8, got another byte at sample 1"):
        read(*by_hand(document, RAW + raw))


def test_an_inference_has_no_labels() -> None:
    document = two_labels(datatype="INT64", data=[1, 2])

    with pytest.raises(ServiceError, match="expected only the inputs x, got 'y'"):
        read(*by_hand(document, RAW), labels_allowed=False)


@pytest.mark.parametrize(
    "said", ["-1", "+5", "1e3", " 5", "", "17", "9" * 5000, "\u0665"], ids=lambda said: said[:8]
)
def test_a_header_length_that_the_body_has_not_is_refused(said: str) -> None:
    with pytest.raises(ServiceError, match="from 0 to 16, the bytes of the body") as refused:
        json_length(said, 16)

    assert refused.value.code == "bad_inference"


# Whatever comes, the answer is a refusal

EXTENTS = st.one_of(st.integers(-3, 20), st.sampled_from([2**31, 2**63, -(2**63), HUGE]))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=5),
    max_leaves=12,
)
HOSTILE_INPUT = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["x", "y", "z"]),
        "datatype": st.sampled_from(["UINT8", "FP32", "FP64", "INT64", "INT32", "BYTES", "BF16"]),
        "shape": st.lists(EXTENTS | VALUES, max_size=5) | VALUES,
    },
    optional={
        "parameters": st.dictionaries(st.just("binary_data_size"), EXTENTS | VALUES) | VALUES,
        "data": VALUES,
    },
)
HOSTILE = st.fixed_dictionaries(
    {"inputs": st.lists(HOSTILE_INPUT | VALUES, max_size=3)},
    optional={
        "id": VALUES,
        "outputs": VALUES,
        "parameters": st.dictionaries(st.just("binary_data_output"), VALUES) | VALUES,
    },
)


@given(document=HOSTILE, binary=st.binary(max_size=80))
def test_a_hostile_document_is_read_or_refused(document: dict[str, Any], binary: bytes) -> None:
    body, headers = by_hand(document, binary)

    try:
        read(body, headers)
    except ServiceError as refused:
        assert refused.status in (400, 413, 422)  # noqa: PT017  most of them are refused


@given(body=st.binary(max_size=200), said=st.none() | st.text(max_size=6) | st.integers(0, 250))
@example(body=json.dumps(GOOD).encode(), said=None)
def test_hostile_bytes_are_read_or_refused(body: bytes, said: object) -> None:
    headers = {} if said is None else {HEADER_LENGTH: str(said)}

    try:
        read(body, headers)
    except ServiceError as refused:
        assert refused.status in (400, 413, 422)  # noqa: PT017  nearly all of them are refused


def test_without_the_bound_on_extents_a_refusal_could_not_be_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(oip_tensors, "MAX_EXTENT", 10**4299)
    beyond = [2, 10**4000, 10**4000, 2]

    with pytest.raises(ValueError, match="Exceeds the limit"):
        read(*by_hand({"inputs": [an_input(shape=beyond)]}, RAW))
