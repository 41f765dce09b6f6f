"""JSON bodies to arrays: `{"x": nested lists, "y": labels, "dtype": "uint8" | "float32"}`.

Samples that are images may also be PNG or JPEG files, each as a string of base64.

The standard parser, behind checks of its own: it takes NaN, doubled names and lone surrogates,
and numpy takes booleans and strings for numbers. Flattening a level at a time keeps every pass
over the numbers in C; no model is built of them.
Dimension key: B batch; a sample has the shape of its InputSchema.
"""

import json
from collections.abc import Sequence
from itertools import chain
from math import prod
from types import NoneType
from typing import Any, Literal, NoReturn

import numpy as np

from service.api.bounds import Limits, at_sample, check_batch_size
from service.api.image_body import from_base64, read_images
from service.engine.protocol import Array, Labels
from service.errors import BadRequest, Unprocessable
from service.inputs import InputSchema

MAX_RANK = 4
_IMAGE_RANK = 3
"""Least rank of a batch of images: [B, H, W]."""
_PIXEL_MAX = 255
_BRIEF_DIGITS = 24
_DTYPES = ("uint8", "float32")
INT64_MAX = 2**63 - 1


def parse_json(text: bytes) -> Any:  # noqa: ANN401  whatever JSON says
    """Return the JSON value of `text`.

    Raises:
        BadRequest: `bad_json` for anything RFC 8259 does not allow, NaN and doubled names
            included, and for nesting or integers too deep or long to read.
    """
    try:
        return json.loads(
            text.decode(), object_pairs_hook=_without_doubles, parse_constant=_refuse_constant
        )
    except UnicodeDecodeError as error:
        raise BadRequest("bad_json", f"expected UTF-8, got another byte at {error.start}") from None
    except json.JSONDecodeError as error:
        raise BadRequest("bad_json", f"expected JSON: {error.msg} at {error.pos}") from None
    except RecursionError:
        raise BadRequest("bad_json", "expected JSON, got nesting too deep to read") from None
    except ValueError:
        raise BadRequest("bad_json", "expected JSON, got an integer too long to read") from None


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise BadRequest("bad_json", "expected every name once in a JSON object, got one twice")
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise BadRequest("bad_json", f"expected JSON numbers, got {name}")


def read_json(
    body: bytes, *, known: InputSchema | None, limits: Limits, fields: Sequence[str]
) -> tuple[Array, Labels | None]:
    """Return the samples [B, ...] as uint8 or float32, and the labels, of a JSON body.

    Without `dtype`, integers are uint8 where images are expected (`known`) or, on a stream that
    has no schema yet, likely (rank 3 and 4); everything else is float32.

    Args:
        body: the request's body.
        known: what the stream's samples are, if that is settled.
        limits: most samples and pixels.
        fields: names the body may have.

    Raises:
        ServiceError: naming what is wrong with the body.
    """
    document = parse_json(body)
    if not isinstance(document, dict):
        raise Unprocessable("bad_body", f"expected a JSON object, got {_kind(document)}")
    for name in document:
        if name not in fields:
            raise Unprocessable(
                "unknown_field", f"expected only the fields {', '.join(fields)}, got {name[:40]!a}"
            )
    if "x" not in document:
        raise Unprocessable("missing_field", "expected the field x, got none")
    x = _samples(document["x"], document.get("dtype"), known, limits)
    return x, read_labels(document.get("y"))


def may_hold_images(body: bytes) -> bool:
    """Say whether a string of the JSON `body` may be a PNG or JPEG file in base64.

    Such a string begins with the format's magic number, unless it is spelled with escapes.
    """
    return any(sign in body for sign in (b"iVBORw0K", b"/9j/", b"\\"))


def _samples(x: object, dtype: object, known: InputSchema | None, limits: Limits) -> Array:
    """Return the array that the nested lists `x`, or its images, spell."""
    if dtype is not None and dtype not in _DTYPES:
        raise Unprocessable("bad_dtype", "expected dtype uint8 or float32, got another value")
    if not isinstance(x, list):
        raise Unprocessable("bad_shape", f"expected x as a list of samples, got {_kind(x)}")
    check_batch_size(len(x), limits.max_batch)
    if isinstance(x[0], str):
        return _images(x, dtype, known, limits)
    leaves, shape = _flatten(x)
    integers = _check_numbers(leaves, len(x))
    if dtype is None:
        images = len(shape) >= _IMAGE_RANK if known is None else known.kind == "image"
        dtype = "uint8" if images and integers else "float32"
    return (
        _float32(leaves, shape) if dtype == "float32" else _uint8(leaves, shape, integers=integers)
    )


def _images(x: list[Any], dtype: object, known: InputSchema | None, limits: Limits) -> Array:
    """Return the images that the strings `x` hold."""
    if dtype == "float32":
        raise Unprocessable("bad_dtype", "expected dtype uint8 for images, got float32")
    for index, file in enumerate(x):
        if not isinstance(file, str):
            raise Unprocessable(
                "bad_value",
                f"expected an image in base64 like sample 0, got {_kind(file)} at sample {index}",
            )
    return read_images(from_base64(x), known=known, limits=limits)


