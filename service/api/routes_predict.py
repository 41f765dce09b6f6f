"""POST /predict and GET /experts: the served model's answers, and what it is made of.

Neither waits for training, nor, once a model is served, for Redis; but answers that are kept do.
"""

import asyncio
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse

from service import tracing
from service.api.body_schemas import PREDICT_BODY
from service.api.codec import Batch, Codec
from service.api.freshness import LONGEST_WAIT_S, POSITION, check_learned
from service.api.intake import Intake, replayed_header, sample_ids
from service.api.keeping import kept
from service.api.predictor import Answer, not_ready
from service.api.principal import check_scope
from service.api.schemas import Experts, Predictions, problems
from service.api.streams import StreamOf, StreamServices
from service.errors import ServiceError, Unavailable
from service.inputs import InputSchema
from service.store.stream_ids import START
from service.store.submission import Receipt

_SMALL_ANSWER = 64
"""Samples up to which an answer is rendered on the event loop: less than a millisecond."""


def predict_routes(stream_of: StreamOf, codec: Codec) -> APIRouter:
    """Return the routes that answer from the served model."""
    router = APIRouter(tags=["predict"])

    @router.post(
        "/predict",
        response_model=Predictions,
        responses=problems(400, 409, 413, 415, 422, 503),
        openapi_extra=PREDICT_BODY,
    )
    async def predict(
        request: Request,
        wait_for: Annotated[str, Query(pattern=POSITION)] = START,
        wait_s: Annotated[float, Query(ge=0, le=LONGEST_WAIT_S)] = 5.0,
        keep: bool = False,  # noqa: FBT001,FBT002  FastAPI's way to say it
        explain: bool = False,  # noqa: FBT001,FBT002
    ) -> JSONResponse:
        """Answer for a batch of samples; stores nothing and changes nothing, but with `keep`.

        `keep=true` also hands samples and answers in, as /observe does, and tells the ids by which
        POST /labels names the samples; it needs the scope `observe`, too. A retry with the same
        `Idempotency-Key` is answered anew, while the log keeps the answers of the first.

        `explain=true` also tells why, of at most 16 samples; it needs the scope `read`, too.

        503 `not_ready` only before the first model is published. `wait_for` asks for a model that
        has learned up to a position, as /observe told it: 503 `not_learned_yet` if there is none
        within `wait_s`.
        """
        at = await stream_of(request)
        metrics = at.metrics
        if keep:
            check_scope(request, "observe")
        if explain:
            check_scope(request, "read")
        try:
            await at.freshness.until(wait_for, wait_s)
            explained = None
            if explain:
                batch, answer, explained = await _explained(at, codec, request)
            else:
                traced = tracing.span("predict", request.headers.get(tracing.HEADER))
                with metrics.predict_duration.time(), traced:
                    batch, answer = await _answer(at, codec, request)
            check_learned(wait_for, answer.info.position)  # a rollback may have come between
            receipt = await at.intake.append(request, kept(batch, answer)) if keep else None
        except ServiceError:
            metrics.predictions["refused"].inc()
            raise
        metrics.predictions["kept" if keep else "answered"].inc()
        said = partial(_said, at.intake, answer, receipt, explained)
        return said() if len(answer.experts) <= _SMALL_ANSWER else await asyncio.to_thread(said)

    @router.get("/experts", response_model=Experts)
    async def experts(request: Request) -> dict[str, Any]:
        """Tell what the served model is made of; `model_version` 0 before the first."""
        info = (await stream_of(request)).follower.facts
        if info is None:
            return {}
        return {
            "model_version": info.version,
            "position": info.position,
            "published_at": info.published_at,
            **info.summary,
        }

    return router


async def _answer(at: StreamServices, codec: Codec, request: Request) -> tuple[Batch, Answer]:
    """Return the request's samples, and the served model's answers for them."""
    batch = await codec.samples(request, known=await _known_input(at))
    if at.follower.current is None:
        raise not_ready()
    answer = await at.batcher.predict(batch.x)
    at.pulse.answered(answer.experts)
    return batch, answer


async def _explained(
    at: StreamServices, codec: Codec, request: Request
) -> tuple[Batch, Answer, list[dict[str, Any]]]:
    """Return the request's samples, the answers for them, and why; counted apart from others."""
    batch = await codec.samples(request, known=await _known_input(at))
    answer, explained = await at.explainer.explain(batch.x)
    return batch, answer, explained


async def _known_input(at: StreamServices) -> InputSchema | None:
    """Return what a sample is, as far as it can be told now."""
    if (served := at.follower.current) is not None:
        return served.predictor.schema
    try:
        settled = await at.appender.stream_schema()
    except Unavailable:  # there is no model, so the answer is a refusal in any case
        return None
    return None if settled is None else settled.input


def _said(
    intake: Intake,
    answer: Answer,
    receipt: Receipt | None,
    explained: list[dict[str, Any]] | None,
) -> JSONResponse:
    """Return what is said of an answer, why, and of its receipt where it was kept."""
    document = _document(answer)
    if explained is not None:
        document["explanations"] = explained
    if receipt is None:
        return JSONResponse(document)
    known = {"sample_ids": sample_ids(receipt), "kept": intake.told(receipt).model_dump()}
    return JSONResponse(document | known, headers=replayed_header(receipt))


def _document(answer: Answer) -> dict[str, Any]:
    """Return the JSON document of an answer, a list of one row per sample under each name."""
    probabilities = [
        row if known else []
        for row, known in zip(answer.probabilities.tolist(), answer.answered, strict=True)
    ]
    classes = [
        [answer.known[column] for column in row] if known else []
        for row, known in zip(answer.top.tolist(), answer.answered, strict=True)
    ]
    return {
        "labels": answer.labels,
        "probabilities": probabilities,
        "classes": classes,
        "experts": answer.experts.tolist(),
        "novelty": [nats if abs(nats) < float("inf") else None for nats in answer.novelty.tolist()],
        "model_version": answer.info.version,
        "position": answer.info.position,
    }
