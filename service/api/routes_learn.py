"""POST /observe and GET /observations/{batch_id}: the way into the log, and what became of it."""

from dataclasses import asdict

from fastapi import APIRouter, Request, Response

from service.api.body import LINES
from service.api.body_schemas import OBSERVE_BODY
from service.api.bounds import BatchId, check_batch_id
from service.api.codec import Codec, Taken
from service.api.schemas import Accepted, BatchState, problems
from service.api.streams import StreamOf
from service.errors import NotFound
from service.store.stream_schema import StreamSchema


def learn_routes(stream_of: StreamOf, codec: Codec) -> APIRouter:
    """Return the routes that hand batches to the log and tell what became of them.

    Args:
        stream_of: finds the stream of a request.
        codec: reads the bodies.
    """
    router = APIRouter(tags=["learn"])

    @router.post(
        "/observe",
        status_code=202,
        response_model=Accepted,
        responses=problems(400, 409, 413, 415, 422, 503),
        openapi_extra=OBSERVE_BODY,
    )
    async def observe(request: Request) -> Response:
        """Hand in one batch to be learned, or as NDJSON one a line.

        202 means: it is on disk, and will be learned exactly once or quarantined with a reason.
        Samples without a label are told their ids, by which POST /labels names them.
        Send an `Idempotency-Key` (16 to 64 letters, digits, _ and -) and repeat it when you retry.

        Lines are answered by lines with the status of each, 200 in all, while the body is still
        being read; the Idempotency-Key has at most 56 characters then. A line that is refused with
        409 or 503 is the last one that is read.
        """
        intake = (await stream_of(request)).intake
        if request.headers.get("content-type", "").lower().startswith(LINES):
            return intake.accept_lines(request, codec)

        async def read(settled: StreamSchema | None, key: str | None) -> Taken:
            """Return what the codec makes of the request."""
            return await codec.observation(request, settled=settled, idempotency_key=key)

        return await intake.accept(request, read)

    @router.get("/observations/{batch_id}", responses=problems(404, 422, 503))
    async def observation(batch_id: BatchId, request: Request) -> BatchState:
        """Tell what became of a batch: queued, learned (step, expert) or quarantined (reason).

        Of late labels also what became of each.
        """
        check_batch_id(batch_id)
        status = await (await stream_of(request)).appender.status(batch_id)
        if status is None:
            raise NotFound("unknown_batch", f"no record of batch {batch_id} is kept")
        return BatchState(**asdict(status) | {"results": status.outcomes})

    return router
