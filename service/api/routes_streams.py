"""POST and GET /streams: streams beside the default one, declared once, never changed."""

from typing import Any

from fastapi import APIRouter, Request, Response

from service.api.principal import principal_of
from service.api.schemas import problems
from service.api.schemas_admin import read_command
from service.api.schemas_streams import (
    DECLARE_BODY,
    MAX_DECLARATION_BYTES,
    Declaration,
    DeclaredStream,
    StreamList,
)
from service.api.streams import Streams, StreamServices
from service.errors import SettingsError, Unprocessable
from service.settings import OF_A_STREAM
from service.store.names import DEFAULT_STREAM


def stream_routes(streams: Streams) -> APIRouter:
    """Return the routes that declare and list streams."""
    router = APIRouter(tags=["streams"])

    @router.post(
        "/streams",
        status_code=201,
        responses=problems(400, 409, 413, 415, 422, 503)
        | {200: {"model": DeclaredStream, "description": "It was declared so before"}},
        openapi_extra=DECLARE_BODY,
    )
    async def declare(request: Request, response: Response) -> DeclaredStream:
        """Declare a stream; repeating the same declaration changes nothing and answers 200.

        What is left out is as for the default stream before any setting was made.
        """
        asked = await read_command(request, Declaration, most=MAX_DECLARATION_BYTES)
        if asked.name == DEFAULT_STREAM:
            raise Unprocessable("bad_stream", "name: expected another name than default")
        try:
            stream, new = await streams.declare(
                asked.name, asked.model_dump(exclude={"name"}, exclude_none=True)
            )
        except SettingsError as error:
            raise Unprocessable("bad_stream", str(error)) from None
        response.status_code = 201 if new else 200
        return _listed(stream)

    @router.get("/streams")
    async def listed(request: Request) -> StreamList:
        """List the streams that the key is for."""
        await streams.learn_of_others()
        seen = principal_of(request).streams
        mine = [one for name, one in streams.all.items() if seen is None or name in seen]
        return StreamList(streams=[_listed(one) for one in mine])

    return router


def _listed(stream: StreamServices) -> DeclaredStream:
    facts, settings = stream.follower.facts, stream.settings
    served = stream.follower.current
    options: dict[str, Any] = settings.model_dump(
        mode="json", include=set(OF_A_STREAM), exclude_none=True
    )
    known = None if served is None else str(served.predictor.schema)
    return DeclaredStream(
        **options | {"name": settings.stream, "input": known or settings.input},
        model_version=0 if facts is None else facts.version,
    )
