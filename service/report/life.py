"""What a time line says, as a report tells it.

Dimension key: P points, Q wide stretches, K classes that are told apart.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Self

from service.timeline import ENOUGH

MEMORY = 1000
"""Labelled samples over which accuracy fades, as on the live page."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Birth:
    """When an expert was there for the first time, as well as the time line knows it."""

    expert: int
    """Its place among all, the first is 0."""
    samples: int
    """Since the start."""
    at: float
    """Unix seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Return:
    """A class that was asked for in two stretches at least."""

    name: str
    best: float
    """Accuracy in the best of its stretches but the newest, 0 to 1."""
    best_at: int
    newest: float
    newest_at: int
    """Samples since the start, at the end of that stretch."""
    was_away: bool
    """Whether it was gone for a stretch and came back."""

    @property
    def drop(self) -> float:
        """How much was forgotten; below 0 where it is answered better than ever."""
        return self.best - self.newest


@dataclass(frozen=True, slots=True, kw_only=True)
class Life:
    """A stream's life; all empty where nothing was learned."""

    ends: list[int]
    """[P] samples since the start."""
    at: list[float]
    """[P] Unix seconds."""
    accuracy: list[float | None]
    """[P] faded, 0 to 1; None before the first label."""
    novelty: list[float | None]
    """[P] the greatest of each stretch."""
    experts: list[int]
    """[P]"""
    births: list[Birth]
    threshold: float | None
    classes: list[str]
    """[K] names."""
    wide_ends: list[int]
    """[Q] samples since the start."""
    by_class: list[list[tuple[int, int]]]
    """[Q, K] labelled, and right of them."""
    confusion: list[list[int]]
    """[K, K + 1] true class by answered class; the last column: no answer."""
    forgetting: float | None

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Self:
        """Return what GET /timeline told."""
        points, wide = told["points"], told["by_class"]
        ends = list(accumulate(points["samples"]))
        return cls(
            ends=ends,
            at=points["at"],
            accuracy=faded(points["correct"], points["labelled"]),
            novelty=points["novelty"],
            experts=points["experts"],
            births=_births(points["experts"], ends, points["at"]),
            threshold=told["threshold"],
            classes=["others" if one is None else str(one) for one in told["classes"]],
            wide_ends=list(accumulate(wide["samples"])),
            by_class=[
                list(zip(*rows, strict=True))
                for rows in zip(wide["labelled"], wide["correct"], strict=True)
            ],
            confusion=told["confusion"],
            forgetting=told["forgetting"],
        )

    @property
    def returns(self) -> list[Return]:
        """The classes of which forgetting can be told, that with the largest drop first."""
        found = [
            _return(name, self.wide_ends, [row[k] for row in self.by_class])
            for k, name in enumerate(self.classes)
        ]
        return sorted((one for one in found if one is not None), key=lambda one: -one.drop)

    @property
    def accuracy_by_class(self) -> list[list[float | None]]:
        """[K, Q], None where no sample of the class came."""
        return [
            [row[k][1] / row[k][0] if row[k][0] else None for row in self.by_class]
            for k in range(len(self.classes))
        ]


def faded(correct: list[int], labelled: list[int]) -> list[float | None]:
    """Return accuracy over about the last `MEMORY` labelled samples; None before the first.

    >>> faded([0, 5, 0], [0, 10, 0])
    [None, 0.5, 0.5]
    """
    right, asked, found = 0.0, 0.0, list[float | None]()
    for n_right, n in zip(correct, labelled, strict=True):
        keep = math.exp(-n / MEMORY)
        right, asked = right * keep + n_right, asked * keep + n
        found.append(right / asked if asked else None)
    return found


def _return(name: str, ends: list[int], counts: list[tuple[int, int]]) -> Return | None:
    """Return how a class fared, from its [Q] samples and right answers; None where unknown."""
    asked = [q for q, (n, _) in enumerate(counts) if n >= ENOUGH]
    if len(asked) < 2:  # noqa: PLR2004  one stretch is nothing to compare with
        return None
    accuracies = {q: counts[q][1] / counts[q][0] for q in asked}
    best, newest = max(asked[:-1], key=accuracies.__getitem__), asked[-1]
    return Return(
        name=name,
        best=accuracies[best],
        best_at=ends[best],
        newest=accuracies[newest],
        newest_at=ends[newest],
        was_away=any(n == 0 for n, _ in counts[asked[0] : newest]),
    )


def _births(experts: list[int], ends: list[int], at: list[float]) -> list[Birth]:
    """Return one for each expert beyond those that were there at the first point."""
    found: list[Birth] = []
    for i in range(1, len(experts)):
        known = experts[0] + len(found)
        found += [Birth(expert=one, samples=ends[i], at=at[i]) for one in range(known, experts[i])]
    return found
