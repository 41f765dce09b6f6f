"""Bodies of /observe and /labels that are refused, with status and code; how they are made."""

import json
import struct
from typing import Any

import numpy as np

from service.store.entry import encode


def document(**fields: object) -> bytes:
    return json.dumps(fields).encode()


def tensors(
    header: dict[str, Any] | bytes, data: bytes = b"", *, length: int | None = None
) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(dtype: str, shape: list[int], begin: float, end: float) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


VECTOR_TENSOR = tensor("F32", [2, 2], 0, 16)
VECTOR_BYTES = np.zeros((2, 2), np.float32).tobytes()


def only_x(dtype: str, shape: list[int], begin: float, end: float) -> bytes:
    return tensors({"x": tensor(dtype, shape, begin, end)}, bytes(max(0, int(end))))


def with_y(
    shape: list[int], begin: int, end: int, metadata: object = None, *, dtype: str = "I64"
) -> bytes:
    header: dict[str, Any] = {"x": VECTOR_TENSOR, "y": tensor(dtype, shape, begin, end)}
    if metadata is not None:
        header["__metadata__"] = metadata
    return tensors(header, bytes(end))


def with_metadata(metadata: object) -> bytes:
    return tensors({"x": VECTOR_TENSOR, "__metadata__": metadata}, VECTOR_BYTES)


