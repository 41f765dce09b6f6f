"""GET and POST /quarantine...: batches that were set aside, listed, shown, released, dropped."""

from dataclasses import asdict
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Query, Request

from service.api.bounds import BatchId, check_batch_id
from service.api.principal import note_batch
from service.api.schemas import BatchState, problems
from service.api.schemas_admin import (
    Nothing,
    QuarantinedBatch,
    QuarantinedDetails,
    QuarantinePage,
    command_body,
    read_command,
)
from service.api.streams import StreamOf
from service.engine.protocol import Label
from service.store.aside import SetAside
from service.store.entry import decode_given, decode_payload
from service.store.quarantine import Quarantined

MOST_LISTED = 100
"""Most batches in one answer."""


def quarantine_routes(stream_of: StreamOf) -> APIRouter:
    """Return the routes of the quarantine."""
    router = APIRouter(tags=["administer"], prefix="/quarantine")

    @router.get("", responses=problems(422, 503))
    async def listed(
        request: Request,
        limit: Annotated[int, Query(ge=1, le=MOST_LISTED)] = 50,
        after: Annotated[str, Query(pattern=r"^\d{1,15}-\d{1,15}$")] = "0-0",
    ) -> QuarantinePage:
        """List batches that were set aside behind the position `after`, oldest first."""
        found = await (await stream_of(request)).quarantine.page(limit=limit, after=after)
        rows = [QuarantinedBatch.model_validate(one, from_attributes=True) for one in found]
        following = found[-1].position if len(found) == limit else None
        return QuarantinePage(quarantined=rows, after=following)

    @router.get("/{batch_id}", responses=problems(404, 409, 422, 503))
    async def shown(batch_id: BatchId, request: Request) -> QuarantinedDetails:
        """Show a batch that was set aside: its reason, what its samples are, their labels."""
        check_batch_id(batch_id)
        one = await (await stream_of(request)).quarantine.find(batch_id)
        shown = {name: one.fields[name] for name in ("kind", "input")}
        return QuarantinedDetails.model_validate(
            {**asdict(Quarantined.of(one)), **shown, "labels": _labels(one)}
        )

    @router.post(
        "/{batch_id}/retry",
        responses=problems(400, 404, 409, 413, 415, 422, 503),
        openapi_extra=command_body(Nothing),
    )
    async def retried(batch_id: BatchId, request: Request) -> BatchState:
        """Append a batch to the log again, under its id; it is queued from now on."""
        check_batch_id(batch_id)
        note_batch(request, batch_id)
        await read_command(request, Nothing)
        status = await (await stream_of(request)).quarantine.retry(batch_id)
        return BatchState.model_validate(status, from_attributes=True)

    @router.post(
        "/{batch_id}/drop",
        responses=problems(400, 404, 409, 413, 415, 422, 503),
        openapi_extra=command_body(Nothing),
    )
    async def dropped(batch_id: BatchId, request: Request) -> BatchState:
        """Throw a batch away for good; its status is kept for a day."""
        check_batch_id(batch_id)
        note_batch(request, batch_id)
        await read_command(request, Nothing)
        status = await (await stream_of(request)).quarantine.drop(batch_id)
        return BatchState.model_validate(status, from_attributes=True)

    return router


def _labels(one: SetAside) -> list[Label | None] | None:
    """Return the labels of a batch, one a sample; of late labels those, in their order."""
    if one.fields["kind"] == "labels":
        return list(decode_given(one.payload).values())
    if one.fields["kind"] in {"predicted", "purge"}:
        return None
    _, labels = decode_payload(one.payload)
    if labels is None:
        return None
    listed = labels.tolist() if isinstance(labels, np.ndarray) else labels
    return [None if label in (-1, "") else label for label in listed]
