"""What a report is made of, asked of a service as any client asks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Self

from service.client import ApiError, Client

MOST_EXPERTS = 24
"""Of the newest so many samples are shown."""
EACH = 6
"""Samples of one expert."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathered:
    """What a service told of a stream."""

    model: Mapping[str, Any]
    """GET /experts."""
    timeline: Mapping[str, Any]
    """GET /timeline."""
    replay: Mapping[int, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    """Samples of the replay memory by expert, as GET /experts/{id}/samples tells them."""
    missing: Sequence[str] = ()
    """What could not be had, in a sentence each."""

    @classmethod
    def of(cls, client: Client) -> Self:
        """Ask for everything; samples are left out where there are none.

        Raises:
            ApiError: it was refused, or nothing is there.
        """
        model = client.experts()
        timeline = client.timeline()
        replay: dict[int, Sequence[Mapping[str, Any]]] = {}
        missing: list[str] = []
        try:
            for expert in model["experts"][-MOST_EXPERTS:]:
                path = f"/experts/{expert['id']}/samples?n={EACH}"
                replay[expert["id"]] = client.document(path)["replay"][:EACH]
        except ApiError as refusal:
            missing.append(_why(refusal))
        else:
            missing += _unshown(model, replay)
        return cls(model=model, timeline=timeline, replay=replay, missing=missing)


def _why(refusal: ApiError) -> str:
    if refusal.status == HTTPStatus.NOT_FOUND:
        return "Samples are not shown: this service does not hand them out."
    return f"Samples are not shown: {refusal.message}."


def _unshown(
    model: Mapping[str, Any], replay: Mapping[int, Sequence[Mapping[str, Any]]]
) -> list[str]:
    """Return what there is no picture of."""
    found = [one for samples in replay.values() for one in samples]
    if not found:
        return ["Samples are not shown: the replay memory keeps none."]
    if not any(one.get("png") for one in found):
        return ["Samples are not shown: they are no images."]
    if len(model["experts"]) > MOST_EXPERTS:
        return [f"Samples are shown of the newest {MOST_EXPERTS} experts."]
    return []
