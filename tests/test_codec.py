"""Bodies to arrays: what is accepted arrives unchanged, everything else is refused by code."""

import json
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from service.api.body import JSON, SAFETENSORS
from service.api.bounds import Limits
from service.api.codec import Batch, decode, submission
from service.engine.protocol import Array, Labels
from service.errors import BadRequest, ServiceError, TooLarge, Unprocessable
from service.inputs import InputSchema
from service.store.entry import decode_payload, encode
from tests.bad_bodies import (
    BAD_JSON,
    BAD_TENSORS,
    VECTOR_BYTES,
    VECTOR_TENSOR,
    document,
    only_x,
    tensors,
    with_metadata,
)

GREY = InputSchema.parse("image:8x8x1")
VECTOR = InputSchema.parse("vector:2")
SERIES = InputSchema.parse("series:3x2")
PIXELS = np.arange(128, dtype=np.uint8).reshape(2, 8, 8)
CANARY = "canary-5d1f"
LIMITS = Limits(
    max_body_bytes=2**23, max_json_bytes=2**20, max_batch=16, max_pixels=2**20, line_s=1, stream_s=1
)
_SAID = json.dumps(VECTOR_TENSOR).encode()
X_TWICE = tensors(b'{"x": %b, "x": %b}' % (_SAID, _SAID), VECTOR_BYTES)


def read(
    body: bytes,
    media_type: str = JSON,
    known: InputSchema | None = None,
    *,
    labels_allowed: bool = True,
) -> Batch:
    return decode(body, media_type, known=known, limits=LIMITS, labels_allowed=labels_allowed)


# What is accepted


@pytest.mark.parametrize(
    ("x", "known", "expected"),
    [
        pytest.param(PIXELS, None, "image:8x8x1", id="grey"),
        pytest.param(PIXELS[..., None], None, "image:8x8x1", id="grey with its channel"),
        pytest.param(np.repeat(PIXELS[..., None], 3, 3), None, "image:8x8x3", id="colour"),
        pytest.param(PIXELS[..., None] / np.float32(255), GREY, "image:8x8x1", id="float image"),
        pytest.param(np.eye(2, 2, dtype=np.float32), None, "vector:2", id="vectors"),
        pytest.param(np.ones((2, 3, 2), np.float32), SERIES, "series:3x2", id="series"),
    ],
)
@pytest.mark.parametrize("media_type", [JSON, SAFETENSORS])
def test_samples_arrive_unchanged_in_the_canonical_layout(
    x: Array, known: InputSchema | None, expected: str, media_type: str
) -> None:
    spelled = document(x=x.tolist(), dtype=x.dtype.name)
    body = spelled if media_type == JSON else encode(x, None)

    batch = read(body, media_type, known)

    assert str(batch.schema) == expected
    assert batch.x.shape == (2, *batch.schema.shape)
    assert batch.x.dtype == x.dtype
    np.testing.assert_array_equal(batch.x, x.reshape(batch.x.shape))
    assert batch.labels is None


@pytest.mark.parametrize(
    ("y", "expected"),
    [
        pytest.param([3, None], np.array([3, -1]), id="integers"),
        pytest.param(["a", None], ["a", ""], id="strings"),
        pytest.param([2**63 - 1, 0], np.array([2**63 - 1, 0]), id="largest integer"),
        pytest.param(["é" * 64, "\U0001f600"], ["é" * 64, "\U0001f600"], id="longest string"),
        pytest.param([None, None], None, id="all unlabelled"),
        pytest.param(None, None, id="null"),
    ],
)
def test_json_labels_become_wire_labels(y: object, expected: Labels | None) -> None:
    batch = read(document(x=[[0.5, 1], [2, 3]], y=y))

    assert _plain(batch.labels) == _plain(expected)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        pytest.param(np.array([3, -1]), [3, -1], id="integers"),
        pytest.param(["a", ""], ["a", ""], id="strings"),
        pytest.param(np.array([-1, -1]), None, id="no integer"),
        pytest.param(["", ""], None, id="no string"),
    ],
)
def test_safetensors_labels_become_wire_labels(labels: Labels, expected: Labels | None) -> None:
    batch = read(encode(np.zeros((2, 2), np.float32), labels), SAFETENSORS)

    assert _plain(batch.labels) == expected


