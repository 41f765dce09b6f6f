"""Our own presets as methods: a learner in, `observe`, `predict` and `cost` out.

Dimension key: B batch, K classes.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

import learner
from bench.methods import Cost, Facts

TRAINED = 3.0
"""Sample-gradients of one sample trained once through one network: forward 1, backward 2."""


class Paper:
    """LEViT as published; see `learner.paper`."""

    def __init__(self, facts: Facts, config: learner.LearnerConfig) -> None:
        """Make a fresh learner of `config`."""
        self._levit = learner.LEViT(config)
        self._flat = facts.kind != "image"
        self._spent = 0.0
        self._trace: list[tuple[int, float]] = []

    def observe(self, x: Tensor, y: Tensor) -> None:
        """Learn once; count two networks an expert, ViT and VAE."""
        levit = self._levit
        replayed = levit.config.replay.per_batch if len(levit.memory) else 0
        tested = 2 * len(x) * len(levit.mixture.experts)  # observe predicts before it learns
        self._spent += tested + 2 * TRAINED * (len(x) + replayed)
        measured = levit.counts.unmeasured
        report = levit.observe(self._shaped(x), y)
        if report.novelty is not None and levit.counts.unmeasured <= measured:
            self._trace.append((levit.counts.samples, report.novelty))

    def predict(self, x: Tensor) -> Tensor:
        """Return the most probable label of each sample; -1 where none is known."""
        answer = self._levit.predict(self._shaped(x))
        return labels(answer.classes, answer.probabilities_BK)

    def cost(self) -> Cost:
        """Return the bytes of all tensors of the learner's state."""
        levit = self._levit
        return Cost(
            state_bytes=sum(tensor.nbytes for tensor in learner.dump(levit).tensors.values()),
            parameters=sum(p.numel() for p in levit.mixture.parameters()),
            sample_gradients=self._spent,
            experts=len(levit.mixture.experts),
            expansions=levit.counts.expansions,
        )

    def novelty_trace(self) -> list[tuple[int, float]]:
        """Return (samples observed, novelty) for every measurement so far."""
        return self._trace

    def _shaped(self, x: Tensor) -> Tensor:
        """Return samples as the engine hands them over: series flattened."""
        return x.flatten(1) if self._flat else x


def labels(classes: Sequence[int | str], probabilities_BK: Tensor) -> Tensor:
    """Return the most probable of `classes` for each sample, int64 [B]; -1 for a row of zeros."""
    if not classes:
        return torch.full((len(probabilities_BK),), -1)
    best = probabilities_BK.max(1)
    named_K = torch.tensor([int(label) for label in classes])
    return torch.where(best.values > 0, named_K[best.indices], -1)


def paper(  # noqa: PLR0913  the options of the preset, keyword-only
    facts: Facts,
    *,
    kind: Literal["vit", "dnn"] = "vit",
    fusion: Literal["none", "fixed", "gated"] = "gated",
    capacity: int | None = None,
    replayed: int = 54,
    threshold: float | None = None,
    learning_rate: float | None = None,
    patch: int | None = None,
    max_experts: int = 32,
) -> Paper:
    """Return the preset `paper`; None means its own value for this kind of sample."""
    shape = facts.shape
    if facts.kind == "series":
        shape = (math.prod(facts.shape),)
    config = learner.paper(
        shape,
        kind=kind,
        fusion=fusion,
        capacity=capacity,
        per_batch=replayed,
        threshold=threshold,
        learning_rate=learning_rate,
        patch=patch,
        max_experts=max_experts,
        seed=facts.seed,
    )
    return Paper(facts, config)
