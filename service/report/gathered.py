"""What a report is made of, asked of a service as any client asks."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from service.client import ApiError, AsyncClient, Event

MOST_EXPERTS = 24
"""Of the newest so many samples are shown."""
EACH = 6
"""Samples of one expert."""
QUIET_S, LISTENING_S = 0.5, 3.0
"""Events are past when none came for so long; and so long they are listened to at most."""

Samples = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathered:
    """What a service told of a stream."""

    model: Mapping[str, Any]
    """GET /experts."""
    timeline: Mapping[str, Any]
    """GET /timeline."""
    events: Sequence[Event] | None = ()
    """GET /events, those of the past; None where they are not known."""
    replay: Mapping[int, Samples] = field(default_factory=dict)
    """Samples of the replay memory by expert, as GET /experts/{id}/samples tells them."""
    missing: Sequence[str] = ()
    """Why there are no samples, in a sentence."""


async def gather(client: AsyncClient, listening: AsyncClient) -> Gathered:
    """Ask for everything; samples and events are left out where there are none.

    Args:
        client: of the stream.
        listening: the same for its events, one that does not repeat what was refused.

    Raises:
        ApiError: it was refused, or nothing is there.
    """
    model, timeline = await client.experts(), await client.timeline()
    replay, missing = await _samples(client, [one["id"] for one in model["experts"]])
    events = await _events(listening)
    return Gathered(model=model, timeline=timeline, events=events, replay=replay, missing=missing)


async def _samples(
    client: AsyncClient, experts: Sequence[int]
) -> tuple[dict[int, Samples], list[str]]:
    """Return samples by expert, and what is said of those that are missing."""
    found: dict[int, Samples] = {}
    try:
        for expert in experts[-MOST_EXPERTS:]:
            told = await client.samples(expert, EACH)
            if told["replay"] is None:
                return found, [f"Samples are not shown: {told['replay_reason']}."]
            found[expert] = told["replay"][:EACH]
    except ApiError as refusal:
        return found, [f"Samples are not shown: {refusal.message}."]
    return found, _unshown(found, hidden=len(experts) > MOST_EXPERTS)


def _unshown(found: Mapping[int, Samples], *, hidden: bool) -> list[str]:
    """Return what is said where not all experts have a picture."""
    samples = [one for several in found.values() for one in several]
    if not samples:
        return ["Samples are not shown: none were found in the replay memory."]
    if not any(one.get("png") for one in samples):
        return ["Samples are not shown: they are no images."]
    return [f"Samples are shown of the newest {MOST_EXPERTS} experts."] if hidden else []


async def _events(client: AsyncClient) -> list[Event] | None:
    """Return what happened so far; None where the service cannot tell."""
    found: list[Event] = []
    coming = client.events(after="0")
    try:
        async with asyncio.timeout(LISTENING_S):
            while True:
                found.append(await asyncio.wait_for(anext(coming), QUIET_S))
    except (TimeoutError, ApiError):
        return found or None  # the beginning of the stream is an event, so there is one
