"""What stands between our mini-batches and Avalanche: experiences, random draws, the count of work.

One mini-batch becomes one experience without task label or boundary, so that nothing but the
mini-batch reaches the strategy.
Dimension key: B batch.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bench.peers.library import OnlineCLExperience, tensor_dataset

CHUNK = 4096


class Arrivals:
    """Mini-batches as experiences of Avalanche.

    Samples are written into large data sets, of which an experience is a subset: Avalanche merges
    subsets of one data set by their indices, while a replay memory over thousands of data sets of
    ten samples is several times slower.
    """

    def __init__(self) -> None:
        self._x = self._y = torch.empty(0)
        self._labels: list[int] = []
        self._data: Any = None
        self._used = 0
        self._experiences = 0

    def experience(self, x: Tensor, y: Tensor) -> Any:  # noqa: ANN401  Avalanche has no types
        """Return the experience of one mini-batch; x and y are copied, y is int64 [B]."""
        if self._data is None or self._used + len(x) > len(self._x):
            self._x = x.new_empty((max(CHUNK, len(x)), *x.shape[1:]))
            self._y = y.new_zeros(len(self._x))
            self._labels = self._y.tolist()  # by which memories balance classes
            self._data = tensor_dataset(self._x, self._y, targets=self._labels, task_labels=0)
            self._used = 0
        rows = range(self._used, self._used + len(x))
        self._x[rows.start : rows.stop] = x
        self._y[rows.start : rows.stop] = y
        self._labels[rows.start : rows.stop] = y.tolist()
        self._used = rows.stop
        experience = OnlineCLExperience(
            dataset=self._data.subset(rows), origin_experience=None, access_task_boundaries=False
        )
        experience.current_experience = self._experiences
        experience.classes_in_this_experience = y.unique().tolist()
        self._experiences += 1
        return experience


class Draws:
    """A method's own random numbers for a library that takes them from torch's global generator."""

    def __init__(self, seed: int) -> None:
        self._state = torch.Generator().manual_seed(seed).get_state()

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Put this method's generator in the global one's place, and give that back."""
        before = torch.get_rng_state()
        torch.set_rng_state(self._state)
        try:
            yield
        finally:
            self._state = torch.get_rng_state()
            torch.set_rng_state(before)


class Spending:
    """Sample-gradients through one network: a sample forward is 1, backward 2, virtual or not."""

    def __init__(self, network: nn.Module) -> None:
        self.spent = 0
        self.counting = False

        def forward(_network: nn.Module, _x: tuple[Tensor, ...], answer: Tensor) -> None:
            if self.counting:
                self.spent += len(answer)
                if answer.requires_grad:
                    answer.register_hook(backward)

        def backward(gradient: Tensor) -> None:
            self.spent += 2 * len(gradient)

        network.register_forward_hook(forward)

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count what happens inside; predictions outside cost nothing here."""
        self.counting = True
        try:
            yield
        finally:
            self.counting = False