@pytest.mark.parametrize(
    ("x", "known", "dtype"),
    [
        pytest.param([[[0, 255]] * 8], None, "uint8", id="integers of rank 3 are pixels"),
        pytest.param([[0, 255]], None, "float32", id="integers of rank 2 are a vector"),
        pytest.param([[[0, 1]] * 3], SERIES, "float32", id="integers on a stream of series"),
        pytest.param([[0, 1]], VECTOR, "float32", id="integers on a stream of vectors"),
    ],
)
def test_without_dtype_the_stream_decides_what_integers_are(
    x: list[Any], known: InputSchema | None, dtype: str
) -> None:
    wide = [[row * 4 for row in sample] for sample in x] if dtype == "uint8" else x

    assert read(document(x=wide), JSON, known).x.dtype == dtype


def test_a_safetensors_body_goes_into_the_log_as_it_came() -> None:
    body = encode(PIXELS, ["a", ""])

    taken = submission(body, SAFETENSORS, read(body, SAFETENSORS), idempotency_key=None)

    assert taken.payload is body
    assert (taken.n, taken.labels_kind, taken.distinct_labels) == (2, "string", ["a"])


def test_a_json_body_goes_into_the_log_as_the_tensors_it_spells() -> None:
    body = document(x=PIXELS.tolist(), y=[7, None])

    taken = submission(body, JSON, read(body), idempotency_key=None)

    x, labels = decode_payload(taken.payload)
    assert taken.schema is not None
    np.testing.assert_array_equal(taken.schema.canonical(x), PIXELS[..., None])
    assert _plain(labels) == [7, -1]
    assert (taken.labels_kind, taken.distinct_labels) == ("int", [7])


# What is refused


@pytest.mark.parametrize(
    ("status", "code", "body"), [pytest.param(*row[1:], id=row[0]) for row in BAD_JSON]
)
def test_bad_json_is_refused(status: int, code: str, body: bytes) -> None:
    with pytest.raises(ServiceError) as refused:
        read(body)

    assert (refused.value.status, refused.value.code) == (status, code)
    assert len(refused.value.message) < 200


@pytest.mark.parametrize(
    ("status", "code", "body"), [pytest.param(*row[1:], id=row[0]) for row in BAD_TENSORS]
)
def test_bad_safetensors_are_refused(status: int, code: str, body: bytes) -> None:
    with pytest.raises(ServiceError) as refused:
        read(body, SAFETENSORS)

    assert (refused.value.status, refused.value.code) == (status, code)
    assert len(refused.value.message) < 200


@pytest.mark.parametrize(
    ("body", "media_type"),
    [
        pytest.param(document(x=[[1.0, 2.0]], y=[1]), JSON, id="y in JSON"),
        pytest.param(encode(np.zeros((1, 2), np.float32), np.array([1])), SAFETENSORS, id="y"),
        pytest.param(encode(np.zeros((1, 2), np.float32), ["a"]), SAFETENSORS, id="metadata"),
    ],
)
def test_predict_refuses_labels(body: bytes, media_type: str) -> None:
    with pytest.raises(ServiceError) as refused:
        read(body, media_type, labels_allowed=False)

    assert refused.value.code == "unknown_field"


def test_a_batch_of_another_schema_is_refused_by_name() -> None:
    with pytest.raises(
        ServiceError, match=r"expected samples of vector:2, got vector:3"
    ) as refused:
        read(document(x=[[1, 2, 3]]), JSON, VECTOR)

    assert refused.value.code == "schema_mismatch"


def test_a_message_names_the_bound_the_value_and_the_sample() -> None:
    with pytest.raises(ServiceError, match=r"from 0 to 255 in x, got 300 at sample 1$"):
        read(document(x=[[[0] * 8] * 8, [[0] * 7 + [300]] * 8]))


