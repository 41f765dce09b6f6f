"""LEViT: the algorithm, top to bottom.

Ye & Bors, "Online Task-Free Continual Learning via Expansible Vision Transformer" (LEViT), Pattern
Recognition 2026. One mini-batch at a time, no task identity: the active expert learns from what
arrives and from the replay memory; when the full memory is novel to every frozen expert, the active
one is frozen and a fresh one takes over, which reads from the features of all before it.
Dimension key: B batch, E experts, J frozen experts, D width, K classes, M memory members, Z latent.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from learner.config import LearnerConfig
from learner.evaluation import FadedAccuracy
from learner.mixture import Evidence, Mixture
from learner.novelty import latent_statistics, novelty
from learner.replay import WindowMemory
from learner.samples import UNLABELLED, Label, Labels, checked_samples, class_indexes
from learner.scaler import Scaler
from learner.training import IGNORED, Losses, Step, Trainer


@dataclass(frozen=True, slots=True, kw_only=True)
class ObserveReport:
    """What one `observe` did."""

    step: int
    """Mini-batches learned so far, this one included."""
    expert: int
    """Id of the expert that learned it."""
    labelled: int
    """Samples with a label."""
    correct: int
    """Labelled samples predicted right before they were learned."""
    novelty: float | None
    """Of the full memory against the frozen experts; None while not full or nothing is frozen."""
    expanded: bool
    """Whether the mixture expanded after it."""
    losses: Losses
    added: Sequence[int]
    """Indexes into the mini-batch of the samples that joined the replay memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """Answers for B samples; row i is sample i."""

    classes: Sequence[Label]
    """All classes seen so far, in order of first appearance."""
    probabilities_BK: Tensor
    """Over `classes`, on the CPU; a row of zeros where no expert has seen a label."""
    experts_B: Tensor
    """Id of the expert that answers."""
    novelty_B: Tensor
    """Negative ELBO per input value under that expert, nats; large means unfamiliar."""

    @property
    def labels(self) -> list[Label | None]:
        """The most probable class of each sample; None where no expert has seen a label."""
        if not self.classes:
            return [None] * len(self.experts_B)
        best = self.probabilities_BK.max(1)
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return [self.classes[k] if p > 0 else None for k, p in pairs]


@dataclass(kw_only=True, slots=True)
class Counts:
    """What the learner has done so far, in plain numbers; part of the state. Ours."""

    step: int = 0
    samples: int = 0
    labelled: int = 0
    correct: int = 0
    expansions: int = 0
    refused_max_experts: int = 0


