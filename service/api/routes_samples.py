"""GET /experts/{expert}/samples: what an expert is about, for people to look at."""

import asyncio
from typing import Annotated, Final

from fastapi import APIRouter, Path, Query, Request

from service.api.pictures import shown
from service.api.predictor import Served
from service.api.schemas import problems
from service.api.schemas_explain import SamplesAnswer, ShownSample
from service.api.streams import StreamOf
from service.errors import NotFound
from service.store.replay_view import Member

MOST_SHOWN: Final = 32


def sample_routes(stream_of: StreamOf) -> APIRouter:
    """Return the route of an expert's samples.

    Args:
        stream_of: returns the stream that a request is about.
    """
    router = APIRouter(tags=["watch"])

    @router.get(
        "/experts/{expert}/samples",
        responses=problems(404, 422, 503),
    )
    async def samples(
        request: Request,
        expert: Annotated[int, Path(ge=0, le=2**31 - 1, description="Id of an expert.")],
        n: Annotated[int, Query(ge=1, le=MOST_SHOWN, description="Most of each kind.")] = 8,
    ) -> SamplesAnswer:
        """Show samples that an expert answers for, and samples that it makes up.

        The former are of the replay memory; without Redis there are only the latter.
        """
        stream = await stream_of(request)
        served = stream.follower.current
        if served is None or expert not in _ids(served):
            raise NotFound("unknown_expert", f"the served model has no expert {expert}")
        found = await stream.explainer.of_expert(served, expert, n)
        return await asyncio.to_thread(_answer, served, expert, n, found)

    return router


def _ids(served: Served) -> set[int]:
    return {one["id"] for one in served.info.summary["experts"]}


def _answer(served: Served, expert: int, n: int, found: list[Member] | str) -> SamplesAnswer:
    known = isinstance(found, list)
    return SamplesAnswer(
        expert=expert,
        model_version=served.info.version,
        replay=[_sample(one) for one in found] if isinstance(found, list) else None,
        replay_reason=None if known else str(found),
        drawn=[shown(x) for x in served.predictor.draw(expert, n)],
    )


def _sample(member: Member) -> ShownSample:
    picture = shown(member.x)
    if isinstance(picture, str):
        return ShownSample(sample_id=member.name, label=member.label, png=picture)
    return ShownSample(sample_id=member.name, label=member.label, values=picture)
