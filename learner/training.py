"""Optimiser steps on the active expert: cross-entropy + beta x negative ELBO (LEViT).

Adam, as in the paper. Losses and gradients are checked before each step, and all steps since an
`UndoPoint` can be undone.
Dimension key: B samples of a step, J frozen experts, D width, K classes of the active expert.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from learner.config import TrainingConfig
from learner.errors import NonFiniteError
from learner.mixture import Mixture
from learner.report import Life, Losses

IGNORED = -100  # the target of an unlabelled sample in PyTorch's cross-entropy


@dataclass(frozen=True, slots=True)
class Step:
    """The samples of one optimiser step."""

    x: Tensor
    """Scaled to the model, [B, ...]."""
    column_B: Tensor
    """Column of the active expert's classifier, IGNORED where there is no label."""
    frozen_BJD: Tensor
    """Features of the frozen experts."""


@dataclass(frozen=True, slots=True)
class UndoPoint:
    """What brings mixture and optimiser back to an earlier moment. Ours."""

    lives: list[Life]
    head: tuple[nn.Parameter, nn.Parameter]
    optimizer: torch.optim.Adam
    weights: list[tuple[nn.Parameter, Tensor]]
    moments: dict[Tensor, dict[str, Any]]


class Trainer:
    """Adam over the parameters that may change (Kingma & Ba 2015)."""

    def __init__(self, mixture: Mixture, config: TrainingConfig) -> None:
        self.mixture = mixture
        self.config = config
        self.restart()

    def restart(self) -> None:
        """Begin with a fresh optimiser, for a fresh active expert."""
        parameters = self.mixture.learning_parameters()
        self.optimizer = torch.optim.Adam(parameters, lr=self.config.learning_rate, fused=True)

    def show_classes(self, new: list[int], generator: Generator) -> None:
        """Widen the active classifier by the classes `new`, and the optimiser's moments with it."""
        if not new:
            return
        old = list(self.mixture.active.head.parameters())
        self.mixture.show_classes(new, generator)
        for before, after in zip(old, self.mixture.active.head.parameters(), strict=True):
            moments = self.optimizer.state.pop(before, {})
            self.optimizer.state[after] = {
                name: value if name == "step" else _padded(value, len(new))
                for name, value in moments.items()
            }
        self.optimizer.param_groups[0]["params"] = self.mixture.learning_parameters()

    def undo_point(self) -> UndoPoint:
        """Return what `undo` needs; copies the active expert and its moments, 2 % of a step."""
        expert = self.mixture.active
        parameters = self.mixture.learning_parameters()
        return UndoPoint(
            lives=self.mixture.copied_lives(),
            head=(expert.head.weight_KD, expert.head.bias_K),
            optimizer=self.optimizer,
            weights=[(parameter, parameter.detach().clone()) for parameter in parameters],
            moments={
                parameter: {name: value.clone() for name, value in state.items()}
                for parameter, state in self.optimizer.state.items()
            },
        )

    @torch.no_grad()
    def undo(self, point: UndoPoint) -> None:
        """Put experts, classifier, weights and optimiser back to `point`."""
        self.mixture.shrink(point.lives)
        self.mixture.active.head.weight_KD, self.mixture.active.head.bias_K = point.head
        for parameter, weights in point.weights:
            parameter.copy_(weights)
        self.optimizer = point.optimizer
        self.optimizer.state.clear()
        self.optimizer.state.update(point.moments)
        self.optimizer.param_groups[0]["params"] = self.mixture.learning_parameters()

    def run(self, steps: Iterable[Step], generator: Generator) -> Losses:
        """Take one optimiser step per element and return the mean losses.

        Raises:
            NonFiniteError: naming the term; steps already taken stay until `undo`.
        """
        sums, samples, labelled = [0.0, 0.0], 0, 0
        for step in steps:
            cross_entropy, negative_elbo, n_labelled = self._step(step, generator)
            sums[0] += cross_entropy * n_labelled
            sums[1] += negative_elbo * len(step.x)
            samples, labelled = samples + len(step.x), labelled + n_labelled
        return Losses(sums[0] / labelled if labelled else None, sums[1] / samples)

    def _step(self, step: Step, generator: Generator) -> tuple[float, float, int]:
        expert, parameters = self.mixture.active, self.optimizer.param_groups[0]["params"]
        latent = expert.known_mean_Z.shape[0]
        noise_BZ = torch.randn(len(step.x), latent, generator=generator).to(step.x.device)
        negative_elbo = -expert.vae.elbo(step.x, noise_BZ).mean()
        n_labelled = int((step.column_B != IGNORED).sum())
        cross_entropy = negative_elbo.new_zeros(())
        if n_labelled:
            own_BD = expert.features(self.mixture.backbone(step.x))
            logits_BK = expert.logits(own_BD, step.frozen_BJD)
            cross_entropy = F.cross_entropy(logits_BK, step.column_B, ignore_index=IGNORED)
        self.optimizer.zero_grad()
        (cross_entropy + self.config.beta * negative_elbo).backward()
        _require_finite(cross_entropy, negative_elbo, parameters)
        self.optimizer.step()
        return cross_entropy.item(), negative_elbo.item(), n_labelled


def _padded(moment_K: Tensor, missing: int) -> Tensor:
    return torch.cat([moment_K, moment_K.new_zeros(missing, *moment_K.shape[1:])])


def _require_finite(
    cross_entropy: Tensor, negative_elbo: Tensor, parameters: list[nn.Parameter]
) -> None:
    """Raise NonFiniteError unless both losses and every gradient are finite."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    for name, value in (
        ("cross-entropy", cross_entropy), ("negative ELBO", negative_elbo), ("gradient norm", norm)
    ):  # fmt: skip
        if not value.isfinite():
            raise NonFiniteError(f"expected a finite {name}, got {value.item()}")
