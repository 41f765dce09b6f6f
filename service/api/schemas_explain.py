"""What is told of why a sample is answered as it is, and of the samples of an expert."""

from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from service.engine.explanation import Explanation, Heat
from service.engine.protocol import Label

_DECIMALS = 3


class HeatMap(BaseModel):
    """Where in an image its answer comes from: rows from the top, 0 least in this image, 1 most."""

    kind: Literal["contribution", "attention"]
    """`contribution`: what places add to the score that the analytic memory gives the answered
    class; `attention`: the answering network's attention, rolled out over its layers."""
    rows: list[list[float]]

    @classmethod
    def of(cls, heat: Heat) -> Self:
        """Return what is told of one image."""
        return cls.model_validate({"kind": heat.kind, "rows": rounded(heat.cells)})


class Neighbour(BaseModel):
    """A sample of the replay memory that looks alike to the model."""

    sample_id: str
    """`<number of its entry in the log>:<index there>`."""
    distance: float
    """Euclidean, between the model's features of the two samples."""
    label: Label | None


class ExplanationAnswer(BaseModel):
    """Why one sample is answered as it is."""

    expert: int
    weights: dict[str, float]
    """Share of each expert in the answer, by id; what is left is the analytic memory's."""
    parts: dict[str, float]
    """Share of each part of the answer in the weights that pool them."""
    novelty: float | None
    heat: HeatMap | None
    """Null where samples are no images, or where what answers knows no places."""
    nearest: list[Neighbour] | None
    """Of at most 500 members of the replay memory, spread evenly over their ages."""
    nearest_reason: str | None = None
    """Why there is none."""


class ShownSample(BaseModel):
    """A sample of the replay memory."""

    sample_id: str
    """`<number of its entry in the log>:<index there>`."""
    label: Label | None
    png: str | None = None
    """Of an image, in base64."""
    values: list[Any] | None = None
    """Of a vector [D] or a series [T, C]."""


class SamplesAnswer(BaseModel):
    """Samples of one expert."""

    expert: int
    model_version: int
    replay: list[ShownSample] | None
    """Members of the replay memory that the served model lets this expert answer, spread evenly
    over their ages; of at most 500 that are looked at."""
    replay_reason: str | None = None
    """Why there are none."""
    drawn: list[str | list[Any]]
    """By the expert's density model, always the same ones of a model: PNG in base64, or values;
    empty where it has none that can draw."""


def told(
    explanation: Explanation, experts: NDArray[np.int64], nearest: list[list[Neighbour]] | str
) -> list[dict[str, Any]]:
    """Return the documents of samples, one each.

    Args:
        explanation: of them.
        experts: [B] who answers.
        nearest: of each; or why there are none.
    """
    rows = rounded(explanation.weights)
    known = nearest if isinstance(nearest, list) else [None] * len(rows)
    return [
        ExplanationAnswer(
            expert=int(experts[i]),
            weights=dict(zip(map(str, explanation.ids), rows[i], strict=True)),
            parts={name: round(w, _DECIMALS) for name, w in explanation.parts[i].items()},
            novelty=_finite(float(explanation.novelty[i])),
            heat=None if (heat := explanation.heat[i]) is None else HeatMap.of(heat),
            nearest=known[i],
            nearest_reason=nearest if isinstance(nearest, str) else None,
        ).model_dump()
        for i in range(len(rows))
    ]


def rounded(values: NDArray[np.float32]) -> list[Any]:
    """Return nested lists of numbers of three decimals."""
    listed: list[Any] = values.astype(np.float64).round(_DECIMALS).tolist()
    return listed


def _finite(value: float) -> float | None:
    return round(value, _DECIMALS) if np.isfinite(value) else None
