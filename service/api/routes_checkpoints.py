"""GET /checkpoints, /snapshots and what administrators ask of the worker: rollback, pin, resync."""

import asyncio
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path as FilePath
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request

from service.api.schemas import problems
from service.api.schemas_admin import (
    CheckpointList,
    CheckpointRow,
    Followed,
    Pin,
    PinRow,
    Resync,
    Rollback,
    SnapshotList,
    SnapshotRow,
    command_body,
    read_command,
)
from service.api.streams import StreamOf
from service.errors import Conflict, NotFound
from service.store import inventory, pins
from service.store.commands import CommandDesk, Kind

ANSWER_S = 30.0
"""Longest wait for the worker: a rollback restores a checkpoint and reads replay members."""
_REFUSALS = problems(400, 404, 409, 413, 415, 422, 503)
Seq = Annotated[int, Path(ge=1, le=2**53)]


def checkpoint_routes(stream_of: StreamOf) -> APIRouter:
    """Return the routes of checkpoints and snapshots."""
    router = APIRouter(tags=["administer"])

    @router.get("/checkpoints")
    async def checkpoints(request: Request) -> CheckpointList:
        """List the checkpoints, newest first, and what is kept for good."""
        return await asyncio.to_thread(_checkpoints, (await stream_of(request)).settings.state_dir)

    @router.get("/snapshots")
    async def snapshots(request: Request) -> SnapshotList:
        """List the published snapshots, newest first."""
        at = await stream_of(request)
        found = await asyncio.to_thread(inventory.snapshots, at.settings.state_dir)
        return SnapshotList(snapshots=[SnapshotRow(**_row(asdict(one))) for one in found])

    @router.post(
        "/checkpoints/{seq}/rollback", responses=_REFUSALS, openapi_extra=command_body(Rollback)
    )
    async def rollback(seq: Seq, request: Request) -> Followed:
        """Go back to a checkpoint; later entries are read once more, or set aside."""
        asked = await read_command(request, Rollback)
        at = await stream_of(request)
        await _check_there(at.settings.state_dir, seq)
        return await _follow(at.desk, "rollback", {"checkpoint": seq, "mode": asked.mode})

    @router.post("/checkpoints/{seq}/pin", responses=_REFUSALS, openapi_extra=command_body(Pin))
    async def pin(seq: Seq, request: Request) -> Followed:
        """Keep a copy of a checkpoint, and of all it needs, for good."""
        asked = await read_command(request, Pin)
        at = await stream_of(request)
        await _check_there(at.settings.state_dir, seq)
        return await _follow(at.desk, "pin", {"checkpoint": seq, "name": asked.name})

    @router.post(
        "/resync",
        responses=problems(400, 409, 413, 415, 422, 503),
        openapi_extra=command_body(Resync),
    )
    async def resync(request: Request) -> Followed:
        """Go on although so many entries of the log are lost; any other number is refused."""
        asked = await read_command(request, Resync)
        return await _follow(
            (await stream_of(request)).desk, "resync", {"accept_loss": asked.accept_loss}
        )

    return router


async def _follow(desk: CommandDesk, kind: Kind, arguments: Mapping[str, Any]) -> Followed:
    """Return what the worker has done.

    Raises:
        Conflict: `command_refused`, with the worker's reason.
        Unavailable: it does not answer, or Redis does not.
    """
    answer = await desk.ask(kind, arguments, timeout_s=ANSWER_S)
    if not answer.ok:
        raise Conflict("command_refused", answer.detail)
    return Followed(detail=answer.detail)


async def _check_there(state_dir: FilePath, seq: int) -> None:
    there = await asyncio.to_thread(inventory.checkpoints, state_dir)
    if seq not in {one.seq for one in there}:
        listed = ", ".join(str(one.seq) for one in there) or "none"
        raise NotFound("unknown_checkpoint", f"expected a checkpoint of {listed}, got {seq}")


def _checkpoints(state_dir: FilePath) -> CheckpointList:
    pinned = pins.pins(state_dir)
    rows = [
        CheckpointRow(**_row(asdict(one)), pins=[pin.name for pin in pinned if pin.seq == one.seq])
        for one in inventory.checkpoints(state_dir)
    ]
    listed = [PinRow.model_validate(pin, from_attributes=True) for pin in pinned]
    return CheckpointList(checkpoints=rows, pins=listed)


def _row(facts: dict[str, Any]) -> dict[str, Any]:
    """Return facts as JSON has them: it knows no NaN."""
    return facts | {"age_s": None if math.isnan(facts["age_s"]) else round(facts["age_s"], 1)}
