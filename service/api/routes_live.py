"""GET /live: once a second what is now of a stream, as server-sent events."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.sse import EventSourceResponse, ServerSentEvent

from service.api.principal import check_counts
from service.api.pulse import EVERY_S
from service.api.schemas import problems
from service.api.streams import StreamOf, StreamServices
from service.errors import Unauthorized


def live_routes(stream_of: StreamOf) -> APIRouter:
    """Return the route of what is now.

    Args:
        stream_of: returns the stream that a request is about.
    """
    router = APIRouter(tags=["watch"])

    async def seated(request: Request) -> AsyncIterator[StreamServices]:
        """Take a seat before the first byte is answered; raises TooMany."""
        stream = await stream_of(request)
        with stream.watchers.seat():
            yield stream

    @router.get("/live", response_class=EventSourceResponse, responses=problems(404, 422, 429))
    async def live(
        request: Request, stream: Annotated[StreamServices, Depends(seated)]
    ) -> AsyncIterator[ServerSentEvent]:
        """Tell what is now, once a second; ends only with the service or the key.

        Costs the same for one listener as for sixteen, and without Redis tells what is known.
        """
        with suppress(Unauthorized):
            while not stream.ending.is_set():
                check_counts(request)
                yield ServerSentEvent(event="now", data=await stream.pulse.now())
                with suppress(TimeoutError):
                    await asyncio.wait_for(stream.ending.wait(), EVERY_S)

    return router
