"""Requests to arrays: the body is read, decoded and checked, off the event loop where it is big.

JSON is for small batches and by hand, PNG and JPEG for single images, safetensors for everything
else; a valid safetensors body goes into the log as it came. The log holds arrays, never images in
a format, so that a replay does not depend on who decodes them. The message of a refusal names the
thing, the bound and the value, and quotes no more of the body than that.
"""

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
from starlette.requests import Request

from service.api.body import (
    IMAGES,
    JSON,
    OCTETS,
    SAFETENSORS,
    media_type_of,
    query_label,
    read_body,
    refuse_encoding,
    refuse_query_label,
)
from service.api.bounds import Limits, check_labels, check_samples, check_values
from service.api.image_body import read_images
from service.api.json_body import may_hold_images, read_json
from service.api.labels_body import read_given
from service.api.oip_body import HEADER_LENGTH, Inference, json_length, read_inference
from service.api.tensor_body import read_tensors
from service.engine.protocol import Array, Label, Labels
from service.errors import TooLarge
from service.inputs import InputSchema
from service.settings import Settings
from service.store.entry import encode
from service.store.stream_schema import StreamSchema
from service.store.submission import Submission

_SMALL_BYTES = 16 * 2**10
"""Bodies up to this size are decoded on the event loop: it takes less than a millisecond."""
_DECODERS = 2
"""Threads for bigger ones and for images; few, as 16 million pixels take some 200 MB for a moment.
The JSON parser holds the interpreter's lock (some 50 ms a MiB): no thread helps, a limit does."""
_JSON_ADVICE = "; application/x-safetensors, image/png and image/jpeg may be larger"
_BINARY_ADVICE = "; tensors as binary data may be larger"
_T = TypeVar("_T")
Taken = tuple[Submission, Sequence[bool]]
"""What the log takes in of a batch, and which of its samples have a label."""


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """A request's samples and labels, checked."""

    schema: InputSchema
    x: Array
    """[B, *schema.shape], uint8 or float32."""
    labels: Labels | None
    """One a sample; None where no sample has one."""


def decode(
    body: bytes,
    media_type: str,
    *,
    known: InputSchema | None,
    limits: Limits,
    labels_allowed: bool = True,
    label: Label | None = None,
) -> Batch:
    """Return the batch that `body` spells.

    Args:
        body: the request's body.
        media_type: `application/json`, `application/x-safetensors`, or an image's.
        known: what the stream's samples are; None before the first batch settles it.
        limits: most samples and pixels.
        labels_allowed: False for /predict, whose bodies have none.
        label: of an image, which cannot say it itself.

    Raises:
        ServiceError: 400, 413 or 422, naming what is wrong.
    """
    labels: Labels | None
    if media_type in IMAGES:
        x = read_images([body], known=known, limits=limits, formats=[IMAGES[media_type]])
        labels = np.array([label]) if isinstance(label, int) else [label or ""]
    elif media_type == JSON:
        fields = ("x", "y", "dtype") if labels_allowed else ("x", "dtype")
        x, labels = read_json(body, known=known, limits=limits, fields=fields)
    else:
        x, labels = read_tensors(body, max_batch=limits.max_batch, labels_allowed=labels_allowed)
    return _checked(x, labels, known)


def submission(
    body: bytes,
    media_type: str,
    batch: Batch,
    *,
    idempotency_key: str | None,
    label: Label | None = None,
) -> Submission:
    """Return what the log takes in for `batch`, which `body` spelled, perhaps with a `label`."""
    distinct: list[Label] = []
    if isinstance(batch.labels, np.ndarray):
        distinct = np.unique(batch.labels[batch.labels >= 0]).tolist()
    elif batch.labels is not None:
        distinct = sorted(set(batch.labels) - {""})
    return Submission(
        schema=batch.schema,
        labels_kind=None if not distinct else "string" if isinstance(distinct[0], str) else "int",
        n=len(batch.x),
        distinct_labels=distinct,
        payload=body if media_type == SAFETENSORS else encode(batch.x, batch.labels),
        idempotency_key=idempotency_key,
        digest=hashlib.sha256(
            body if label is None else b"%b?label=%a" % (body, label)
        ).hexdigest(),
    )