BAD_JSON = [
    ("not json", 400, "bad_json", b"{"),
    ("empty body", 400, "bad_json", b""),
    ("bad utf-8", 400, "bad_json", b'{"x": "\xff"}'),
    ("a byte order mark", 400, "bad_json", b'\xef\xbb\xbf{"x": [[1]]}'),
    ("NaN", 400, "bad_json", b'{"x": [[NaN]]}'),
    ("Infinity", 400, "bad_json", b'{"x": [[-Infinity]]}'),
    ("a name twice", 400, "bad_json", b'{"x": [[1]], "x": [[2]]}'),
    ("100,000 levels", 400, "bad_json", b"[" * 100_000),
    ("an integer of 5,000 digits", 400, "bad_json", b'{"x": [[' + b"9" * 5000 + b"]]}"),
    ("no object", 422, "bad_body", b"[[1, 2]]"),
    ("unknown field", 422, "unknown_field", document(x=[[1]], z=1)),
    ("a lone surrogate as name", 422, "unknown_field", b'{"x": [[1]], "\\ud800": 1}'),
    ("no x", 422, "missing_field", document(y=[1])),
    ("null x", 422, "bad_shape", document(x=None)),
    ("empty batch", 422, "empty_batch", document(x=[])),
    ("empty samples", 422, "bad_shape", document(x=[[], []])),
    ("too many samples", 413, "batch_too_large", document(x=[[1.0]] * 17)),
    ("rank 1", 422, "bad_shape", document(x=[1, 2])),
    ("rank 5", 422, "bad_shape", document(x=[[[[[1]]]]])),
    ("ragged", 422, "bad_shape", document(x=[[1, 2], [1]])),
    ("ragged with a number", 422, "bad_shape", document(x=[[1, 2], 3])),
    ("ragged within", 422, "bad_value", document(x=[[1, [2]]])),
    ("text for a number", 422, "bad_value", document(x=[[1, "2"]])),
    ("a boolean for a number", 422, "bad_value", document(x=[[1, True]])),
    ("null for a number", 422, "bad_value", document(x=[[1, None]])),
    ("unknown dtype", 422, "bad_dtype", document(x=[[1]], dtype="int64")),
    ("dtype that is a list", 422, "bad_dtype", document(x=[[1]], dtype=["uint8"])),
    ("fractions as uint8", 422, "bad_dtype", document(x=[[[0.5]]], dtype="uint8")),
    ("vectors as uint8", 422, "bad_shape", document(x=[[1, 2]], dtype="uint8")),
    ("a pixel of 256", 422, "out_of_range", document(x=[[[256] * 8] * 8])),
    ("a pixel of -1", 422, "out_of_range", document(x=[[[-1] * 8] * 8])),
    ("a huge pixel", 422, "out_of_range", document(x=[[[10**400] * 8] * 8])),
    ("a float pixel of 1.5", 422, "out_of_range", document(x=[[[[1.5]] * 8] * 8])),
    ("a float pixel below 0", 422, "out_of_range", document(x=[[[[-0.01]] * 8] * 8])),
    ("1e400", 422, "not_finite", b'{"x": [[0.5, 1e400]]}'),
    ("beyond float32", 422, "not_finite", document(x=[[0.5, 1e39]])),
    ("an integer beyond floats", 422, "not_finite", document(x=[[10**400, 1]])),
    ("sides too small", 422, "bad_shape", document(x=[[[1] * 7] * 7])),
    ("sides too large", 422, "bad_shape", document(x=[[[1] * 129] * 8])),
    ("two channels", 422, "bad_shape", document(x=[[[[1, 2]] * 8] * 8])),
    ("labels that are no list", 422, "bad_label", document(x=[[1]], y=3)),
    ("fewer labels", 422, "label_count", document(x=[[1], [2]], y=[1])),
    ("more labels", 422, "label_count", document(x=[[1]], y=[1, 2])),
    ("a negative label", 422, "bad_label", document(x=[[1]], y=[-1])),
    ("a label beyond int64", 422, "bad_label", document(x=[[1]], y=[2**63])),
    ("a boolean label", 422, "bad_label", document(x=[[1]], y=[True])),
    ("a fraction as label", 422, "bad_label", document(x=[[1]], y=[0.5])),
    ("a list as label", 422, "bad_label", document(x=[[1]], y=[[1]])),
    ("an empty label", 422, "bad_label", document(x=[[1]], y=[""])),
    ("a label of 65 characters", 422, "bad_label", document(x=[[1]], y=["a" * 65])),
    ("a label with a lone surrogate", 422, "bad_label", b'{"x": [[1]], "y": ["\\ud800"]}'),
    ("labels of two kinds", 422, "mixed_labels", document(x=[[1], [2]], y=[1, "a"])),
]
"""(what, status, code, body)"""
BAD_TENSORS = [
    ("empty body", 400, "bad_safetensors", b""),
    ("seven bytes", 400, "bad_safetensors", b"\0" * 7),
    ("a header over 64 KiB", 400, "bad_safetensors", tensors(b" " * (2**16 + 1))),
    ("a header longer than the body", 400, "bad_safetensors", tensors(b"{}", length=100)),
    ("a header of a quintillion bytes", 400, "bad_safetensors", tensors(b"{}", length=10**18)),
    ("a header that is no JSON", 400, "bad_json", tensors(b"{x}")),
    ("a header that is a list", 400, "bad_safetensors", tensors(b"[]")),
    ("a deep header", 400, "bad_json", tensors(b"[" * 60_000)),
    ("a name twice", 400, "bad_json", tensors(b'{"x": 1, "x": 1}')),
    ("a tensor that is a number", 400, "bad_safetensors", tensors({"x": 1})),
    ("a tensor without offsets", 400, "bad_safetensors", tensors({"x": {"dtype": "F32"}})),
    ("no x", 422, "missing_field", tensors({"y": tensor("I64", [1], 0, 8)}, b"\0" * 8)),
    ("nothing", 422, "missing_field", tensors({})),
    ("unknown tensor", 422, "unknown_field", tensors({"z": VECTOR_TENSOR}, VECTOR_BYTES)),
    ("bfloat16", 422, "bad_dtype", only_x("BF16", [1, 2], 0, 4)),
    ("a made-up dtype", 422, "bad_dtype", only_x("X", [1, 2], 0, 4)),
    ("x of integers", 422, "bad_dtype", only_x("I64", [1, 1], 0, 8)),
    ("rank 0", 422, "empty_batch", only_x("F32", [], 0, 4)),
    ("rank 5", 422, "bad_shape", only_x("F32", [1] * 5, 0, 4)),
    ("100 dimensions", 422, "bad_shape", only_x("F32", [1] * 100, 0, 4)),
    ("extent 0", 422, "bad_shape", only_x("F32", [0, 10**15], 0, 0)),
    ("a negative extent", 422, "bad_shape", only_x("F32", [-1, -1], 0, 4)),
    ("a boolean extent", 400, "bad_safetensors", only_x("F32", [True, 1], 0, 4)),
    ("a fraction as offset", 400, "bad_safetensors", only_x("U8", [1, 1], 0, 1.0)),
    ("a huge extent", 400, "bad_safetensors", only_x("F32", [10**4000, 2], 0, 4)),
    ("offsets before the data", 400, "bad_safetensors", only_x("F32", [1, 1], -4, 0)),
    ("bytes missing", 400, "bad_safetensors", tensors({"x": VECTOR_TENSOR}, VECTOR_BYTES[:-1])),
    ("bytes too many", 400, "bad_safetensors", tensors({"x": VECTOR_TENSOR}, VECTOR_BYTES + b"\0")),
    ("a hole", 400, "bad_safetensors", only_x("F32", [1, 1], 4, 8)),
    ("an overlap", 400, "bad_safetensors", with_y([2], 8, 16)),
    ("too many samples", 413, "batch_too_large", encode(np.zeros((17, 1), np.float32), None)),
    ("NaN", 422, "not_finite", encode(np.full((1, 2), np.nan, np.float32), None)),
    ("a float pixel of 2", 422, "out_of_range", encode(np.full((1, 8, 8, 1), 2, np.float32), None)),
    ("metadata that is a list", 400, "bad_safetensors", with_metadata([])),
    ("other metadata", 422, "unknown_field", with_metadata({"format": "pt"})),
    ("labels that are no JSON", 400, "bad_json", with_metadata({"labels": "["})),
    ("labels that are no text", 422, "bad_label", with_metadata({"labels": 1})),
    ("labels that are no list", 422, "bad_label", with_metadata({"labels": "{}"})),
    ("a lone surrogate in labels", 400, "bad_json", with_metadata({"labels": "\ud800"})),
    ("labels in both places", 422, "mixed_labels", with_y([2], 16, 32, {"labels": '["a"]'})),
    ("fewer labels", 422, "label_count", encode(np.zeros((2, 2), np.float32), ["a"])),
    ("a long label", 422, "bad_label", encode(np.zeros((1, 2), np.float32), ["a" * 65])),
    ("a label of -2", 422, "bad_label", encode(np.zeros((1, 2), np.float32), np.array([-2]))),
    ("labels of rank 2", 422, "bad_label", with_y([2, 1], 16, 32)),
    ("labels of bytes", 422, "bad_label", with_y([2], 16, 18, dtype="U8")),
]
"""(what, status, code, body)"""


