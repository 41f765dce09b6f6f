"""Why a learner answers as it does, in plain values and arrays.

Dimension key: B batch, E experts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Heat:
    """Where in one image its answer comes from."""

    kind: str
    """`contribution`: what the places add to the score that the analytic memory gives the answered
    class; `attention`: what the answering network attends to (roll-out)."""
    cells: NDArray[np.float32]
    """[rows, columns]: 0 the cell with least of it in this image, 1 with most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Why B samples are answered as `predict` answers them; row i is sample i."""

    ids: Sequence[int]
    """Of the experts in order of birth, the columns of `weights`."""
    weights: NDArray[np.float32]
    """[B, E] share of each expert in the answer; in preset `default` the rest is the analytic
    memory's and the prior's, so that a row may be zeros."""
    parts: Sequence[Mapping[str, float]]
    """Share of each part of the answer in the weights of the pool, by name, summing to 1."""
    novelty: NDArray[np.float32]
    """[B] as `Prediction` tells it."""
    heat: Sequence[Heat | None]
    """None where samples are no images, or where what answers knows no places."""
