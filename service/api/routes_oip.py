"""The Open Inference Protocol V2 under /v2: NVIDIA's and KServe's clients ask a stream as a model.

A model's version is the number of the served snapshot. POST /v2/models/{stream}/observe is our
extension, which the server's metadata declares; all else is the protocol's, refusals included.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from service import __version__
from service.api.codec import Codec
from service.api.oip_answer import labels_datatype, render
from service.api.oip_body import Inference
from service.api.oip_schemas import (
    INFER_BODY,
    INFERRED,
    OBSERVE_BODY,
    Inferred,
    Live,
    ModelMetadata,
    ModelReady,
    Ready,
    Server,
    TensorMetadata,
    refusals,
)
from service.api.predictor import Answer, Served, not_ready
from service.api.schemas import Accepted
from service.api.streams import Streams, StreamServices, named_stream
from service.errors import NotFound, ServiceError

EXTENSIONS = ["binary_tensor_data", "observe"]
_SMALL_ANSWER = 64
"""Samples up to which an answer is rendered on the event loop: less than a millisecond."""


@dataclass(frozen=True, slots=True)
class _Model:
    """The model that a path names."""

    stream: StreamServices
    version: str | None
    """None: the one that is served."""

    def served(self) -> Served:
        """Return it.

        Raises:
            NotFound: `unknown_version`.
            Unavailable: `not_ready`.
        """
        served = self.stream.follower.current
        if served is None:
            raise not_ready()
        self.check(served.info.version)
        return served

    def check(self, served: int) -> None:
        """Check that a served version is the one that was asked for.

        Raises:
            NotFound: `unknown_version`.
        """
        if self.version not in (None, str(served)):
            raise NotFound(
                "unknown_version",
                f"expected version {served}, the one that is served, got {self.version[:24]!a}",
            )


def oip_routes(streams: Streams, codec: Codec) -> APIRouter:
    """Return the routes of the protocol and of our extension."""
    router = APIRouter(tags=["open inference protocol"], prefix="/v2")

    async def newest(request: Request) -> _Model:
        """Return the model of a path without a version."""
        return _Model(await streams.of(request), None)

    async def numbered(request: Request, version: str) -> _Model:
        """Return the model of a path with a version."""
        return _Model(await streams.of(request), version)

    @router.get("")
    async def server() -> Server:
        """Say what the server is and which extensions of the protocol it has."""
        return Server(name="levit-stream", version=__version__, extensions=EXTENSIONS)

    @router.get("/health/live")
    async def live() -> Live:
        """Say that the process answers."""
        return Live()

    @router.get("/health/ready", responses=refusals(503))
    async def ready() -> Ready:
        """Say that some stream's model is served; 503 before the first is published."""
        if all(stream.follower.current is None for stream in streams.all.values()):
            raise not_ready()
        return Ready()

    extension = APIRouter(dependencies=[Depends(named_stream)])

    @extension.post(
        "/observe",
        status_code=202,
        response_model=Accepted,
        responses=refusals(400, 404, 409, 413, 415, 422, 503),
        openapi_extra=OBSERVE_BODY,
    )
    async def observe(request: Request) -> Response:
        """Hand in one batch to be learned: inputs x and, optionally, y; answers as POST /observe.

        Integers of y are -1 and strings empty where a sample has no label.
        """
        intake = (await streams.of(request)).intake
        return await intake.accept(request, partial(codec.tensors, request))

    router.include_router(extension, prefix="/models/{stream}")
    router.include_router(_model_routes(newest, codec), prefix="/models/{stream}")
    router.include_router(
        _model_routes(numbered, codec), prefix="/models/{stream}/versions/{version}"
    )
    return router


def _model_routes(model_of: Callable[..., Awaitable[_Model]], codec: Codec) -> APIRouter:
    """Return the routes that the protocol has with and without a version."""
    router = APIRouter(dependencies=[Depends(named_stream)])
    Asked = Annotated[_Model, Depends(model_of)]

    @router.get("", responses=refusals(404, 422, 503))
    async def metadata(model: Asked) -> ModelMetadata:
        """Tell which tensors the served model takes and answers."""
        return _metadata(model.stream.settings.stream, model.served())

    @router.get("/ready", responses=refusals(404, 422, 503))
    async def ready(model: Asked) -> ModelReady:
        """Say that the model is served; 503 before the first is published."""
        model.served()
        return ModelReady(name=model.stream.settings.stream)

    @router.post(
        "/infer",
        response_model=Inferred,
        responses=INFERRED | refusals(400, 404, 413, 415, 422, 503),
        openapi_extra=INFER_BODY,
    )
    async def infer(model: Asked, request: Request) -> Response:
        """Answer for a batch of samples, the input x, with the outputs that are asked for.

        Stores nothing. The answers are those of POST /predict, as tensors.
        """
        metrics = model.stream.metrics
        try:
            with metrics.predict_duration.time():
                answer, asked = await _infer(model, request, codec)
        except ServiceError:
            metrics.predictions["refused"].inc()
            raise
        metrics.predictions["answered"].inc()
        rendered = partial(render, answer, asked, stream=model.stream.settings.stream)
        small = len(answer.experts) <= _SMALL_ANSWER
        return rendered() if small else await asyncio.to_thread(rendered)

    return router


async def _infer(model: _Model, request: Request, codec: Codec) -> tuple[Answer, Inference]:
    """Return the answer of the model that was asked for, and what was asked."""
    known = model.served().predictor.schema
    asked, batch = await codec.inference(request, known=known)
    answer = await model.stream.batcher.predict(batch.x)
    model.stream.pulse.answered(answer.experts)
    model.check(answer.info.version)  # a newer one may be served by now
    return answer, asked


def _metadata(stream: str, served: Served) -> ModelMetadata:
    schema = served.predictor.schema
    labels = labels_datatype(served.info.summary["classes"])
    outputs: dict[str, tuple[str, list[int]]] = {
        "label": (labels, [-1]),
        "probabilities": ("FP32", [-1, -1]),
        "classes": (labels, [-1, -1]),
        "expert": ("INT64", [-1]),
        "novelty": ("FP32", [-1]),
    }
    x = TensorMetadata(
        name="x",
        datatype="UINT8" if schema.kind == "image" else "FP32",
        shape=[-1, *schema.shape],
    )
    return ModelMetadata(
        name=stream,
        versions=[str(served.info.version)],
        platform="levit",
        inputs=[x],
        outputs=[
            TensorMetadata(name=name, datatype=datatype, shape=shape)
            for name, (datatype, shape) in outputs.items()
        ],
    )