def read_numbers(
    data: list[Any], shape: tuple[int, ...], dtype: Literal["uint8", "float32"]
) -> Array:
    """Return the array of `shape` whose values `data` lists, flat in row-major order or nested.

    Raises:
        Unprocessable: the values are not of that number, shape or dtype.
    """
    leaves, found = _flatten(data) if data else (data, (0,))
    if found not in (shape, (prod(shape),)):
        raise Unprocessable(
            "bad_shape", f"expected x of shape {list(shape)}, or flat, got {list(found)}"
        )
    integers = _check_numbers(leaves, shape[0])
    return (
        _float32(leaves, shape) if dtype == "float32" else _uint8(leaves, shape, integers=integers)
    )


def _flatten(x: list[Any]) -> tuple[list[Any], tuple[int, ...]]:
    """Return the innermost values of the nested lists `x`, in order, and the shape."""
    shape = [len(x)]
    leaves = x
    while isinstance(leaves[0], list):
        if len(shape) == MAX_RANK:
            raise Unprocessable("bad_shape", f"expected x of rank <= {MAX_RANK}, got more")
        width = len(leaves[0])
        if width == 0:
            raise Unprocessable("bad_shape", "expected every extent of x >= 1, got 0")
        _check_level(leaves, width, len(x))
        shape.append(width)
        leaves = list(chain.from_iterable(leaves))
    return leaves, tuple(shape)


def _check_level(level: list[Any], width: int, n: int) -> None:
    """Check that all of one nesting level are lists of `width`."""
    if set(map(type, level)) == {list} and set(map(len, level)) == {width}:
        return
    for position, part in enumerate(level):
        if not isinstance(part, list) or len(part) != width:
            found = f"{len(part)} long" if isinstance(part, list) else _kind(part)
            raise Unprocessable(
                "bad_shape",
                f"expected lists of equal length in x, got {width} long at sample 0 and {found} "
                + at_sample(position, len(level) // n),
            )


def _check_numbers(leaves: list[Any], n: int) -> bool:
    """Say whether all leaves are integers; refuse those that are no numbers."""
    kinds = set(map(type, leaves))
    if kinds <= {int, float}:
        return kinds == {int}
    position = next(i for i, leaf in enumerate(leaves) if type(leaf) not in (int, float))
    raise Unprocessable(
        "bad_value",
        f"expected numbers in x, got {_kind(leaves[position])} "
        + at_sample(position, len(leaves) // n),
    )


def _uint8(leaves: list[Any], shape: tuple[int, ...], *, integers: bool) -> Array:
    if not integers:
        raise Unprocessable("bad_dtype", "expected integers in x of dtype uint8, got a fraction")
    if min(leaves) < 0 or max(leaves) > _PIXEL_MAX:
        position = next(i for i, leaf in enumerate(leaves) if not 0 <= leaf <= _PIXEL_MAX)
        raise Unprocessable(
            "out_of_range",
            f"expected integers from 0 to {_PIXEL_MAX} in x, got {brief(leaves[position])} "
            + at_sample(position, len(leaves) // shape[0]),
        )
    return np.array(leaves, np.uint8).reshape(shape)


def _float32(leaves: list[int | float], shape: tuple[int, ...]) -> Array:
    try:
        with np.errstate(over="ignore"):  # becomes infinite, and is refused as such
            return np.array(leaves, np.float64).astype(np.float32).reshape(shape)
    except OverflowError:  # an integer beyond every float
        raise Unprocessable(
            "not_finite", "expected finite float32 values in x, got a larger integer"
        ) from None


def read_labels(y: object) -> Labels | None:
    """Return the labels that a JSON list spells, or None where there is no list.

    Raises:
        Unprocessable: `bad_label` or `mixed_labels`, with the index of the first such sample.
    """
    if y is None:
        return None
    if not isinstance(y, list):
        raise Unprocessable("bad_label", f"expected y as a list of labels, got {_kind(y)}")
    kinds = set(map(type, y)) - {NoneType}
    if kinds == {int}:
        return _int_labels(y)
    if kinds == {str}:
        return _string_labels(y)
    if kinds == {int, str}:
        raise Unprocessable("mixed_labels", "expected labels of one kind, got integers and strings")
    for index, label in enumerate(y):
        if not isinstance(label, NoneType | int | str) or isinstance(label, bool):
            raise Unprocessable(
                "bad_label",
                f"expected integers, strings or null in y, got {_kind(label)} at sample {index}",
            )
    return np.full(len(y), -1, np.int64)


def _int_labels(y: list[int | None]) -> Labels:
    for index, label in enumerate(y):
        if label is not None and not 0 <= label <= INT64_MAX:
            raise Unprocessable(
                "bad_label",
                f"expected labels of integers from 0 to {INT64_MAX}, or null for none, "
                f"got {brief(label)} at sample {index}",
            )
    return np.array([-1 if label is None else label for label in y], np.int64)


def _string_labels(y: list[str | None]) -> Labels:
    if "" in y:
        raise Unprocessable(
            "bad_label",
            "expected labels of at least 1 character, or null for none, got an empty one "
            f"at sample {y.index('')}",
        )
    return ["" if label is None else label for label in y]


_KINDS = {NoneType: "null", bool: "a boolean", str: "a string", list: "a list", dict: "an object"}


def _kind(value: object) -> str:
    return _KINDS.get(type(value), "a number")


def brief(value: int) -> str:
    """Return the integer as text, or its beginning where it is long."""
    digits = str(value)
    if len(digits) <= _BRIEF_DIGITS:
        return digits
    return f"{digits[:_BRIEF_DIGITS]}... ({len(digits)} digits)"
