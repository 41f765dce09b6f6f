"""The experts in order of birth, exactly one of them active, and the backbone they share (LEViT).

INVARIANT: the last expert is the active one and has gradients; all others, and from the first
expansion on the backbone too, are frozen and never change.
Dimension key: B batch, N tokens, E experts, J = E - 1 frozen experts, D width, K classes, Z latent.
"""

from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor, nn

from learner.config import LearnerConfig
from learner.expert import Expert, fill_weight_, initialised
from learner.vit import backbone


@dataclass(kw_only=True, slots=True)
class Life:
    """The plain facts of one expert; ours, for routing and for those who watch."""

    id: int
    born_step: int
    classes: list[int] = field(default_factory=list)
    """Indexes of the classes it has seen; the columns of its classifier."""
    samples: int = 0
    """Arriving samples it was trained on."""
    frozen_step: int | None = None
    novelty: float | None = None
    """The novelty that caused its birth."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the mixture makes of a mini-batch before it learns from it; nothing has a gradient."""

    scores_BE: Tensor
    """ELBO at the posterior mean under each expert, nats."""
    features_BED: Tensor
    """A_k(T) of each expert."""
    means_BJZ: Tensor
    """Posterior means under the frozen experts' encoders."""


class Mixture(nn.Module):
    """Experts, backbone and routing (LEViT; experts grow as in CN-DPM, Lee et al. 2020)."""

    def __init__(self, config: LearnerConfig, generator: Generator) -> None:
        super().__init__()
        self.config = config
        self.backbone: nn.Module = initialised(
            lambda: backbone(config.input_shape, config.network), generator
        )
        self.experts = nn.ModuleList()
        self.lives: list[Life] = []
        self._add(Life(id=0, born_step=0), generator)

    @property
    def active(self) -> Expert:
        """The one expert that learns."""
        return self.expert(len(self.experts) - 1)

    @property
    def frozen(self) -> list[Expert]:
        """The experts that no longer change, in order of birth."""
        return [self.expert(index) for index in range(len(self.experts) - 1)]

    def expert(self, index: int) -> Expert:
        """Return the expert born `index`-th, counted from 0."""
        expert = self.experts[index]
        assert isinstance(expert, Expert)  # noqa: S101  nn.ModuleList forgets the type
        return expert

    def learning_parameters(self) -> list[nn.Parameter]:
        """Return what training may change: the active expert, and first the backbone with it."""
        shared = list(self.backbone.parameters()) if len(self.experts) == 1 else []
        return [*shared, *self.active.parameters()]

    @torch.no_grad()
    def evidence(self, x: Tensor) -> Evidence:
        """Return scores, features and frozen posterior means of samples scaled to the model."""
        tokens_BND = self.backbone(x)
        features = [expert.module(tokens_BND) for expert in self._all()]
        scored = [expert.vae.score(x) for expert in self._all()]
        means = [mean_BZ for _, mean_BZ in scored[:-1]]
        latent = self.config.vae.latent
        return Evidence(
            scores_BE=torch.stack([score_B for score_B, _ in scored], 1),
            features_BED=torch.stack(features, 1),
            means_BJZ=torch.stack(means, 1) if means else x.new_empty(len(x), 0, latent),
        )

    def route(self, scores_BE: Tensor) -> Tensor:
        """Return the index of the expert that answers for each sample, [B]: the highest ELBO.

        Among experts that have seen a label, if there are any. An active expert that has seen
        fewer samples than a quarter of the memory holds is not routed to while a frozen one can
        answer; its density means nothing yet.
        """
        allowed = [bool(life.classes) for life in self.lives]
        if not any(allowed):
            allowed = [True] * len(allowed)
        young = self.lives[-1].samples < self.config.replay.capacity / 4
        if young and any(allowed[:-1]):
            allowed[-1] = False
        barred_E = torch.tensor(allowed, device=scores_BE.device).logical_not()
        return scores_BE.masked_fill(barred_E, -torch.inf).argmax(1)

    @torch.no_grad()
    def probabilities(self, evidence: Evidence, routed_B: Tensor, classes: int) -> Tensor:
        """Return p(y | x) of the routed expert for each sample over all `classes`, [B, K].

        Classes the expert has not seen get 0; a row is all 0 where it has seen none.
        """
        answer_BK = evidence.scores_BE.new_zeros(len(routed_B), classes)
        for index in routed_B.unique().tolist():
            life = self.lives[index]
            if not life.classes:
                continue
            rows = (routed_B == index).nonzero().squeeze(1)
            features_bED = evidence.features_BED[rows]
            logits_bk = self.expert(index).logits(features_bED[:, index], features_bED[:, :index])
            columns = torch.tensor(life.classes, device=rows.device)
            answer_BK[rows[:, None], columns] = logits_bk.softmax(1)
        return answer_BK

    def show_classes(self, new: list[int], generator: Generator) -> None:
        """Give the active expert's classifier a column for each class of `new`."""
        if not new:
            return
        head = self.active.head
        weight_KD = torch.empty(len(new), head.weight_KD.shape[1])
        fill_weight_(weight_KD, generator)
        head.weight_KD = nn.Parameter(
            torch.cat([head.weight_KD.data, weight_KD.to(head.weight_KD)])
        )
        head.bias_K = nn.Parameter(torch.cat([head.bias_K.data, head.bias_K.new_zeros(len(new))]))
        self.lives[-1].classes.extend(new)

    def expand(self, *, step: int, novelty: float | None, generator: Generator) -> None:
        """Freeze the active expert (and the backbone) and add a fresh active one."""
        self.lives[-1].frozen_step = step
        self.zero_grad()
        born = Life(id=self.lives[-1].id + 1, born_step=step, novelty=novelty)
        self._add(born, generator)

    def settle(self) -> None:
        """Let gradients reach the active expert, and the backbone while it is shared by one."""
        self.requires_grad_(False)  # noqa: FBT003  PyTorch's own signature
        self.active.requires_grad_(True)  # noqa: FBT003
        self.backbone.requires_grad_(len(self.experts) == 1)

    def _add(self, life: Life, generator: Generator) -> None:
        device = next(self.backbone.parameters()).device
        before = len(self.experts)
        expert = initialised(
            lambda: Expert(self.config, classes=0, frozen_before=before), generator
        )
        expert.vae.light_decoder_()
        self.experts.append(expert.to(device))
        self.lives.append(life)
        self.settle()

    def _all(self) -> list[Expert]:
        return [*self.frozen, self.active]
