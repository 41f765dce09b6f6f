"""GET /timeline: what is told of a stream's life.

Dimension key: P points, Q wider ones, K classes that are told apart.
"""

import math
from typing import Self

from pydantic import BaseModel

from service.api.predictor import Served
from service.engine.protocol import Label
from service.store.stream_ids import START
from service.timeline import COUNTS, MOST_CLASSES, WIDE, Timeline


class Points(BaseModel):
    """Lists of P values, oldest first; each point stands for a stretch of entries."""

    at: list[float] = []
    """Unix seconds of the last entry."""
    entries: list[int] = []
    samples: list[int] = []
    labelled: list[int] = []
    correct: list[int] = []
    """Labelled samples predicted right before they were learned."""
    experts: list[int] = []
    """At the end of the stretch."""
    novelty: list[float | None] = []
    """The greatest; null where none was measured."""


class ByClass(BaseModel):
    """Lists of Q rows, oldest first, of K values each."""

    at: list[float] = []
    """[Q] Unix seconds of the last entry."""
    samples: list[int] = []
    """[Q] of all classes, and without a label."""
    labelled: list[list[int]] = []
    correct: list[list[int]] = []


class TimelineAnswer(BaseModel):
    """The answer of GET /timeline; empty lists before the first model."""

    model_version: int = 0
    position: str = START
    classes: list[Label | None] = []
    """Those that are told apart; null at the end for all others together."""
    threshold: float | None = None
    """Novelty at which the mixture expands."""
    points: Points = Points()
    by_class: ByClass = ByClass()
    confusion: list[list[int]] = []
    """Samples of each class (row) by what was answered before they were learned (column); the last
    column counts those without an answer."""
    forgetting: float | None = None
    """How much worse classes are answered now than at their best, 0 to 1; null where no class came
    back."""

    @classmethod
    def of(cls, served: Served) -> Self:
        """Return what is told of the served model's stream."""
        timeline = Timeline()
        timeline.load(served.timeline)
        info, known = served.info, len(timeline.confusion)
        named = info.summary["classes"][: min(known, MOST_CLASSES)]
        at = [milliseconds / 1000 for milliseconds in timeline.at_ms]
        counts = dict(zip(COUNTS, map(list, zip(*timeline.counts, strict=True)), strict=False))
        wide = range(0, len(at), WIDE)
        by_class = timeline.dump()["by_class"]
        return cls(
            model_version=info.version,
            position=info.position,
            classes=[*named, *[None] * (known - len(named))],
            threshold=info.summary["threshold"],
            points=Points(
                at=at,
                novelty=[None if math.isnan(one) else one for one in timeline.novelty],
                **counts,
            ),
            by_class=ByClass(
                at=[at[min(first + WIDE, len(at)) - 1] for first in wide],
                samples=[sum(counts["samples"][first : first + WIDE]) for first in wide],
                labelled=by_class[..., 0].tolist(),
                correct=by_class[..., 1].tolist(),
            ),
            confusion=[[*row[1:], row[0]] for row in timeline.confusion.tolist()],
            forgetting=timeline.forgetting,
        )
