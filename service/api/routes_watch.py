"""GET /docs, /livez, /readyz and /metrics: what operators and their machines look at."""

import asyncio

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from service.api import page
from service.api.keyring import Keyring
from service.api.principal import principal_of
from service.api.schemas import Readiness
from service.api.streams import Streams, StreamServices
from service.errors import Unavailable
from service.metrics import ApiMetrics


def watch_routes() -> APIRouter:
    """Return the routes that tell what the service is."""
    router = APIRouter(tags=["watch"])

    @router.get("/docs", include_in_schema=False)
    async def documents(request: Request) -> HTMLResponse:
        """Show the API to people."""
        return HTMLResponse(page.page(request.app.openapi()), headers=page.HEADERS)

    return router


def probe_routes(
    streams: Streams, keyring: Keyring, metrics: ApiMetrics, registry: CollectorRegistry
) -> APIRouter:
    """Return the routes that tell how the service is; both listeners have them."""
    router = APIRouter(tags=["watch"])

    @router.get("/livez")
    async def livez() -> dict[str, str]:
        """Say that the process answers."""
        return {"status": "live"}

    @router.get("/readyz", response_model=Readiness, responses={503: {"model": Readiness}})
    async def readyz(request: Request) -> JSONResponse:
        """Say whether observations are accepted and kept; does not wait for a first model.

        Why not is told to keys with the scope `read`.
        """
        found = await _problems(streams, keyring)
        readiness = Readiness(status="not_ready" if found else "ready")
        if "read" in principal_of(request).scopes:
            readiness.problems = found
        answer = readiness.model_dump(exclude_none=True)
        return JSONResponse(answer, 503 if found else 200, {"Retry-After": "1"} if found else None)

    @router.get(
        "/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}}
    )
    async def prometheus() -> Response:
        """Tell every metric of this process and of the served model, as Prometheus text."""
        try:
            facts = await streams.default.appender.facts()
            metrics.redis_ready.set(not facts.server.problems)
            metrics.redis_memory.set(facts.server.memory_used)
            metrics.redis_memory_limit.set(facts.server.memory_most)
            metrics.disk_free.set(facts.disk_free)
            await asyncio.gather(*(_measure(one) for one in streams.all.values()))
        except Unavailable:
            metrics.redis_ready.set(0)
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return router


async def _measure(stream: StreamServices) -> None:
    facts = await stream.appender.facts()
    stream.metrics.worker_stopped.set(facts.worker_problem is not None)
    stream.metrics.disk_needed.set(facts.disk_needed)
    stream.metrics.backlog.set(await stream.appender.backlog())
    stream.metrics.backlog_limit.set(stream.settings.max_backlog)
    stream.metrics.staleness.set(await stream.staleness_s())


async def _problems(streams: Streams, keyring: Keyring) -> list[str]:
    """Return what keeps the service from doing what it promises."""
    of_keys = [] if keyring.problem is None else [keyring.problem]
    found = await asyncio.gather(*(_problems_of(one) for one in streams.all.values()))
    return list(dict.fromkeys(problem for one in (of_keys, *found) for problem in one))


async def _problems_of(stream: StreamServices) -> list[str]:
    found = [] if stream.follower.alive else ["newer models are not noticed any more"]
    if (served := stream.follower.current) is not None and served.predictor.lost:
        found.append("the model's process has ended and is started again")
    try:
        found += await stream.appender.problems()
    except Unavailable as error:
        return [*found, error.message]
    return found
