"""The time line of a stream: what happened since the start, in bounded room.

At most 512 buckets, each a stretch of as many entries. When they are full, neighbours become one
and the stretch doubles: so the whole life stays in sight, ever coarser, and a million entries cost
as much as a thousand. What is told of classes has buckets eight times as wide. The time of a bucket
is that of its last entry's position in the log; no clock is asked, so a replay draws the same line.
Dimension key: P buckets, Q wide buckets, K classes as they are told apart here.
"""

import math
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from service.engine.protocol import NO_ANSWER, ObserveReport, Tensors

MOST_BUCKETS: Final = 512
WIDE: Final = 8
"""Buckets that a wide one spans."""
MOST_CLASSES: Final = 100
"""Classes that are told apart; those after them are one more, `others`."""
ENOUGH: Final = 10
"""Labelled samples of a class in a wide bucket from which its accuracy there has a say."""
COUNTS: Final = ("entries", "samples", "labelled", "correct", "experts")
"""Of a bucket: its entries, their samples, those with a label, those predicted right before they
were learned; and how many experts there were at its end."""


@dataclass(slots=True)
class Timeline:
    """What a learner has come through; fed with each entry, in order."""

    stretch: int = 1
    """Entries that a bucket spans; the newest may have fewer."""
    at_ms: list[int] = field(default_factory=list)
    """Of each bucket's last entry, Unix time in milliseconds."""
    counts: list[list[int]] = field(default_factory=list)
    """[P, 5] see `COUNTS`."""
    novelty: list[float] = field(default_factory=list)
    """[P] the greatest in the bucket; not a number where none was measured."""
    by_class: list[NDArray[np.int64]] = field(default_factory=list)
    """[Q][K, 2] labelled samples of each class, and how many of them were predicted right."""
    confusion: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 1), np.int64))
    """[K, 1 + K] samples of each class by what was answered; column 0 counts those without."""

    def add(self, at_ms: int, samples: int, report: ObserveReport | None) -> None:
        """Take an entry into account.

        Args:
            at_ms: when it was accepted, Unix time in milliseconds.
            samples: how many it had.
            report: of the learner; None where it learned nothing from it.
        """
        if not self.counts or self.counts[-1][0] == self.stretch:
            self._begin()
        bucket = self.counts[-1]
        self.at_ms[-1] = at_ms
        bucket[0] += 1
        if report is None:
            return
        bucket[1] += samples
        bucket[2] += report.labelled
        bucket[3] += report.correct
        bucket[4] = report.expert + 1 + report.expanded
        if report.novelty is not None:
            self.novelty[-1] = float(np.fmax(self.novelty[-1], report.novelty))
        if report.labelled:
            self._count(np.minimum(np.array(report.tested), MOST_CLASSES))

    def _begin(self) -> None:
        """Begin a bucket; make room first where there is none."""
        if len(self.counts) == MOST_BUCKETS:
            self._double()
        if len(self.counts) % WIDE == 0:
            self.by_class.append(np.zeros((len(self.confusion), 2), np.int64))
        self.at_ms.append(0)
        experts = self.counts[-1][4] if self.counts else 0
        self.counts.append([0, 0, 0, 0, experts])
        self.novelty.append(math.nan)

    def _double(self) -> None:
        """Let each two buckets become one."""
        first, second = self.counts[::2], self.counts[1::2]
        self.counts = [
            [*(a + b for a, b in zip(one[:4], two[:4], strict=True)), two[4]]
            for one, two in zip(first, second, strict=True)
        ]
        self.at_ms = self.at_ms[1::2]
        self.novelty = np.fmax(self.novelty[::2], self.novelty[1::2]).tolist()
        self.by_class = [
            _grown(one, len(two)) + two
            for one, two in zip(self.by_class[::2], self.by_class[1::2], strict=True)
        ]
        self.stretch *= 2

    def _count(self, tested_L2: NDArray[np.int64]) -> None:
        """Count answers to samples of known classes."""
        true_L, answered_L = tested_L2.T
        classes = 1 + int(tested_L2.max())
        if classes > len(self.confusion):
            wider = np.zeros((classes, 1 + classes), np.int64)
            known = len(self.confusion)
            wider[:known, : 1 + known] = self.confusion
            self.confusion = wider
        self.by_class[-1] = last = _grown(self.by_class[-1], len(self.confusion))
        np.add.at(last, (true_L, 0), 1)
        np.add.at(last, (true_L, 1), true_L == answered_L)
        told_L = answered_L >= NO_ANSWER
        np.add.at(self.confusion, (true_L[told_L], 1 + answered_L[told_L]), 1)

    @property
    def forgetting(self) -> float | None:
        """How much worse classes are answered than at their best, 0 to 1; None where nobody knows.

        The mean, over the classes that were asked often enough in two wide buckets at least, of
        the best accuracy before the newest of them less the accuracy there (Chaudhry et al. 2018,
        "Riemannian walk", on arriving samples in place of a test set).
        """
        drops: list[float] = []
        for k in range(len(self.confusion)):
            rows = [one[k] for one in self.by_class if k < len(one) and one[k, 0] >= ENOUGH]
            accuracies = [float(correct / labelled) for labelled, correct in rows]
            if len(accuracies) > 1:
                drops.append(max(accuracies[:-1]) - accuracies[-1])
        return sum(drops) / len(drops) if drops else None

    def dump(self) -> Tensors:
        """Return it as arrays."""
        known = len(self.confusion)
        by_class = [_grown(one, known) for one in self.by_class]
        return {
            "stretch": np.array([self.stretch], np.int64),
            "at_ms": np.array(self.at_ms, np.int64),
            "counts": np.array(self.counts, np.int64).reshape(-1, len(COUNTS)),
            "novelty": np.array(self.novelty, np.float64),
            "by_class": np.array(by_class, np.int64).reshape(len(by_class), known, 2),
            "confusion": self.confusion.copy(),
        }

    def load(self, dumped: Tensors) -> None:
        """Become what was dumped; KeyError if something is missing."""
        self.stretch = int(dumped["stretch"][0])
        self.at_ms = dumped["at_ms"].tolist()
        self.counts = dumped["counts"].tolist()
        self.novelty = dumped["novelty"].tolist()
        self.by_class = list(dumped["by_class"].copy())
        self.confusion = dumped["confusion"].copy()


def _grown(by_class_K2: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """Return counts with a row for each of so many classes."""
    missing = classes - len(by_class_K2)
    return by_class_K2 if missing == 0 else np.pad(by_class_K2, ((0, missing), (0, 0)))
