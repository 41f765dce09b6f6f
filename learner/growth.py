"""When the mixture grows: the bets of `detector` on what the density models and the labels say.

The score of a sample is its smallest standard score, over all frozen experts and a frozen copy of
the active one; so a concept that returns is familiar. The copy is refreshed each time the active
expert has seen twice as many samples. Ours, after the design of LEViT (Ye & Bors 2026, eq. 6),
whose threshold it replaces by a probability.
Dimension key: B batch, J frozen experts, V view.
"""

import copy
import math
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Generator, Tensor

from learner.adaptive_mixture import AdaptiveExpert, Answer
from learner.density import Usual, novelty_scores
from learner.detector import ChangeDetector
from learner.error_detector import ErrorDetector
from learner.report import Expansion
from learner.vae import VAE
from learner.witnesses import Witnesses

WARM_UP = 200
"""Samples of an expert before its copy scores what arrives."""
_LIKE = 1.0  # standard deviations within which samples look like an expert's own
FAMILIAR = 0.05
"""p-value above which a sample counts as familiar to the error detector."""


@dataclass(frozen=True, slots=True)
class Scorer:
    """A frozen copy of the active expert's density model."""

    vae: VAE
    usual: Usual

    def standard(self, view_BV: Tensor) -> Tensor:
        """Return standard scores, [B]."""
        return self.usual.standard(novelty_scores(self.vae, view_BV))


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """The evidence for change so far; never changed, so an undo is to keep the old one."""

    change: ChangeDetector
    errors: ErrorDetector
    witnesses: Witnesses = field(default_factory=Witnesses)
    scorer: Scorer | None = None
    due: int = WARM_UP
    """Samples of the active expert at which its copy is taken anew."""

    @property
    def novelty(self) -> float:
        """log10 of the larger evidence, 0 at least."""
        return math.log10(max(1.0, self.change.evidence, self.errors.evidence))

    @property
    def threshold(self) -> float:
        """log10 of the evidence at which the mixture grows."""
        return math.log10(self.change.threshold)

    def watched(  # noqa: PLR0911  one return a verdict
        self,
        answer: Answer,
        origin: tuple[int, int],
        labels: tuple[Tensor, Tensor],
        generator: Generator,
    ) -> tuple[Expansion | None, Self]:
        """Return why to grow, if so, and the evidence after a mini-batch.

        Args:
            answer: what the mixture made of it before learning.
            origin: number of the entry, and who sent it.
            labels: wrong_B, whether a labelled sample was predicted wrong; counts_B, bool, whether
                a sample is labelled with a class that is known well.
            generator: breaks ties.
        """
        if self.scorer is None:
            return None, self
        frozen_BJ = answer.standard_BE[:, :-1]
        own_B1 = self.scorer.standard(answer.encoded.view_BV)[:, None]
        score_B = torch.cat([frozen_BJ, own_B1], 1).amin(1)
        verdict, change = self.change.observed(score_B, generator)
        if self.witnesses.since is not None:  # what the other sources see is told from before
            change = self.change
        wrong_B, counts_B = labels
        familiar_B = counts_B.cpu() & (verdict.p_B > FAMILIAR)
        alarm, errors = self.errors.judged(wrong_B.cpu()[familiar_B].float())
        entry, source = origin
        witnesses = self.witnesses.heard(source, entry, verdict.p_B)
        after = replace(self, change=change, errors=errors, witnesses=witnesses)
        if verdict.alarm is not None and _returned(answer.standard_BE):
            return None, after.restarted()
        if verdict.alarm is not None and not witnesses.alone:
            p_value = float(verdict.p_B[verdict.alarm])
            return Expansion("inputs", after.novelty, after.threshold, p_value), after
        if alarm is not None:
            return Expansion("errors", after.novelty, after.threshold, None), after
        if verdict.alarm is None:
            return None, after
        dropped, witnesses = witnesses.waited()
        after = replace(after, witnesses=witnesses)
        return None, after.restarted() if dropped else after

    def aged(self, expert: AdaptiveExpert) -> Self:
        """Return the evidence with a fresh copy of the active expert, when one is due."""
        young = expert.life.samples < self.due or expert.usual.weight == 0
        if young or self.witnesses.since is not None:
            return self
        vae = copy.deepcopy(expert.vae).requires_grad_(requires_grad=False)
        return replace(
            self,
            scorer=Scorer(vae, expert.usual),
            change=self.change.refreshed(),
            due=2 * max(self.due, expert.life.samples),
        )

    def restarted(self) -> Self:
        """Return the evidence as it is after an expansion: none."""
        return type(self)(
            change=self.change.restarted(),
            errors=self.errors.restarted(),
            witnesses=self.witnesses.restarted(),
        )


def _returned(standard_BE: Tensor) -> bool:
    """Return whether samples look like those of a frozen expert and unlike the active one's.

    That is a concept that is back: its expert answers again, and no new one is needed.
    """
    mean_E = standard_BE.mean(0)
    if len(mean_E) < 2:
        return False
    nearest = mean_E[:-1].min()
    return bool(nearest < _LIKE) and bool(mean_E[-1] > nearest + _LIKE)
