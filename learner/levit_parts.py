"""What LEViT counts, and the way back one mini-batch. Ours."""

from dataclasses import dataclass

from torch import Tensor

from learner.replay import MemoryPoint
from learner.report import Losses
from learner.scaler import Scaler
from learner.training import UndoPoint


@dataclass(kw_only=True, slots=True)
class Counts:
    """What the learner has done so far, in plain numbers; part of the state. Ours."""

    step: int = 0
    samples: int = 0
    labelled: int = 0
    correct: int = 0
    expansions: int = 0
    refused_max_experts: int = 0
    """Measurements of novelty that asked for an expert beyond the cap."""
    unmeasured: int = 0
    """Samples since novelty was last measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LevitPoint:
    """The learner before a mini-batch."""

    trainer: UndoPoint
    memory: MemoryPoint
    classes: int
    scaler: Scaler
    random: Tensor
    counts: Counts
    accuracy: tuple[tuple[float, float], list[tuple[float, float]]]
    losses: Losses
    novelty: float | None
