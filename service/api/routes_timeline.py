"""GET /timeline: the life of a stream so far, for pages and reports."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Header, Request, Response

from service.api.body import JSON
from service.api.schemas_timeline import TimelineAnswer
from service.api.streams import StreamOf


def timeline_routes(stream_of: StreamOf) -> APIRouter:
    """Return the route of the time line.

    Args:
        stream_of: returns the stream that a request is about.
    """
    router = APIRouter(tags=["watch"])

    @router.get(
        "/timeline",
        response_model=TimelineAnswer,
        responses={304: {"description": "The served model is the one of If-None-Match"}},
    )
    async def timeline(
        request: Request,
        if_none_match: Annotated[str | None, Header(description="An ETag of before.")] = None,
    ) -> Response:
        """Tell the life of the stream up to the served model, in at most 512 points.

        Survives restarts, and needs no Redis. A point stands for ever more entries as the stream
        grows. Accuracy is of labelled samples before they were learned.
        """
        stream = await stream_of(request)
        served = stream.follower.current
        version = 0 if served is None else served.info.version
        headers = {"ETag": f'"{stream.settings.stream}-{version}"', "Cache-Control": "no-cache"}
        if if_none_match == headers["ETag"]:
            return Response(status_code=304, headers=headers)
        if served is None:
            content = TimelineAnswer().model_dump_json()
        else:
            content = await asyncio.to_thread(lambda: TimelineAnswer.of(served).model_dump_json())
        return Response(content, media_type=JSON, headers=headers)

    return router