@pytest.mark.parametrize(
    "body",
    [
        document(x=[[CANARY]]),
        document(x=CANARY),
        document(x=[[1]], y=[CANARY * 10]),
        document(x=[[1]], dtype=CANARY),
        document(x=[[1]], y=CANARY),
        CANARY.encode(),
    ],
)
def test_a_message_does_not_echo_the_body(body: bytes) -> None:
    with pytest.raises(ServiceError) as refused:
        read(body)

    assert CANARY not in refused.value.message


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(only_x("F32", [0, 10**15], 0, 0), id="extent 0"),
        pytest.param(X_TWICE, id="a name twice"),
        pytest.param(with_metadata({"a": "b"}), id="metadata"),
        pytest.param(encode(np.full((1, 2), np.nan, np.float32), None), id="NaN"),
    ],
)
def test_the_library_alone_accepts_what_the_codec_refuses(body: bytes) -> None:
    assert "x" in safetensors.numpy.load(body)  # the control: without our check it goes through

    with pytest.raises(ServiceError):
        read(body, SAFETENSORS)


# Anything at all

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=20,
)
bodies = st.fixed_dictionaries(
    {}, optional={"x": json_values, "y": json_values, "dtype": json_values}
)
numbers = st.integers(-1, 300) | st.floats(width=32)
labels = st.none() | st.integers(-1, 2**64) | st.text(max_size=70)


def _accepts_or_refuses(body: bytes, media_type: str) -> None:
    try:
        batch = read(body, media_type)
    except (BadRequest, TooLarge, Unprocessable):
        return
    taken = submission(body, media_type, batch, idempotency_key=None)
    x, labels = decode_payload(taken.payload)  # as the worker will read it
    np.testing.assert_array_equal(batch.schema.canonical(x), batch.x)
    assert batch.labels is None or _plain(labels) == _plain(batch.labels)


@given(json_values | bodies)
def test_any_json_is_accepted_or_refused(value: object) -> None:
    _accepts_or_refuses(json.dumps(value).encode(), JSON)


@given(
    st.lists(
        st.lists(st.lists(numbers, min_size=2, max_size=2), min_size=1, max_size=2), max_size=3
    ),
    st.none() | st.lists(labels, max_size=3),
)
def test_almost_right_json_is_accepted_or_refused(x: list[Any], y: list[Any] | None) -> None:
    _accepts_or_refuses(document(x=x, y=y, dtype="float32"), JSON)


@given(st.binary(max_size=200))
def test_any_bytes_are_accepted_or_refused(body: bytes) -> None:
    _accepts_or_refuses(body, JSON)
    _accepts_or_refuses(body, SAFETENSORS)


@given(json_values, st.binary(max_size=32))
def test_any_safetensors_header_is_accepted_or_refused(header: object, data: bytes) -> None:
    _accepts_or_refuses(tensors(json.dumps(header).encode(), data), SAFETENSORS)


@given(
    st.dictionaries(
        st.sampled_from(["x", "y", "z", "__metadata__"]),
        st.fixed_dictionaries(
            {
                "dtype": st.sampled_from(["U8", "F32", "I64", "F16"]),
                "shape": st.lists(st.integers(-1, 3), max_size=5),
                "data_offsets": st.lists(st.integers(-1, 24), min_size=1, max_size=3),
            }
        )
        | st.fixed_dictionaries({"labels": st.sampled_from(['["a"]', '["", "b"]', "[1]"])}),
    ),
    st.binary(max_size=32),
)
def test_almost_right_headers_are_accepted_or_refused(header: dict[str, Any], data: bytes) -> None:
    _accepts_or_refuses(tensors(header, data), SAFETENSORS)


@given(st.data())
def test_a_damaged_body_is_accepted_or_refused(data: st.DataObject) -> None:
    body = bytearray(encode(np.ones((2, 2), np.float32), ["a", ""]))
    position = data.draw(st.integers(0, len(body) - 1))
    body[position] = data.draw(st.integers(0, 255))

    _accepts_or_refuses(bytes(body), SAFETENSORS)


def _plain(labels: Labels | None) -> list[int] | list[str] | None:
    if labels is None:
        return None
    return labels.tolist() if isinstance(labels, np.ndarray) else list(labels)