def labels(*pairs: str) -> bytes:
    """Return a body of /labels, ID in it for the id of a sample."""
    listed = ", ".join(pairs).replace("ID", "a" * 32 + ":0")
    return b'{"labels": {' + listed.encode() + b"}}"


_BAD_IDS = {
    "an empty id": "",
    "an id without a sample": "a" * 32,
    "an id of no sample": "a" * 32 + ":",
    "a sample of -1": "a" * 32 + ":-1",
    "a sample of 01": "a" * 32 + ":01",
    "a sample of 1.0": "a" * 32 + ":1.0",
    "an id and an end of line": "a" * 32 + r":1\n",
    "a huge sample": "a" * 32 + ":" + "9" * 10,
    "an id in capitals": "A" * 32 + ":0",
    "an id that is a path": "../" * 11 + ":0",
    "an id of other digits": "\u0661" * 32 + ":0",
}
_BAD_VALUES = {
    "null": "null",
    "a boolean": "true",
    "a label of -1": "-1",
    "a fraction": "1.0",
    "a list as label": "[]",
    "an object as label": "{}",
    "an empty label": '""',
    "a long label": f'"{"x" * 65}"',
    "a huge label": str(2**63),
    "a lone surrogate": r'"\ud800"',
}
BAD_LABELS = [
    ("no JSON", 400, "bad_json", b""),
    ("an id twice", 400, "bad_json", labels('"ID": 1', '"ID": 2')),
    ("a list", 422, "bad_body", b"[]"),
    ("no labels", 422, "bad_body", b"{}"),
    ("an empty object", 422, "bad_body", labels()),
    ("a list of labels", 422, "bad_body", b'{"labels": [1]}'),
    ("more than labels", 422, "bad_body", b'{"labels": {"ID": 1}, "y": []}'),
    ("both kinds", 422, "mixed_labels", labels('"ID": 1', '"ID1": "a"')),
    ("the other kind", 422, "label_kind_mismatch", labels('"ID": "a"')),
    *((what, 422, "bad_sample_id", labels(f'"{one}": 1')) for what, one in _BAD_IDS.items()),
    *((what, 422, "bad_label", labels(f'"ID": {one}')) for what, one in _BAD_VALUES.items()),
]
"""(what, status, code, body) for a stream whose labels are integers"""
