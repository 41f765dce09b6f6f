"""POST /labels: labels for samples that were observed, or predicted and kept, without one."""

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from service.api.body_schemas import LABELS_BODY
from service.api.codec import Codec
from service.api.intake import replayed_header
from service.api.schemas import Stored, problems
from service.api.streams import StreamOf
from service.errors import ServiceError


def label_routes(stream_of: StreamOf, codec: Codec) -> APIRouter:
    """Return the route that hands late labels to the log.

    Args:
        stream_of: finds the stream of a request.
        codec: reads the bodies.
    """
    router = APIRouter(tags=["learn"])

    @router.post(
        "/labels",
        status_code=202,
        response_model=Stored,
        responses=problems(400, 409, 413, 415, 422, 503),
        openapi_extra=LABELS_BODY,
    )
    async def labels(request: Request) -> Response:
        """Tell labels by sample id, each of which is joined to its sample once.

        202 means: they are on disk. `GET /observations/{batch_id}` with the batch_id of this answer
        tells, once the worker has come to them, how many were `joined`, `late` (behind the window),
        `unknown` or `doubled` (their samples had a label), and the outcome of each of the first
        1,000 in the order of the body.
        """
        at = await stream_of(request)
        outcome = at.metrics.label_requests
        try:
            receipt = await at.intake.append(request, await codec.late_labels(request))
        except ServiceError:
            outcome["refused"].inc()
            raise
        outcome["replayed" if receipt.replayed else "accepted"].inc()
        return JSONResponse(at.intake.told(receipt).model_dump(), 202, replayed_header(receipt))

    return router
