"""Requests to arrays: the body is read, decoded and checked, off the event loop where it is big.

Two formats say the same. JSON is for small batches and by hand, safetensors for everything else;
a valid safetensors body goes into the log as it came. The message of a refusal names the thing,
the bound and the value, and quotes no more of the body than that.
"""

import asyncio
import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
from starlette.requests import Request

from service.api.body import JSON, SAFETENSORS, media_type_of, read_body
from service.api.bounds import check_labels, check_samples, check_values
from service.api.json_body import read_json
from service.api.tensor_body import read_tensors
from service.engine.protocol import Array, Label, Labels
from service.inputs import InputSchema
from service.settings import Settings
from service.store.append import Submission
from service.store.entry import encode

_SMALL_BYTES = 16 * 2**10
"""Bodies up to this size are decoded on the event loop: it takes less than a millisecond."""
_DECODERS = 2
"""Threads for bigger ones; few, as 8 MiB of JSON become some 130 MB of Python numbers. The JSON
parser holds the interpreter's lock (some 50 ms a MiB), so threads bound its harm, not end it."""
_T = TypeVar("_T")


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
    max_batch: int,
    labels_allowed: bool = True,
) -> Batch:
    """Return the batch that `body` spells.

    Args:
        body: the request's body.
        media_type: `application/json` or `application/x-safetensors`.
        known: what the stream's samples are; None before the first batch settles it.
        max_batch: most samples.
        labels_allowed: False for /predict, whose bodies have none.

    Raises:
        ServiceError: 400, 413 or 422, naming what is wrong.
    """
    labels: Labels | None
    if media_type == JSON:
        fields = ("x", "y", "dtype") if labels_allowed else ("x", "dtype")
        x, labels = read_json(body, known=known, max_batch=max_batch, fields=fields)
    else:
        x, labels = read_tensors(body, max_batch=max_batch, labels_allowed=labels_allowed)
    schema = check_samples(x, known)
    check_values(x, schema)
    if labels is not None:
        check_labels(labels, len(x))
    return Batch(schema, schema.canonical(x), labels if _labelled(labels) else None)


def submission(
    body: bytes, media_type: str, batch: Batch, *, idempotency_key: str | None
) -> Submission:
    """Return what the log takes in for `batch`, which `body` spelled."""
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
        digest=hashlib.sha256(body).hexdigest(),
    )


class Codec:
    """Reads requests within the bounds of the settings."""

    def __init__(self, settings: Settings) -> None:
        self._max_body_bytes = settings.max_body_bytes
        self._max_batch = settings.max_batch
        self._decoders = ThreadPoolExecutor(_DECODERS, thread_name_prefix="decode")

    async def observation(
        self, request: Request, *, known: InputSchema | None, idempotency_key: str | None
    ) -> tuple[Submission, int]:
        """Return what the log takes in, and how many of its samples have a label.

        Raises:
            ServiceError: 400, 413, 415 or 422, naming what is wrong.
        """
        read = partial(
            _observation, known=known, max_batch=self._max_batch, idempotency_key=idempotency_key
        )
        return await self._run(request, read)

    async def samples(self, request: Request, *, known: InputSchema | None) -> Batch:
        """Return the samples to predict.

        Raises:
            ServiceError: 400, 413, 415 or 422, naming what is wrong.
        """
        read = partial(decode, known=known, max_batch=self._max_batch, labels_allowed=False)
        return await self._run(request, read)

    async def _run(self, request: Request, read: Callable[[bytes, str], _T]) -> _T:
        media_type = media_type_of(request, JSON, SAFETENSORS)
        body = await read_body(request, self._max_body_bytes)
        if len(body) <= _SMALL_BYTES:
            return read(body, media_type)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._decoders, read, body, media_type)

    def close(self) -> None:
        """End the threads; what they decode is dropped."""
        self._decoders.shutdown(wait=False, cancel_futures=True)


def _observation(
    body: bytes,
    media_type: str,
    *,
    known: InputSchema | None,
    max_batch: int,
    idempotency_key: str | None,
) -> tuple[Submission, int]:
    batch = decode(body, media_type, known=known, max_batch=max_batch)
    taken = submission(body, media_type, batch, idempotency_key=idempotency_key)
    return taken, _labelled(batch.labels)


def _labelled(labels: Labels | None) -> int:
    """Return how many samples have a label."""
    if labels is None:
        return 0
    if isinstance(labels, np.ndarray):
        return int((labels >= 0).sum())
    return sum(label != "" for label in labels)
