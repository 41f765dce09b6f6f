"""The experts in order of birth, exactly one of them active, and how they answer (LEViT).

INVARIANT: the last expert is the active one and has gradients; all others, and from the first
expansion on the backbone too, are frozen and never change.
Dimension key: B batch, E experts, J = E - 1 frozen experts, D width, K classes, Z latent.
"""

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Generator, Tensor, nn

from learner.config import LearnerConfig
from learner.expert import Expert, fill_weight_, hollow, initialised
from learner.report import Life, Prediction
from learner.samples import Label, checked_samples
from learner.scaler import Scaler
from learner.vit import backbone


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
    """Experts, backbone, scaler and routing (LEViT; experts grow as in CN-DPM, Lee et al. 2020)."""

    def __init__(self, config: LearnerConfig, device: torch.device) -> None:
        """Make a mixture without experts, its backbone without values."""
        super().__init__()
        self.config = config
        self.device = device
        self.backbone: nn.Module = hollow(partial(backbone, config.input_shape, config.network))
        self.experts = nn.ModuleList()
        self.lives: list[Life] = []
        self.scaler = Scaler.fresh(config.input_shape, device)
        self.classes: list[Label] = []
        """All classes seen so far, in order of first appearance."""

    @property
    def ordered(self) -> list[Expert]:
        """All experts in order of birth, the active one last."""
        return [expert for expert in self.experts if isinstance(expert, Expert)]

    @property
    def active(self) -> Expert:
        """The one expert that learns."""
        return self.ordered[-1]

    @property
    def frozen(self) -> list[Expert]:
        """The experts that no longer change, in order of birth."""
        return self.ordered[:-1]

    def learning_parameters(self) -> list[nn.Parameter]:
        """Return what training may change: the active expert, and first the backbone with it."""
        shared = list(self.backbone.parameters()) if len(self.experts) == 1 else []
        return [*shared, *self.active.parameters()]

    def begin(self, generator: Generator) -> None:
        """Fill the backbone and add the first expert."""
        make = partial(backbone, self.config.input_shape, self.config.network)
        self.backbone = initialised(make, generator).to(self.device)
        self._add(Life(id=0, born_step=0), generator)

    @torch.inference_mode()
    def predict(self, x: Tensor) -> Prediction:
        """Return labels, probabilities, answering experts and novelty; changes nothing.

        Args:
            x: samples, uint8 or float32 [B, C, H, W] (floats in [0, 1]), or float32 [B, D].

        Raises:
            ShapeError: the samples do not fit.
        """
        x = checked_samples(x, self.config.input_shape).to(self.device)
        evidence = self.evidence(self.scaler(x))
        routed_B = self.route(evidence.scores_BE)
        ids_E = torch.tensor([life.id for life in self.lives])
        score_B = evidence.scores_BE.gather(1, routed_B[:, None]).squeeze(1)
        return Prediction(
            classes=tuple(self.classes),
            probabilities_BK=self.probabilities(evidence, routed_B).cpu(),
            experts_B=ids_E[routed_B.cpu()],
            novelty_B=-score_B.cpu() / x[0].numel(),
        )

    @torch.no_grad()
    def evidence(self, x: Tensor) -> Evidence:
        """Return scores, features and frozen posterior means of samples scaled to the model."""
        tokens_BND = self.backbone(x)
        features = [expert.features(tokens_BND) for expert in self.ordered]
        scored = [expert.vae.score(x) for expert in self.ordered]
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
    def probabilities(self, evidence: Evidence, routed_B: Tensor) -> Tensor:
        """Return p(y | x) of the routed expert for each sample over all classes, [B, K].

        Classes the expert has not seen get 0; a row is all 0 where it has seen none.
        """
        answer_BK = evidence.scores_BE.new_zeros(len(routed_B), len(self.classes))
        for index in routed_B.unique().tolist():
            life = self.lives[index]
            if not life.classes:
                continue
            rows = (routed_B == index).nonzero().squeeze(1)
            features_bED = evidence.features_BED[rows]
            expert = self.ordered[index]
            logits_bk = expert.logits(features_bED[:, index], features_bED[:, :index])
            columns = torch.tensor(life.classes, device=rows.device)
            answer_BK[rows[:, None], columns] = logits_bk.softmax(1)
        return answer_BK

    def show_classes(self, new: list[int], generator: Generator) -> None:
        """Give the active expert's classifier a column for each class of `new`."""
        head = self.active.head
        weight_KD = torch.empty(len(new), head.weight_KD.shape[1])
        fill_weight_(weight_KD, generator)
        grown_KD = torch.cat([head.weight_KD.detach(), weight_KD.to(head.weight_KD)])
        head.weight_KD = nn.Parameter(grown_KD)
        head.bias_K = nn.Parameter(
            torch.cat([head.bias_K.detach(), head.bias_K.new_zeros(len(new))])
        )
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

    def copied_lives(self) -> list[Life]:
        """Return the lives as they are now, not to be changed by what follows."""
        return [replace(life, classes=list(life.classes)) for life in self.lives]

    def shrink(self, lives: list[Life]) -> None:
        """Take back an expansion: keep the experts of `lives`, the last one active again."""
        self.experts = self.experts[: len(lives)]
        self.lives = lives
        self.active.forget_memory()
        self.settle()

    def _add(self, life: Life, generator: Generator) -> None:
        make = partial(Expert, self.config, classes=0, frozen_before=len(self.experts))
        expert = initialised(make, generator)
        expert.vae.light_decoder_()
        self.experts.append(expert.to(self.device))
        self.lives.append(life)
        self.settle()
