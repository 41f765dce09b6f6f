"""GET /live: what is now."""

from typing import Literal

from pydantic import BaseModel

from service.store.stream_ids import START


class Now(BaseModel):
    """One message of GET /live; null where Redis is away or nothing is known yet."""

    model_version: int = 0
    position: str = START
    step: int = 0
    """Entries learned by the served model."""
    samples: int = 0
    """Their samples."""
    samples_per_s: float | None = None
    """Learned in the last ten seconds."""
    experts: int = 0
    accuracy: float | None = None
    """Of labelled samples before they were learned, faded over about a thousand; 0 to 1."""
    novelty: float | None = None
    threshold: float | None = None
    """Novelty at which the mixture expands."""
    backlog: int | None = None
    """Entries accepted and not in a checkpoint yet."""
    staleness_s: float | None = None
    """Age of the oldest entry that the served model has not learned, seconds."""
    answered_by: dict[int, float] = {}
    """Share of the answers of about the last minute, by expert."""
    worker: Literal["learning", "stopped", "unknown"] = "learning"
    problem: str | None = None
    """Why learning stopped, or why nobody knows."""
