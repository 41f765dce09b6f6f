"""POST /observe and GET /observations/{batch_id}: the way into the log, and what became of it."""

import re

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from service.api.body_schemas import OBSERVE_BODY
from service.api.bounds import check_batch_id
from service.api.codec import Codec
from service.api.schemas import Accepted, BatchState, problems
from service.errors import BadRequest, NotFound, ServiceError
from service.metrics import ApiMetrics
from service.store.append import Appender, Receipt, Submission

_IDEMPOTENCY_KEY = re.compile(r"[A-Za-z0-9_-]{16,64}")


def learn_routes(
    appender: Appender, codec: Codec, metrics: ApiMetrics, *, require_key: bool
) -> APIRouter:
    """Return the routes that hand batches to the log and tell what became of them.

    Args:
        appender: the log.
        codec: reads the bodies.
        metrics: counts.
        require_key: whether a batch without an Idempotency-Key is refused.
    """
    router = APIRouter(tags=["learn"])

    async def accept(request: Request) -> tuple[Receipt, Submission, int]:
        """Return the receipt of the request's batch, the batch, and how many labels it has."""
        key = _idempotency_key(request, required=require_key)
        settled = await appender.stream_schema()
        submission, labelled = await codec.observation(
            request, settled=settled, idempotency_key=key
        )
        return await appender.append(submission), submission, labelled

    @router.post(
        "/observe",
        status_code=202,
        response_model=Accepted,
        responses=problems(400, 409, 413, 415, 422, 503),
        openapi_extra=OBSERVE_BODY,
    )
    async def observe(request: Request) -> JSONResponse:
        """Hand in one batch to be learned.

        202 means: it is on disk, and will be learned exactly once or quarantined with a reason.
        Send an `Idempotency-Key` (16 to 64 letters, digits, _ and -) and repeat it when you retry.
        """
        try:
            with metrics.observe_duration.time():
                receipt, submission, labelled = await accept(request)
        except ServiceError:
            metrics.observations.labels("refused").inc()
            raise
        if receipt.replayed:
            metrics.observations.labels("replayed").inc()
        else:
            metrics.observations.labels("accepted").inc()
            metrics.samples_observed.labels("yes").inc(labelled)
            metrics.samples_observed.labels("no").inc(submission.n - labelled)
        metrics.backlog.set(receipt.backlog)
        headers = {"Idempotent-Replayed": "true"} if receipt.replayed else None
        return JSONResponse(_accepted(receipt).model_dump(), 202, headers)

    @router.get("/observations/{batch_id}", responses=problems(404, 422, 503))
    async def observation(batch_id: str) -> BatchState:
        """Tell what became of a batch: queued, learned (step, expert) or quarantined (reason)."""
        check_batch_id(batch_id)
        status = await appender.status(batch_id)
        if status is None:
            raise NotFound("unknown_batch", f"no record of batch {batch_id} is kept")
        return BatchState.model_validate(status, from_attributes=True)

    return router


def _idempotency_key(request: Request, *, required: bool) -> str | None:
    key = request.headers.get("idempotency-key")
    if required and key is None:
        raise BadRequest("idempotency_key_required", "expected an Idempotency-Key, got none")
    if key is not None and not _IDEMPOTENCY_KEY.fullmatch(key):
        raise BadRequest(
            "bad_idempotency_key",
            f"expected an Idempotency-Key of 16 to 64 letters, digits, _ and -, got {key[:80]!a}",
        )
    return key


def _accepted(receipt: Receipt) -> Accepted:
    return Accepted(
        batch_id=receipt.batch_id,
        n=receipt.n,
        position=receipt.position,
        backlog=receipt.backlog,
        state=receipt.state,
        status_url=f"/observations/{receipt.batch_id}",
        idempotent=receipt.idempotent,
        durability=receipt.durability,
    )