class Codec:
    """Reads requests within the bounds of the settings."""

    def __init__(self, settings: Settings) -> None:
        self.limits = Limits.of(settings)
        self._decoders = ThreadPoolExecutor(_DECODERS, thread_name_prefix="decode")

    async def observation(
        self, request: Request, *, settled: StreamSchema | None, idempotency_key: str | None
    ) -> Taken:
        """Return what the log takes in, and which of its samples have a label.

        Raises:
            ServiceError: 400, 413, 415 or 422, naming what is wrong.
        """
        media_type = media_type_of(request, JSON, SAFETENSORS, *IMAGES)
        label: Label | None = None
        if media_type in IMAGES:
            label = query_label(request, None if settled is None else settled.labels)
        else:
            refuse_query_label(request)
        body = await self._read(request, media_type)
        return await self._observed(body, media_type, settled, idempotency_key, label)

    async def line(
        self, line: bytes, *, settled: StreamSchema | None, idempotency_key: str | None
    ) -> Taken:
        """Return the same of one line of JSON.

        Raises:
            ServiceError: 400, 413 or 422, naming what is wrong.
        """
        return await self._observed(line, JSON, settled, idempotency_key, None)

    async def late_labels(self, request: Request) -> Submission:
        """Return what the log takes in for labels by sample id.

        Raises:
            ServiceError: 400, 413, 415 or 422, naming what is wrong.
        """
        body = await self._read(request, media_type_of(request, JSON))
        return await self._run(lambda body, _: read_given(body, self.limits), body, JSON)

    async def samples(self, request: Request, *, known: InputSchema | None) -> Batch:
        """Return the samples to predict.

        Raises:
            ServiceError: 400, 413, 415 or 422, naming what is wrong.
        """
        media_type = media_type_of(request, JSON, SAFETENSORS, *IMAGES)
        refuse_query_label(request)
        body = await self._read(request, media_type)
        read = partial(decode, known=known, limits=self.limits, labels_allowed=False)
        return await self._run(read, body, media_type)

    async def inference(self, request: Request, *, known: InputSchema) -> tuple[Inference, Batch]:
        """Return what a request of the Open Inference Protocol asks, and the samples.

        Raises:
            ServiceError: 400, 413, 415 or 422, naming what is wrong.
        """
        body, json_bytes = await self._read_inference(request, type_required=False)

        def read(body: bytes, _: str) -> tuple[Inference, Batch]:
            """Return both."""
            asked = read_inference(
                body, json_bytes, max_batch=self.limits.max_batch, labels_allowed=False
            )
            return asked, _checked(asked.x, None, known)

        return await self._run(read, body, OCTETS)

    async def tensors(
        self, request: Request, settled: StreamSchema | None, idempotency_key: str | None
    ) -> Taken:
        """Return what the log takes in of such a request, and which samples have a label.

        Raises:
            ServiceError: 400, 413, 415 or 422, naming what is wrong.
        """
        body, json_bytes = await self._read_inference(request, type_required=True)
        known = None if settled is None else settled.input

        def read(body: bytes, media_type: str) -> Taken:
            """Return both."""
            asked = read_inference(
                body, json_bytes, max_batch=self.limits.max_batch, labels_allowed=True
            )
            batch = _checked(asked.x, asked.labels, known)
            taken = submission(body, media_type, batch, idempotency_key=idempotency_key)
            return taken, _labelled(batch.labels, len(batch.x))

        return await self._run(read, body, OCTETS)

    async def _observed(
        self,
        body: bytes,
        media_type: str,
        settled: StreamSchema | None,
        idempotency_key: str | None,
        label: Label | None,
    ) -> Taken:
        known = None if settled is None else settled.input

        def read(body: bytes, media_type: str) -> Taken:
            batch = decode(body, media_type, known=known, limits=self.limits, label=label)
            taken = submission(
                body, media_type, batch, idempotency_key=idempotency_key, label=label
            )
            return taken, _labelled(batch.labels, len(batch.x))

        return await self._run(read, body, media_type)

    async def _read(self, request: Request, media_type: str) -> bytes:
        if media_type == JSON:
            return await read_body(request, self.limits.max_json_bytes, advice=_JSON_ADVICE)
        return await read_body(request, self.limits.max_body_bytes)

    async def _read_inference(self, request: Request, *, type_required: bool) -> tuple[bytes, int]:
        """Return the body, and how many of its bytes are the JSON object.

        tritonclient sends no Content-Type. Where something is stored that takes the header, too: a
        web page of another origin can leave out the type, but send no header without asking.
        """
        said = request.headers.get(HEADER_LENGTH)
        refuse_encoding(request)
        if "content-type" in request.headers or (type_required and said is None):
            media_type_of(request, JSON, OCTETS)
        if said is None:
            body = await read_body(request, self.limits.max_json_bytes, advice=_BINARY_ADVICE)
        else:
            body = await read_body(request, self.limits.max_body_bytes)
        json_bytes = json_length(said, len(body))
        if json_bytes > self.limits.max_json_bytes:
            raise TooLarge(
                "body_too_large",
                f"expected a JSON object of at most {self.limits.max_json_bytes} bytes, "
                f"got {json_bytes}{_BINARY_ADVICE}",
            )
        return body, json_bytes

    async def _run(self, read: Callable[[bytes, str], _T], body: bytes, media_type: str) -> _T:
        """Return what `read` makes of the body, in a thread where it may take a millisecond."""
        images = media_type in IMAGES or (media_type == JSON and may_hold_images(body))
        if len(body) <= _SMALL_BYTES and not images:
            return read(body, media_type)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._decoders, read, body, media_type)

    def close(self) -> None:
        """End the threads; what they decode is dropped."""
        self._decoders.shutdown(wait=False, cancel_futures=True)


def _checked(x: Array, labels: Labels | None, known: InputSchema | None) -> Batch:
    """Return the batch of `x` [B, ...] and `labels`, which are what the stream accepts."""
    schema = check_samples(x, known)
    check_values(x, schema)
    if labels is not None:
        check_labels(labels, len(x))
    return Batch(schema, schema.canonical(x), labels if any(_labelled(labels, len(x))) else None)


def _labelled(labels: Labels | None, n: int) -> list[bool]:
    """Return which of n samples have a label."""
    if labels is None:
        return [False] * n
    if isinstance(labels, np.ndarray):
        return [bool(one) for one in labels >= 0]
    return [label != "" for label in labels]
