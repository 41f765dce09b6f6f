"""The sums of preset `default`, when they are solved, and what the held-out slice decides of them.

All of it happens by count: read-outs are solved anew when labelled samples have grown by a share or
a class is new, the held-out slice is asked when they have grown by half or an expert is young.
Ours.
Dimension key: B batch, F features, O own features, K classes.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from learner.adaptive_mixture import GROWN, AdaptiveMixture
from learner.analytic import AnalyticMemory, AnalyticPoint
from learner.encoder import Encoded
from learner.held_out import FIRST_BOUND, HeldFeatures, judged
from learner.reservoir import ReplayBuffer

_SOLVE, _SOLVE_OWN, _JUDGE, _YOUNG = 1.08, 1.2, 1.5, 2.0  # growth that makes it due again
_AT_ONCE = 64  # features per sample between two solves: a solve costs then ten updates a sample
_FEWEST_OWN = 100  # samples of an expert before its own read-out is solved
_RIDGE_RULE = 0.3  # ridge where nothing was held out: this times features per sample, at most 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Marks:
    """At which counts things were last done; never changed."""

    solved: int = 0
    """Labelled samples when the analytic memory was last solved."""
    own_solved: int = 0
    """Samples in the active expert's own sums when they were."""
    judged: int = 0
    """Labelled samples when the held-out slice last decided everything."""
    young: int = GROWN
    """Samples of the active expert at which the slice decides again whom to trust."""
    ridge: float | None = None
    """Of the analytic memory, chosen on the slice."""
    held_below: int = FIRST_BOUND
    """Replay members with smaller keys are held out."""
    part_accuracy: tuple[float, ...] = ()
    """Of each part on the slice when it last decided, 0 to 1."""
    held: int = 0
    """Samples in the slice when it last decided."""


class KnowledgePoint(NamedTuple):
    """What brings the sums back to an earlier moment."""

    marks: Marks
    kept: HeldFeatures
    memories: list[tuple[AnalyticMemory, AnalyticPoint]]


class Knowledge:
    """The analytic memory of the whole past and the active expert's own sums."""

    def __init__(self, features: int, own_features: int, device: torch.device) -> None:
        self.memory = AnalyticMemory(features, device=device)
        self.own = AnalyticMemory(own_features, device=device)
        self.marks = Marks()
        self.kept = HeldFeatures.none()
        self.undo_point()

    def add(self, encoded: Encoded, y_B: Tensor, taught: Tensor, classes: int) -> None:
        """Take in the labelled samples; the active expert's own sums those not held out.

        Args:
            encoded: the mini-batch.
            y_B: class indexes, negative for none.
            taught: indexes of the labelled samples that are not held out.
            classes: classes known by now.
        """
        rows = (y_B >= 0).nonzero().squeeze(1)
        self.memory.add(encoded.features_BF[rows], y_B[rows], classes=classes)
        self.own.add(encoded.own_BO[taught], y_B[taught], classes=classes)

    def solve(self, mixture: AdaptiveMixture) -> None:
        """Solve the read-outs again if that is due."""
        counts_K = mixture.counts_K
        labelled = int(counts_K.sum())
        known = 0 if mixture.read_out is None else int(mixture.read_out.bias_K.isfinite().sum())
        new_class = known < int((counts_K > 0).sum())
        if labelled and (
            new_class or due(labelled, self.marks.solved, _SOLVE, self.memory.features // _AT_ONCE)
        ):
            self._solve_memory(mixture, labelled)
        own = int(self.own.counts_K.sum())
        if own >= _FEWEST_OWN and due(
            own, self.marks.own_solved, _SOLVE_OWN, self.own.features // _AT_ONCE
        ):
            self.solve_own(mixture)

    def solve_own(self, mixture: AdaptiveMixture) -> None:
        """Solve the active expert's own read-out, if it has any sample."""
        if own := int(self.own.counts_K.sum()):
            mixture.active.own = self.own.read_out(_ridge_rule(self.own.features, own))
            self.marks = replace(self.marks, own_solved=own)

    def judge(self, mixture: AdaptiveMixture, replay: ReplayBuffer) -> int:
        """Ask the held-out slice if that is due; return how many samples were asked, 0 or more."""
        marks, labelled = self.marks, int(mixture.counts_K.sum())
        grown = due(labelled, marks.judged, _JUDGE)
        if not grown and mixture.active.life.samples < marks.young:
            return 0
        young = int(_YOUNG * max(GROWN, mixture.active.life.samples))
        everything = grown or marks.ridge is None
        verdict = judged(
            mixture,
            self.memory,
            (replay, marks.held_below),
            marks.ridge,
            everything=everything,
            kept=self.kept,
        )
        self.marks = replace(marks, young=young, judged=labelled if everything else marks.judged)
        if verdict is None:
            return 0
        mixture.pools, self.kept = verdict.pools, verdict.kept
        self.marks = replace(
            self.marks,
            ridge=verdict.ridge,
            part_accuracy=verdict.accuracy_M,
            held=verdict.held,
        )
        if verdict.ridge != marks.ridge:
            self._solve_memory(mixture, labelled)
        return verdict.held

    def remove(self, encoded: Encoded, y_B: Tensor) -> None:
        """Take labelled samples out of the analytic memory again; not undoable."""
        self.memory.remove(encoded.features_BF, y_B)
        self.undo_point()  # folds what has queued up

    def reconsider(self, mixture: AdaptiveMixture, replay: ReplayBuffer) -> int:
        """Solve and ask anew, due or not, as samples have left; return how many were asked."""
        self.marks = replace(self.marks, judged=0)
        self._solve_memory(mixture, int(mixture.counts_K.sum()))
        return self.judge(mixture, replay)

    def begin_own(self) -> None:
        """Begin an expert's own sums anew, for a newborn."""
        self.own = AnalyticMemory(self.own.features, device=self.own.device)
        self.own.undo_point()
        self.marks = replace(self.marks, own_solved=0, young=GROWN)

    def undo_point(self) -> KnowledgePoint:
        """Return what `undo` needs; copies nothing."""
        memories = [(memory, memory.undo_point()) for memory in (self.memory, self.own)]
        return KnowledgePoint(self.marks, self.kept, memories)

    def undo(self, point: KnowledgePoint) -> None:
        """Put everything back to the newest `undo_point`."""
        self.marks, self.kept = point.marks, point.kept
        self.memory, self.own = (memory for memory, _ in point.memories)
        for memory, earlier in point.memories:
            memory.undo(earlier)

    def _solve_memory(self, mixture: AdaptiveMixture, labelled: int) -> None:
        ridge = self.marks.ridge
        if ridge is None:
            ridge = _ridge_rule(self.memory.features, labelled)
        mixture.read_out = self.memory.read_out(ridge)
        self.marks = replace(self.marks, solved=labelled)


def due(now: int, then: int, growth: float, fewest: int = 0) -> bool:
    """Return whether a count has grown enough since it was last acted on, by `fewest` at least."""
    return now >= max(then * growth, then + max(16, fewest))


def _ridge_rule(features: int, samples: int) -> float:
    return min(1.0, _RIDGE_RULE * features / max(1, samples))
