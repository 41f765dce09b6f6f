"""GET /events: what happens to a stream, as server-sent events."""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Request
from fastapi.sse import EventSourceResponse, ServerSentEvent

from service.api.audience import Audience
from service.api.principal import check_counts
from service.api.schemas import problems
from service.api.streams import StreamOf
from service.store.feed import Beginning

EVENT_ID = r"^([0-9]{1,19}(-[0-9]{1,19})?)?$"
"""What the id of an event looks like, or nothing; its numbers have 64 bits."""


def event_routes(stream_of: StreamOf) -> APIRouter:
    """Return the route of events.

    Args:
        stream_of: returns the stream that a request is about.
    """
    router = APIRouter(tags=["watch"])

    async def begun(
        request: Request,
        after: Annotated[
            str | None, Query(pattern=EVENT_ID, description="As Last-Event-ID; 0: all kept.")
        ] = None,
        last_event_id: Annotated[
            str | None, Header(pattern=EVENT_ID, description="Go on behind this event.")
        ] = None,
    ) -> AsyncIterator[tuple[Audience, Beginning]]:
        """Take a seat and look where to begin, before the first byte is answered.

        Raises:
            TooMany: `too_many_listeners`.
            Unavailable: Redis is away.
        """
        audience = (await stream_of(request)).audience
        with audience.seat():
            yield audience, await audience.begin(last_event_id or after or None)

    @router.get(
        "/events", response_class=EventSourceResponse, responses=problems(404, 422, 429, 503)
    )
    async def events(
        request: Request, listening: Annotated[tuple[Audience, Beginning], Depends(begun)]
    ) -> AsyncIterator[ServerSentEvent]:
        """Tell what happens from now on, or behind an event; ends only with the service or the key.

        Where events behind that one may be gone, the first event is `gap`.
        """
        audience, beginning = listening
        if beginning.gap:
            gap = {"after": beginning.after}
            yield ServerSentEvent(id=beginning.after, event="gap", data=gap)
        else:  # so that who loses the connection before the first event misses none, too
            yield ServerSentEvent(id=beginning.after, comment="listening")
        async for event in audience.events(beginning.after, lambda: check_counts(request)):
            yield ServerSentEvent(
                id=event.id, event=event.kind, data={"at": event.at, **event.facts}
            )

    return router
