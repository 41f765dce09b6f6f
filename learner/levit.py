"""LEViT: the algorithm, top to bottom.

Ye & Bors, "Online Task-Free Continual Learning via Expansible Vision Transformer" (LEViT), Pattern
Recognition 2026. One mini-batch at a time, no task identity: the active expert learns from what
arrives and from the replay memory; when the full memory is novel to every frozen expert, the active
one is frozen and a fresh one takes over, which reads from the features of all before it.
Dimension key: B batch, J frozen experts, D width, K classes, M memory members, Z latent.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from learner.arrivals import Arrivals, Origin
from learner.config import LearnerConfig
from learner.evaluation import FadedAccuracy
from learner.levit_parts import Counts, LevitPoint
from learner.mixture import Evidence, Mixture
from learner.novelty import latent_statistics, novelty
from learner.replay import WindowMemory
from learner.report import Losses, ObserveReport, Prediction
from learner.samples import (
    NO_ANSWER,
    UNLABELLED,
    Label,
    Labels,
    checked_samples,
    class_indexes,
    judged,
)
from learner.training import IGNORED, Step, Trainer

_CHECKS_PER_WINDOW = 20  # how often novelty is measured while a full memory is replaced once


class LEViT:
    """The learner: observes mini-batches, predicts samples (Ye & Bors 2026).

    Only its own thread may call `observe`; `predict` changes nothing.
    """

    def __init__(
        self, config: LearnerConfig, *, device: str = "cpu", mixture: Mixture | None = None
    ) -> None:
        """Make a learner with an empty memory and a fresh optimiser.

        Args:
            config: every hyper-parameter, `learner.paper(...)` for the preset.
            device: where it computes, `cpu` or `cuda`.
            mixture: one to go on from; default: a fresh one.
        """
        self.config = config
        self.device = torch.device(device)
        self.generator = torch.Generator().manual_seed(config.seed)
        if mixture is None:
            mixture = Mixture(config, self.device)
            mixture.begin(self.generator)
        self.mixture = mixture
        self.memory = WindowMemory(config, self.device)
        self.trainer = Trainer(mixture, config.training)
        self.accuracy = FadedAccuracy()
        self.counts = Counts()
        self.losses = Losses(None, 0.0)
        self.novelty: float | None = None

    def observe(
        self,
        x: Tensor,
        labels: Labels | None = None,
        *,
        entry_number: int | None = None,
        source: int = 0,
    ) -> ObserveReport:
        """Learn once from one mini-batch; wholly or not at all.

        Args:
            x: samples, uint8 or float32 [B, C, H, W] (floats in [0, 1]), or float32 [B, D].
            labels: int64 [B] with -1 for none, or B strings with "" for none; None for none at all.
            entry_number: names the samples in the replay memory; default: the step.
            source: a small number >= 0 that says who sent them.

        Raises:
            ShapeError: samples or labels do not fit; nothing changed.
            NonFiniteError: a loss or gradient was not finite; nothing changed.
        """
        return self._whole(x, labels, (entry_number, source), None)

    def label(
        self,
        x: Tensor,
        labels: Labels,
        right: Sequence[bool | None],
        *,
        entry_number: int | None = None,
        source: int = 0,
    ) -> ObserveReport:
        """Learn the labels of samples that were observed before without; wholly or not at all.

        Ours. They are trained on as replayed samples are, and join the memory with their labels.
        They are no arrivals: neither the scaler nor the measuring of novelty counts them again.

        Takes what `observe` does, and of each sample whether it was answered right when somebody
        asked; None: it is asked now. The samples are of the source now that sent the labels.

        Raises:
            ShapeError, NonFiniteError: as `observe`.
        """
        return self._whole(x, labels, (entry_number, source), right)

    def predict(self, x: Tensor) -> Prediction:
        """Return labels, probabilities, answering experts and novelty; see `Mixture.predict`."""
        return self.mixture.predict(x)

    def recall(self, x: Tensor) -> Prediction:
        """Return what it knows of the past: the same, as no part of it follows the present only."""
        return self.predict(x)

    def expand(self) -> bool:
        """Freeze the active expert and start a fresh one.

        Returns:
            Whether it did; it cannot while the memory is empty, or at the cap.
        """
        mixture = self.mixture
        if len(self.memory) == 0:
            return False
        if len(mixture.experts) >= self.config.expansion.max_experts:
            self.counts.refused_max_experts += 1
            return False
        self._know_memory()
        mixture.expand(step=self.counts.step, novelty=self.novelty, generator=self.generator)
        self.memory.clear(frozen=len(mixture.frozen))
        self.trainer.restart()
        self.counts.expansions += 1
        return True

    def _whole(
        self, x: Tensor, labels: Labels | None, origin: Origin, right: Sequence[bool | None] | None
    ) -> ObserveReport:
        """Learn, or be as before; `right` only where the samples were here before."""
        entry_number, source = origin
        x = checked_samples(x, self.config.input_shape).to(self.device)
        y_B, unseen = class_indexes(labels, len(x), self.mixture.classes)
        number = self.counts.step + 1 if entry_number is None else entry_number
        arrivals = Arrivals.of(x, y_B.to(self.device), (number, source), first=right is None)
        before = self._undo_point(len(x))
        try:
            return self._observe(arrivals, unseen, right)
        except BaseException:
            self._undo(before)
            raise

    def _observe(
        self, arrivals: Arrivals, unseen: list[Label], right: Sequence[bool | None] | None
    ) -> ObserveReport:
        x, y_B, active = arrivals.x, arrivals.y_B, self.mixture.lives[-1].id

        # 1. Test: predict before learning.
        evidence = self.mixture.evidence(self.mixture.scaler(x))
        tested_L2 = judged(self._guess(evidence, y_B), y_B, right)
        right_L = tested_L2[:, 0] == tested_L2[:, 1]

        # 2. Train the active expert on the mini-batch and on samples replayed from memory.
        self._meet(arrivals, unseen)
        self.losses = self.trainer.run(self._steps(x, y_B, evidence), self.generator)

        # 3. Remember: the mini-batch joins the memory, the oldest members leave.
        added = self.memory.add(arrivals, (evidence.means_BJZ, evidence.features_BED[:, :-1]))
        self._count(right_L, arrivals)

        # 4. Expand when the full memory is novel to every frozen expert.
        expanded = right is None and self._measured() and self._expand_if_novel()
        return ObserveReport(
            step=self.counts.step,
            expert=active,
            labelled=len(right_L),
            correct=int(right_L.sum()),
            tested=tested_L2.tolist(),
            novelty=self.novelty,
            expanded=expanded,
            losses=self.losses,
            added=() if expanded else added,
        )

    def _guess(self, evidence: Evidence, y_B: Tensor) -> Tensor:
        """Return the class it answers for each labelled sample, [labelled]."""
        labelled_B, guess_B = y_B != UNLABELLED, torch.full_like(y_B, NO_ANSWER)
        if self.mixture.classes and labelled_B.any():
            routed_B = self.mixture.route(evidence.scores_BE)
            best = self.mixture.probabilities(evidence, routed_B).max(1)
            guess_B = torch.where(best.values > 0, best.indices, guess_B)
        return guess_B[labelled_B]

    def _meet(self, arrivals: Arrivals, unseen: list[Label]) -> None:
        """Make room for new classes; let the scaler learn while nothing is frozen."""
        mixture = self.mixture
        mixture.classes.extend(unseen)
        if arrivals.first and not mixture.frozen:
            mixture.scaler = mixture.scaler.learned(arrivals.x)
        own = {UNLABELLED, *mixture.lives[-1].classes}
        new = [k for k in arrivals.y_B.unique().tolist() if k not in own]
        self.trainer.show_classes(new, self.generator)

    def _steps(self, x: Tensor, y_B: Tensor, evidence: Evidence) -> Iterator[Step]:
        """Yield the mini-batch and the replayed samples, shuffled, in equal optimiser steps."""
        memory, scaler = self.memory, self.mixture.scaler
        replayed = memory.draw(self.config.replay.per_batch, self.generator)
        source = torch.cat([-1 - torch.arange(len(x)), replayed])  # what arrives is negative
        order = torch.randperm(len(source), generator=self.generator)
        steps = -(-len(source) // self.config.training.samples_per_step)
        column_K = self._columns()
        for part in source[order].tensor_split(steps):
            new, old = (-1 - part[part < 0]).to(self.device), part[part >= 0].to(self.device)
            y = torch.cat([y_B[new], memory.y_M[old]])
            frozen_BJD = torch.cat([evidence.features_BED[new, :-1], memory.features_MJD[old]])
            yield Step(
                x=torch.cat([scaler(x[new]), scaler(memory.x[old])]),
                column_B=torch.where(y == UNLABELLED, IGNORED, column_K[y]),
                frozen_BJD=frozen_BJD,
            )

    def _columns(self) -> Tensor:
        """Return the active classifier's column of each known class, [K]."""
        column_K = torch.full((len(self.mixture.classes) or 1,), IGNORED)
        own = self.mixture.lives[-1].classes
        column_K[own] = torch.arange(len(own))
        return column_K.to(self.device)

    def _count(self, right_L: Tensor, arrivals: Arrivals) -> None:
        counts, y_B = self.counts, arrivals.y_B
        counts.step += 1
        counts.samples += arrivals.first
        counts.labelled += len(right_L)
        counts.correct += int(right_L.sum())
        counts.unmeasured += arrivals.first
        self.mixture.lives[-1].samples += arrivals.first
        self.accuracy.count(right_L, y_B[y_B != UNLABELLED], len(self.mixture.classes))

    def _measured(self) -> bool:
        """Measure novelty if it is time, and say whether it was; None while it has no meaning.

        The cost grows with capacity and experts, not with the mini-batch, so it waits until a
        twentieth of the window is new; by count, as no clock may decide what is learned.
        """
        if not self.memory.full:
            self.novelty = None
            return False
        if self.counts.unmeasured * _CHECKS_PER_WINDOW < self.memory.capacity:
            return False
        self.counts.unmeasured = 0
        if frozen := self.mixture.frozen:
            known_mean_JZ = torch.stack([expert.known_mean_Z for expert in frozen])
            known_deviation_JZ = torch.stack([expert.known_deviation_Z for expert in frozen])
            self.novelty = novelty(self.memory.means_MJZ, known_mean_JZ, known_deviation_JZ)
        return True

    def _expand_if_novel(self) -> bool:
        """Freeze the active expert and start a fresh one if the memory is new to all frozen ones.

        With nothing frozen yet the first full memory expands (LEViT).
        """
        if self.novelty is not None and self.novelty < self.config.expansion.threshold:
            return False
        return self.expand()

    @torch.no_grad()
    def _know_memory(self) -> None:
        """Store with the active expert what its encoder makes of the memory it is frozen with."""
        active, scaler = self.mixture.active, self.mixture.scaler
        parts = self.memory.x.split(self.config.training.samples_per_step)
        means_MZ = torch.cat([active.vae.encode(scaler(part))[0] for part in parts])
        mean_Z, deviation_Z = latent_statistics(means_MZ)
        active.known_mean_Z.copy_(mean_Z)
        active.known_deviation_Z.copy_(deviation_Z)

    def _undo_point(self, n: int) -> LevitPoint:
        """Return what brings everything back after a mini-batch of n samples."""
        return LevitPoint(
            trainer=self.trainer.undo_point(),
            memory=self.memory.undo_point(n),
            classes=len(self.mixture.classes),
            scaler=self.mixture.scaler,
            random=self.generator.get_state(),
            counts=replace(self.counts),
            accuracy=(self.accuracy.overall, self.accuracy.by_class),
            losses=self.losses,
            novelty=self.novelty,
        )

    def _undo(self, point: LevitPoint) -> None:
        self.trainer.undo(point.trainer)
        self.memory.undo(point.memory)
        del self.mixture.classes[point.classes :]
        self.mixture.scaler = point.scaler
        self.generator.set_state(point.random)
        self.counts = point.counts
        self.accuracy.overall, self.accuracy.by_class = point.accuracy
        self.losses, self.novelty = point.losses, point.novelty
