"""How well a learner does, with exact formulas.

Prequential accuracy: every sample is predicted before it is learned; a fading factor f weighs the
newest most (Gama, Sebastiao & Rodrigues 2013, 10.1007/s10994-012-5320-9):

    S_i = f S_(i-1) + [sample i right],   N_i = f N_(i-1) + 1,   accuracy = S_i / N_i

On a stream ordered by class this flatters whoever always says "the current class": show the
accuracy on all classes seen beside it.

On held-out samples, with R the accuracy matrix of T tasks (Lopez-Paz & Ranzato 2017, 1706.08840):
R_ij is the accuracy, 0 to 1, on the test samples of task j after learning through task i. Tasks
are slices of the test data that the learner never hears of.

    average accuracy   ACC = 1/T sum over j of R_Tj
    backward transfer  BWT = 1/(T-1) sum over j < T of (R_Tj - R_jj)
    forgetting         F   = 1/(T-1) sum over j < T of (max over j <= i < T of R_ij - R_Tj)
    anytime accuracy   A   = 1/P sum over p of a_p

(F: Chaudhry et al. 2018, 1801.10112, from i = j on, as a task cannot be forgotten before it came.
A: a_p is the accuracy on all classes seen by checkpoint p, over P evenly spaced checkpoints.)
Dimension key: B labelled samples, K classes, M held-out samples, T tasks.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

FADE = 0.999  # about the last 1,000 samples


class FadedAccuracy:
    """Prequential accuracy, overall and per class (Gama et al. 2013); part of the state."""

    def __init__(self) -> None:
        self.overall = (0.0, 0.0)
        """Faded counts (right, all)."""
        self.by_class: list[tuple[float, float]] = []
        """The same per class, each fading with its own samples only; replaced, never changed."""

    def count(self, right_B: Tensor, y_B: Tensor, classes: int) -> None:
        """Take in predictions that were right or wrong, in order of arrival.

        Args:
            right_B: bool, whether each was right.
            y_B: its true class, 0 to classes - 1.
            classes: classes known by now.
        """
        by_class = [*self.by_class, *[(0.0, 0.0)] * (classes - len(self.by_class))]
        for k in y_B.unique().tolist():
            by_class[k] = _faded(by_class[k], right_B[y_B == k])
        self.overall, self.by_class = _faded(self.overall, right_B), by_class

    @property
    def accuracy(self) -> float | None:
        """The overall accuracy, 0 to 1; None before the first label."""
        return _ratio(self.overall)

    @property
    def class_accuracy(self) -> Sequence[float | None]:
        """The accuracy on each class, 0 to 1; None where it has not been predicted yet."""
        return [_ratio(counts) for counts in self.by_class]


def task_accuracy(right_M: Tensor, task_M: Tensor, tasks: int) -> Tensor:
    """Return one row of R: the accuracy on each task, 0 to 1, float64 [T].

    Args:
        right_M: bool, whether each held-out sample is predicted right.
        task_M: int64, its task, 0 to tasks - 1.
        tasks: T; the accuracy of a task without a sample is NaN.
    """
    right_T = torch.bincount(task_M[right_M], minlength=tasks).double()
    return right_T / torch.bincount(task_M, minlength=tasks)


def average_accuracy(accuracy_TT: Tensor) -> float:
    """Return ACC: the mean accuracy over all tasks after the last one, 0 to 1."""
    return accuracy_TT[-1].mean().item()


def backward_transfer(accuracy_TT: Tensor) -> float:
    """Return BWT, -1 to 1: what later tasks did to earlier ones; negative is forgetting.

    Raises:
        ValueError: fewer than two tasks, so that nothing came later.
    """
    earlier = _earlier(accuracy_TT)
    return (accuracy_TT[-1, :earlier] - accuracy_TT.diagonal()[:earlier]).mean().item()


def forgetting(accuracy_TT: Tensor) -> float:
    """Return F, -1 to 1: how far each task fell from its best accuracy before the last task.

    Raises:
        ValueError: fewer than two tasks, so that nothing came later.
    """
    earlier = _earlier(accuracy_TT)
    fallen = [
        accuracy_TT[task:earlier, task].max() - accuracy_TT[-1, task] for task in range(earlier)
    ]
    return torch.stack(fallen).mean().item()


def anytime_accuracy(accuracies: Sequence[float]) -> float:
    """Return A: the mean over the checkpoints, 0 to 1.

    Raises:
        ValueError: no checkpoint.
    """
    if not accuracies:
        raise ValueError("expected the accuracy at one checkpoint at least, got none")
    return sum(accuracies) / len(accuracies)


def _earlier(accuracy_TT: Tensor) -> int:
    """Return how many tasks came before the last one."""
    if len(accuracy_TT) < 2:
        raise ValueError(f"expected two tasks at least, got {len(accuracy_TT)}")
    return len(accuracy_TT) - 1


def _faded(counts: tuple[float, float], right_B: Tensor) -> tuple[float, float]:
    n = len(right_B)
    weight_B = FADE ** torch.arange(n - 1, -1, -1, dtype=torch.float64)
    right = (weight_B * right_B.cpu()).sum().item()
    return counts[0] * FADE**n + right, counts[1] * FADE**n + weight_B.sum().item()


def _ratio(counts: tuple[float, float]) -> float | None:
    return counts[0] / counts[1] if counts[1] else None
