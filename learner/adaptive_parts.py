"""What the learner of preset `default` consists of, its size, and the way back one mini-batch.

`learner.adaptive` says what it does with it. Ours.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from learner.adaptive_config import AdaptiveConfig
from learner.adaptive_mixture import AdaptiveExpert, AdaptiveMixture
from learner.adaptive_training import AdaptiveTraining, TrainingPoint
from learner.arrivals import Arrivals
from learner.detector import ChangeDetector
from learner.encoder import Encoder
from learner.error_detector import ErrorDetector
from learner.evaluation import FadedAccuracy
from learner.growth import Growth
from learner.held_out import kept_bytes
from learner.knowledge import Knowledge, KnowledgePoint
from learner.report import Losses
from learner.reservoir import ReplayBuffer, ReplayPoint
from learner.samples import UNLABELLED, Label
from learner.view import compact

_PER_MEMBER = 49  # bytes of a replay member's class, id, key, slot, source and flag


@dataclass(kw_only=True, slots=True)
class AdaptiveCounts:
    """What the learner has done so far, in plain numbers; part of the state."""

    step: int = 0
    samples: int = 0
    labelled: int = 0
    correct: int = 0
    expansions: int = 0
    refused_max_experts: int = 0
    spent: float = 0.0
    """Sample-gradients spent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptivePoint:
    """The learner before a mini-batch."""

    own: dict[str, Any]
    """Attributes of the learner, all of which are replaced and never changed."""
    mixture: dict[str, Any]
    """The same of the mixture."""
    classes: int
    experts: list[tuple[AdaptiveExpert, AdaptiveExpert]]
    """Each with a copy of its plain facts."""
    training: TrainingPoint | None
    knowledge: KnowledgePoint | None
    replay: ReplayPoint
    counts: AdaptiveCounts
    accuracy: tuple[tuple[float, float], list[tuple[float, float]]]
    random: Tensor


class AdaptiveParts:
    """Everything that the learner is; all of it is its state."""

    def __init__(self, config: AdaptiveConfig, *, device: str = "cpu") -> None:
        """Make a learner that has seen nothing.

        Args:
            config: every hyper-parameter.
            device: where it computes, `cpu` or `cuda`.
        """
        self.config = config
        self.device = torch.device(device)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.mixture = AdaptiveMixture(config, self.device)
        self.pending: tuple[Arrivals, ...] = ()
        """Mini-batches that wait for the encoder to be fitted."""
        self.knowledge: Knowledge | None = None
        self.training: AdaptiveTraining | None = None
        self.replay = self.fresh_buffer()
        alpha, horizon = config.false_expansion_probability / 2, config.horizon  # two detectors
        self.growth = Growth(
            change=ChangeDetector(alpha=alpha, horizon=horizon),
            errors=ErrorDetector(alpha=alpha, horizon=horizon),
        )
        self.accuracy = FadedAccuracy()
        self.counts = AdaptiveCounts()
        self.losses = Losses(None, 0.0)

    @property
    def state_bytes(self) -> int:
        """Bytes of all that it keeps: sums, replay buffer with its caches, experts, optimisers."""
        tensors = list(self.mixture.tensors())
        for optimizer in self.training.optimizers if self.training else ():
            tensors += [v for state in optimizer.state.values() for v in state.values()]
        known = self.knowledge
        memories = known.memory.nbytes + known.own.nbytes if known is not None else 0
        held = sum(part.x.nbytes for part in self.pending)
        if self.mixture.encoder is not None:
            held += kept_bytes(self.mixture.encoder, self.replay)
        return memories + held + self.replay.nbytes + sum(t.nbytes for t in tensors)

    def fresh_buffer(self, encoder: Encoder | None = None) -> ReplayBuffer:
        """Return an empty replay buffer; how many it may hold depends on the size of tokens."""
        config = self.config
        tokens = encoder.token_shape if encoder else (0,)
        each = math.prod(config.input_shape) * (1 if len(config.input_shape) == 3 else 4)
        most = max(1000, config.replay_bytes // (each + math.prod(tokens) + _PER_MEMBER))
        most = min(most, config.capacity or most)
        replay = ReplayBuffer(
            most,
            config.input_shape,
            salt=config.seed,
            share=config.source_share,
            device=self.device,
        )
        replay.register("tokens", tokens, torch.int8)
        replay.register("ready", (), torch.bool)
        return replay

    def meet(self, x: Tensor, y_B: Tensor, unseen: list[Label]) -> None:
        """Make room for new classes and count the labels."""
        mixture = self.mixture
        mixture.classes.extend(unseen)
        K, y_L = len(mixture.classes), y_B[y_B != UNLABELLED]
        counts_K = torch.bincount(y_L, minlength=K).double().cpu()
        counts_K[: len(mixture.counts_K)] += mixture.counts_K
        mixture.counts_K = counts_K.to(self.device)
        if mixture.encoder is None:
            view_BV = compact(x)
            first_KV = view_BV.new_zeros(K, view_BV.shape[1])
            if len(mixture.first_KV):
                first_KV[: len(mixture.first_KV)] = mixture.first_KV
            mixture.first_KV = first_KV.index_add(0, y_L, view_BV[y_B != UNLABELLED])

    def count(self, right_L: Tensor, arrivals: Arrivals) -> None:
        """Count a mini-batch and which of its labelled samples were answered right."""
        counts, y_B = self.counts, arrivals.y_B
        counts.step += 1
        counts.samples += arrivals.first
        counts.labelled += len(right_L)
        counts.correct += int(right_L.sum())
        self.accuracy.count(right_L, y_B[y_B != UNLABELLED], len(self.mixture.classes))

    def undo_point(self) -> AdaptivePoint:
        """Return what brings everything back after a mini-batch."""
        own = ("pending", "knowledge", "training", "replay", "growth", "losses")
        mixture = ("counts_K", "encoder", "first_KV", "read_out", "pools", "recent", "overruled")
        return AdaptivePoint(
            own={name: getattr(self, name) for name in own},
            mixture={name: getattr(self.mixture, name) for name in mixture},
            classes=len(self.mixture.classes),
            experts=[(e, replace(e, life=replace(e.life))) for e in self.mixture.experts],
            training=self.training.undo_point() if self.training else None,
            knowledge=self.knowledge.undo_point() if self.knowledge else None,
            replay=self.replay.undo_point(),
            counts=replace(self.counts),
            accuracy=(self.accuracy.overall, self.accuracy.by_class),
            random=self.generator.get_state(),
        )

    def undo(self, point: AdaptivePoint) -> None:
        """Put everything back to `point`."""
        for name, value in point.own.items():
            setattr(self, name, value)
        for name, value in point.mixture.items():
            setattr(self.mixture, name, value)
        del self.mixture.classes[point.classes :]
        self.mixture.experts = [expert for expert, _ in point.experts]
        for expert, was in point.experts:
            expert.life, expert.usual, expert.own = was.life, was.usual, was.own
        if self.training is not None and point.training is not None:
            self.training.undo(point.training)
        if self.knowledge is not None and point.knowledge is not None:
            self.knowledge.undo(point.knowledge)
        self.replay.undo(point.replay)
        self.counts = point.counts
        self.accuracy.overall, self.accuracy.by_class = point.accuracy
        self.generator.set_state(point.random)
