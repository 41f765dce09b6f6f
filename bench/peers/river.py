"""River's stream classifiers for vectors, one sample at a time.

Labels reach a method only after each mini-batch, so a mini-batch of ten is predicted wholly before
the first of its samples is learnt; mini-batches of one are River's own protocol. Series and images
are taken as flat vectors.
"""

from typing import Any

import torch
from river.forest import ARFClassifier
from river.tree import HoeffdingAdaptiveTreeClassifier
from torch import Tensor

from bench.methods import Cost, Facts, Method


class River:
    """A classifier of River."""

    def __init__(self, classifier: Any) -> None:  # noqa: ANN401  River is not typed
        self._classifier = classifier
        self._samples = 0

    def observe(self, x: Tensor, y: Tensor) -> None:
        """Learn the labelled samples of one mini-batch in order of arrival."""
        for sample, label in zip(_named(x), y.tolist(), strict=True):
            if label >= 0:
                self._classifier.learn_one(sample, label)
                self._samples += 1

    def predict(self, x: Tensor) -> Tensor:
        """Return a label for each sample, int64 [B]; -1 before the first label."""
        labels = [self._classifier.predict_one(sample) for sample in _named(x)]
        return torch.tensor([-1 if label is None else label for label in labels])

    def cost(self) -> Cost:
        """Return the bytes of all its objects, as River counts; one closed-form update a sample."""
        return Cost(
            state_bytes=self._classifier._raw_memory_usage,  # noqa: SLF001  River's own measure
            parameters=0,
            sample_gradients=float(self._samples),
        )


def arf(facts: Facts) -> Method:
    """Return an adaptive random forest of ten trees (Gomes et al. 2017)."""
    return River(ARFClassifier(seed=facts.seed))


def hat(facts: Facts) -> Method:
    """Return a Hoeffding adaptive tree (Bifet & Gavalda 2009)."""
    return River(HoeffdingAdaptiveTreeClassifier(seed=facts.seed))


def _named(x: Tensor) -> list[dict[int, float]]:
    return [dict(enumerate(row)) for row in x.flatten(1).tolist()]
