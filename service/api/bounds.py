"""What a batch may be, whatever format it came in; everything else is refused with a reason.

A value out of bounds is never cut or rounded into them. Messages name the thing, the bound and
the value.
Dimension key: B batch; a sample has the shape of its InputSchema.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Self

import numpy as np
from fastapi import Path

from service.engine.protocol import Array, Labels
from service.errors import TooLarge, Unprocessable
from service.inputs import InputSchema
from service.settings import Settings

MAX_LABEL_CHARACTERS = 64
_BEFORE_THE_EDGE = 0.95
"""Share of the edge's deadlines after which a stream of lines is told that it is too slow."""
_BATCH_ID = re.compile(r"[0-9a-f]{32}")
BatchId = Annotated[str, Path(json_schema_extra={"pattern": f"^{_BATCH_ID.pattern}$"})]
"""A batch_id in a path, as the documents tell of it; `check_batch_id` checks it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much a request may carry."""

    max_body_bytes: int
    max_json_bytes: int
    """Of a JSON body, or of a line of JSON."""
    max_batch: int
    """Samples."""
    max_pixels: int
    """Of all its images together, before they are resized."""
    line_s: float
    """In which a line must come, and an answer be read."""
    stream_s: float
    """In which all lines must come."""

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Return the limits that the settings set."""
        return cls(
            max_body_bytes=settings.max_body_bytes,
            max_json_bytes=min(settings.max_json_bytes, settings.max_body_bytes),
            max_batch=settings.max_batch,
            max_pixels=settings.max_pixels,
            line_s=settings.receive_timeout_s * _BEFORE_THE_EDGE,
            stream_s=settings.stream_timeout_s * _BEFORE_THE_EDGE,
        )


def check_batch_id(batch_id: str) -> None:
    """Check that a batch_id is spelled as ours are.

    Raises:
        Unprocessable: `bad_batch_id`.
    """
    if not _BATCH_ID.fullmatch(batch_id):
        raise Unprocessable("bad_batch_id", "expected a batch_id of 32 hexadecimal digits")


def check_batch_size(n: int, max_batch: int) -> None:
    """Check that a batch has 1 to `max_batch` samples.

    Raises:
        Unprocessable: `empty_batch`.
        TooLarge: `batch_too_large`.
    """
    if n == 0:
        raise Unprocessable("empty_batch", "expected at least 1 sample in x, got 0")
    if n > max_batch:
        raise TooLarge("batch_too_large", f"expected at most {max_batch} samples in x, got {n}")


def check_samples(x: Array, known: InputSchema | None) -> InputSchema:
    """Return what the samples `x` [B, ...] are: the stream's schema, if that is `known`.

    Raises:
        Unprocessable: `bad_shape` for no input of ours, `schema_mismatch` for another stream's.
    """
    try:
        schema = InputSchema.of(x)
    except ValueError as error:
        raise Unprocessable("bad_shape", str(error)) from None
    if known is not None and schema != known:
        raise Unprocessable("schema_mismatch", f"expected samples of {known}, got {schema}")
    return schema


def check_values(x: Array, schema: InputSchema) -> None:
    """Check that float samples `x` [B, ...] are finite, and those of images within 0 to 1.

    Raises:
        Unprocessable: `not_finite` or `out_of_range`, with the index of the first such sample.
    """
    if x.dtype == np.uint8:
        return
    finite = np.isfinite(x)
    if not finite.all():
        where, value = _first(~finite, x)
        raise Unprocessable(
            "not_finite", f"expected finite float32 values in x, got {value} {where}"
        )
    if schema.kind != "image":
        return
    outside = (x < 0) | (x > 1)
    if outside.any():
        where, value = _first(outside, x)
        raise Unprocessable(
            "out_of_range", f"expected float32 image values from 0 to 1 in x, got {value} {where}"
        )


def _first(fault: Array, x: Array) -> tuple[str, object]:
    """Return where the first True of `fault` [B, ...] lies, in words, and the value there."""
    position = int(fault.argmax())
    return at_sample(position, x.size // len(x)), x.flat[position]


def at_sample(position: int, values_per_sample: int) -> str:
    """Return in words which sample holds the value at `position` of the flattened batch."""
    return f"at sample {position // values_per_sample}"


def check_labels(labels: Labels, n: int) -> None:
    """Check that there is one label a sample and that each is one a stream may have.

    Raises:
        Unprocessable: `label_count` or `bad_label`, with the index of the first such sample.
    """
    if len(labels) != n:
        raise Unprocessable("label_count", f"expected {n} labels, one a sample, got {len(labels)}")
    if isinstance(labels, np.ndarray):
        if (labels < -1).any():
            index = int((labels < -1).argmax())
            raise Unprocessable(
                "bad_label",
                f"expected labels of integers >= 0, or -1 for none, got {labels[index]} "
                f"at sample {index}",
            )
    else:
        _check_string_labels(labels)


def _check_string_labels(labels: Sequence[str]) -> None:
    for index, label in enumerate(labels):
        if len(label) > MAX_LABEL_CHARACTERS:
            raise Unprocessable(
                "bad_label",
                f"expected labels of at most {MAX_LABEL_CHARACTERS} characters, "
                f"got {len(label)} at sample {index}",
            )
        if not label.isascii() and any("\ud800" <= letter <= "\udfff" for letter in label):
            raise Unprocessable(
                "bad_label",
                f"expected labels of Unicode text, got a lone surrogate at sample {index}",
            )
