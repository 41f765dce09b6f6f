"""How well a learner does, with exact formulas.

Prequential accuracy: every sample is predicted before it is learned; a fading factor f weighs the
newest most (Gama, Sebastiao & Rodrigues 2013, 10.1007/s10994-012-5320-9):

    S_i = f S_(i-1) + [sample i right],   N_i = f N_(i-1) + 1,   accuracy = S_i / N_i

On a stream ordered by class this flatters whoever always says "the current class": show the
accuracy on all classes seen beside it.
Dimension key: B labelled samples, K classes.
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


def _faded(counts: tuple[float, float], right_B: Tensor) -> tuple[float, float]:
    n = len(right_B)
    weight_B = FADE ** torch.arange(n - 1, -1, -1, dtype=torch.float64)
    right = (weight_B * right_B.cpu()).sum().item()
    return counts[0] * FADE**n + right, counts[1] * FADE**n + weight_B.sum().item()


def _ratio(counts: tuple[float, float]) -> float | None:
    return counts[0] / counts[1] if counts[1] else None