class LEViT:
    """The learner: observes mini-batches, predicts samples (Ye & Bors 2026).

    Only its own thread may call `observe`; `predict` changes nothing.
    """

    def __init__(self, config: LearnerConfig, *, device: str = "cpu") -> None:
        """Make a learner that has seen nothing.

        Args:
            config: every hyper-parameter, `learner.paper(...)` for the preset.
            device: where it computes, `cpu` or `cuda`.
        """
        self.config = config
        self.device = torch.device(device)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.mixture = Mixture(config, self.generator).to(self.device)
        self.scaler = Scaler.fresh(config.input_shape, self.device)
        self.memory = WindowMemory(config, self.device)
        self.trainer = Trainer(self.mixture, config.training)
        self.classes: list[Label] = []
        self.accuracy = FadedAccuracy()
        self.counts = Counts()
        self.losses = Losses(0.0, 0.0)
        self.novelty: float | None = None

    def observe(
        self, x: Tensor, labels: Labels | None = None, *, entry_number: int | None = None
    ) -> ObserveReport:
        """Learn once from one mini-batch; wholly or not at all.

        Args:
            x: samples, uint8 or float32 [B, C, H, W] (floats in [0, 1]), or float32 [B, D].
            labels: int64 [B] with -1 for none, or B strings with "" for none; None for none at all.
            entry_number: names the samples in the replay memory; default: the step.

        Raises:
            ShapeError: samples or labels do not fit; nothing changed.
            NonFiniteError: a loss or gradient was not finite; nothing changed.
        """
        x = checked_samples(x, self.config.input_shape).to(self.device)
        y_B, unseen = class_indexes(labels, len(x), self.classes)
        y_B = y_B.to(self.device)
        number = self.counts.step + 1 if entry_number is None else entry_number
        active = self.mixture.lives[-1].id

        # 1. Test: predict before learning.
        evidence = self.mixture.evidence(self.scaler(x))
        right_B = self._right(evidence, y_B)

        # 2. Train the active expert on the mini-batch and on samples replayed from memory.
        losses = self._train(x, y_B, unseen, evidence)

        # 3. Remember: the mini-batch joins the memory, the oldest members leave.
        ids_B2 = torch.stack([torch.full((len(x),), number), torch.arange(len(x))], 1)
        features_BJD = evidence.features_BED[:, :-1]
        added = self.memory.add(x, y_B, ids_B2, evidence.means_BJZ, features_BJD)
        self._count(right_B, y_B, losses)

        # 4. Expand when the full memory is novel to every frozen expert.
        expanded = self.memory.full and self._expand_if_novel()
        return ObserveReport(
            step=self.counts.step,
            expert=active,
            labelled=len(right_B),
            correct=int(right_B.sum()),
            novelty=self.novelty,
            expanded=expanded,
            losses=losses,
            added=added,
        )

    @torch.inference_mode()
    def predict(self, x: Tensor) -> Prediction:
        """Return labels, probabilities, answering experts and novelty; changes nothing.

        Args:
            x: samples as for `observe`.

        Raises:
            ShapeError: the samples do not fit.
        """
        x = checked_samples(x, self.config.input_shape).to(self.device)
        evidence = self.mixture.evidence(self.scaler(x))
        routed_B = self.mixture.route(evidence.scores_BE)
        probabilities_BK = self.mixture.probabilities(evidence, routed_B, len(self.classes))
        ids_E = torch.tensor([life.id for life in self.mixture.lives])
        score_B = evidence.scores_BE.gather(1, routed_B[:, None]).squeeze(1)
        return Prediction(
            classes=tuple(self.classes),
            probabilities_BK=probabilities_BK.cpu(),
            experts_B=ids_E[routed_B.cpu()],
            novelty_B=-score_B.cpu() / x[0].numel(),
        )

    def _right(self, evidence: Evidence, y_B: Tensor) -> Tensor:
        """Return whether each labelled sample is predicted right, bool [labelled]."""
        known = (y_B != UNLABELLED) & (y_B < len(self.classes))
        right_B = torch.zeros_like(y_B, dtype=torch.bool)
        if known.any():
            routed_B = self.mixture.route(evidence.scores_BE)
            probabilities_BK = self.mixture.probabilities(evidence, routed_B, len(self.classes))
            answered_B = probabilities_BK.amax(1) > 0
            right_B = known & answered_B & (probabilities_BK.argmax(1) == y_B)
        return right_B[y_B != UNLABELLED]

    def _train(self, x: Tensor, y_B: Tensor, unseen: list[Label], evidence: Evidence) -> Losses:
        """Train the active expert; on any failure put everything back and raise."""
        replayed = self.config.replay.per_batch if len(self.memory) else 0
        steps = -(-(len(x) + replayed) // self.config.training.step_size)
        undo_point = self.trainer.undo_point(steps=steps)
        known, scaler, random = len(self.classes), self.scaler, self.generator.get_state()
        try:
            self.classes += unseen
            if not self.mixture.frozen:
                self.scaler = scaler.learned(x)
            own = {UNLABELLED, *self.mixture.lives[-1].classes}
            shown = [k for k in y_B.unique().tolist() if k not in own]
            self.trainer.show_classes(shown, self.generator)
            return self.trainer.run(self._steps(x, y_B, evidence, steps), self.generator)
        except BaseException:
            self.trainer.undo(undo_point)
            del self.classes[known:]
            self.scaler = scaler
            self.generator.set_state(random)
            raise

    def _steps(self, x: Tensor, y_B: Tensor, evidence: Evidence, steps: int) -> Iterator[Step]:
        """Yield the mini-batch and the replayed samples, shuffled, in equal optimiser steps."""
        memory = self.memory
        replayed = memory.draw(self.config.replay.per_batch, self.generator)
        order = torch.randperm(len(x) + len(replayed), generator=self.generator)
        source = torch.cat([-1 - torch.arange(len(x)), replayed])[order]  # arriving: negative
        column_K = self._columns()
        for part in source.tensor_split(steps):
            new, old = (-1 - part[part < 0]).to(self.device), part[part >= 0].to(self.device)
            y = torch.cat([y_B[new], memory.y_M[old]])
            frozen_BJD = torch.cat([evidence.features_BED[new, :-1], memory.features_MJD[old]])
            yield Step(
                x=torch.cat([self.scaler(x[new]), self.scaler(memory.x[old])]),
                column_B=torch.where(y == UNLABELLED, IGNORED, column_K[y]),
                frozen_BJD=frozen_BJD,
            )

    def _columns(self) -> Tensor:
        """Return the active classifier's column of each known class, [K]."""
        column_K = torch.full((len(self.classes) or 1,), IGNORED)
        own = self.mixture.lives[-1].classes
        column_K[own] = torch.arange(len(own))
        return column_K.to(self.device)

    def _count(self, right_B: Tensor, y_B: Tensor, losses: Losses) -> None:
        counts = self.counts
        counts.step += 1
        counts.samples += len(y_B)
        counts.labelled += len(right_B)
        counts.correct += int(right_B.sum())
        self.mixture.lives[-1].samples += len(y_B)
        self.accuracy.count(right_B, y_B[y_B != UNLABELLED], len(self.classes))
        self.losses = losses

    def _expand_if_novel(self) -> bool:
        """Freeze the active expert and start a fresh one if the full memory is new to all frozen.

        With nothing frozen yet the first full memory expands (LEViT).
        """
        frozen, step = self.mixture.frozen, self.counts.step
        self.novelty = None
        if frozen:
            known_mean_JZ = torch.stack([expert.known_mean_Z for expert in frozen])
            known_deviation_JZ = torch.stack([expert.known_deviation_Z for expert in frozen])
            self.novelty = novelty(self.memory.means_MJZ, known_mean_JZ, known_deviation_JZ)
            if self.novelty < self.config.expansion.threshold:
                return False
        if len(self.mixture.experts) >= self.config.expansion.max_experts:
            self.counts.refused_max_experts += 1
            return False
        self._know_memory()
        self.mixture.expand(step=step, novelty=self.novelty, generator=self.generator)
        self.memory.clear(frozen=len(frozen) + 1)
        self.trainer.restart()
        self.counts.expansions += 1
        return True

    @torch.no_grad()
    def _know_memory(self) -> None:
        """Store with the active expert what its encoder makes of the memory it is frozen with."""
        active = self.mixture.active
        parts = self.memory.x.split(self.config.training.step_size)
        means_MZ = torch.cat([active.vae.encode(self.scaler(part))[0] for part in parts])
        mean_Z, deviation_Z = latent_statistics(means_MZ)
        active.known_mean_Z.copy_(mean_Z)
        active.known_deviation_Z.copy_(deviation_Z)
