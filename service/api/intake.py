"""The way of a batch into the log, whichever route it came by: read, appended, counted."""

import re
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import structlog
from fastapi import Request
from fastapi.responses import JSONResponse
from starlette.responses import Response

from service import tracing
from service.api.codec import Codec, Taken
from service.api.lines import LineAnswers
from service.api.principal import note_batch, principal_of, wait_turn
from service.api.schemas import Accepted, Stored
from service.errors import BadRequest, ServiceError
from service.metrics import RequestMetrics
from service.scopes import ANONYMOUS_ID
from service.store.append import Appender
from service.store.stream_schema import StreamSchema
from service.store.submission import Receipt, Submission

_log: structlog.stdlib.BoundLogger = structlog.get_logger()
_IDEMPOTENCY_KEY = re.compile(r"[A-Za-z0-9_-]{16,64}")

Read = Callable[[StreamSchema | None, str | None], Awaitable[Taken]]
"""Reads a batch, given what is settled and its Idempotency-Key."""


class Intake:
    """Takes batches in."""

    def __init__(
        self, appender: Appender, metrics: RequestMetrics, *, root: str, require_key: bool
    ) -> None:
        """Prepare.

        Args:
            appender: the log.
            metrics: counts.
            root: where the routes of the stream begin.
            require_key: whether a batch without an Idempotency-Key is refused.
        """
        self._appender = appender
        self._metrics = metrics
        self._root = root
        self._require_key = require_key

    async def accept(self, request: Request, read: Read) -> Response:
        """Return the 202 of a request's batch: it is on disk.

        Raises:
            ServiceError: it was refused, and that is counted.
        """

        async def keyed(settled: StreamSchema | None) -> Taken:
            """Return what `read` makes of the request, under its key."""
            return await read(settled, self._key_of(request))

        receipt, labelled = await self._take(request, keyed)
        note_batch(request, receipt.batch_id)
        answer = self._accepted(receipt, labelled).model_dump()
        return JSONResponse(answer, 202, replayed_header(receipt))

    async def append(self, request: Request, submission: Submission) -> Receipt:
        """Return the receipt of what a request brings beside batches to observe.

        Raises:
            ServiceError: as `Appender.append`; a bad Idempotency-Key.
        """
        key_id, key = principal_of(request).key_id, self._key_of(request)
        with _traced("append", request) as trace:
            keyed = replace(submission, key_id=key_id, idempotency_key=key, traceparent=trace)
            receipt = await self._appender.append(keyed)
        note_batch(request, receipt.batch_id)
        self._metrics.backlog.set(receipt.backlog)
        return receipt

    def told(self, receipt: Receipt) -> Stored:
        """Return what is said of a receipt."""
        return Stored(
            batch_id=receipt.batch_id,
            n=receipt.n,
            position=receipt.position,
            backlog=receipt.backlog,
            state=receipt.state,
            status_url=f"{self._root}/observations/{receipt.batch_id}",
            idempotent=receipt.idempotent,
            durability=receipt.durability,
        )

    def _accepted(self, receipt: Receipt, labelled: Sequence[bool]) -> Accepted:
        """Return the same of a batch, and the ids of its samples that have no label yet."""
        pairs = zip(sample_ids(receipt), labelled, strict=True)
        waiting = [] if all(labelled) else [None if has else one for one, has in pairs]
        return Accepted(**self.told(receipt).model_dump(), sample_ids=waiting)

    def accept_lines(self, request: Request, codec: Codec) -> Response:
        """Return the answers of the batches that are the lines of a request's body.

        Raises:
            BadRequest: `bad_idempotency_key`, `idempotency_key_required` or `digest_mismatch`.
        """
        key_id = principal_of(request).key_id

        async def take(line: bytes, key: str | None) -> dict[str, Any]:
            """Return what one line is answered."""

            async def keyed(settled: StreamSchema | None) -> Taken:
                """Return what the codec makes of the line, under its key."""
                return await codec.line(line, settled=settled, idempotency_key=key)

            await wait_turn(request)
            receipt, labelled = await self._take(request, keyed)
            if key_id != ANONYMOUS_ID:
                _log.info("audit", key_id=key_id, batch_id=receipt.batch_id, status=202)
            return {**self._accepted(receipt, labelled).model_dump(), "replayed": receipt.replayed}

        return LineAnswers(request, take, key=self._key_of(request), limits=codec.limits)

    async def _take(
        self, request: Request, read: Callable[[StreamSchema | None], Awaitable[Taken]]
    ) -> tuple[Receipt, Sequence[bool]]:
        """Return the receipt of what `read` reads for a request; count it, or its refusal.

        And which of its samples have a label.
        """
        metrics = self._metrics
        try:
            with metrics.observe_duration.time(), _traced("observe", request) as trace:
                submission, labelled = await read(await self._appender.stream_schema())
                key_id = principal_of(request).key_id
                keyed = replace(submission, key_id=key_id, traceparent=trace)
                receipt = await self._appender.append(keyed)
        except ServiceError:
            metrics.observations["refused"].inc()
            raise
        if receipt.replayed:
            metrics.observations["replayed"].inc()
        else:
            metrics.observations["accepted"].inc()
            metrics.samples_observed["yes"].inc(sum(labelled))
            metrics.samples_observed["no"].inc(submission.n - sum(labelled))
        metrics.backlog.set(receipt.backlog)
        return receipt, labelled

    def _key_of(self, request: Request) -> str | None:
        key = request.headers.get("idempotency-key")
        if self._require_key and key is None:
            raise BadRequest("idempotency_key_required", "expected an Idempotency-Key, got none")
        if key is not None and not _IDEMPOTENCY_KEY.fullmatch(key):
            raise BadRequest(
                "bad_idempotency_key",
                "expected an Idempotency-Key of 16 to 64 letters, digits, _ and -, "
                f"got {key[:80]!a}",
            )
        return key


def _traced(name: str, request: Request) -> AbstractContextManager[str | None]:
    """Trace what a request does; the block is given what its entry is to carry."""
    return tracing.span(name, request.headers.get(tracing.HEADER))


def sample_ids(receipt: Receipt) -> list[str]:
    """Return the ids by which POST /labels names the samples of a batch."""
    return [f"{receipt.batch_id}:{index}" for index in range(receipt.n)]


def replayed_header(receipt: Receipt) -> dict[str, str] | None:
    """Return the header of an answer to a retry; None for the first."""
    return {"Idempotent-Replayed": "true"} if receipt.replayed else None
