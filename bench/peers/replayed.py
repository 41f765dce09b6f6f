"""Avalanche's strategies as methods: one mini-batch, one experience, one call of `train`.

Three of them answer from something that is dear to make anew: class means of the whole memory
(SCR), a network trained from scratch (GDumb), an inverse (StreamingLDA). It is made anew when the
question is longer than the last mini-batch, which is an evaluation; the question that comes before
a mini-batch is answered from what there is. Their accuracy is exact, their prequential accuracy
is that of the last evaluation.
Dimension key: B batch, D feature width, K classes.
"""

import contextlib
import io
import itertools
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from bench.methods import Cost
from bench.peers.feeding import Arrivals, Draws, Spending

LABEL_BYTES = 8
AT_ONCE = 500


class Replayed:
    """A strategy of Avalanche that trains a classifier and answers with it."""

    def __init__(self, strategy: Any, memory: Any, draws: Draws, spending: Spending) -> None:  # noqa: ANN401
        self._strategy = strategy
        self._memory = memory
        self._draws = draws
        self._spending = spending
        self._arrivals = Arrivals()
        self._bytes_per_sample = 0
        self._batch = 0
        self._stale = False

    def observe(self, x: Tensor, y: Tensor) -> None:
        """Train once on the labelled samples of one mini-batch, replay as the strategy does."""
        x, y = x[y >= 0], y[y >= 0]
        self._batch = len(x)
        if len(x):
            self._bytes_per_sample = x[0].nbytes + LABEL_BYTES
            with self._draws.lent(), self._spending.counted(), _quietly():
                self._learn(self._arrivals.experience(x, y))
            self._stale = True

    @torch.no_grad()
    def predict(self, x: Tensor) -> Tensor:
        """Return a label for each sample, int64 [B]; -1 before there is anything to answer from."""
        if self._stale and len(x) > self._batch:
            with self._draws.lent(), self._spending.counted(), _quietly(), torch.enable_grad():
                self._renew()
            self._stale = False
        self._strategy.model.eval()
        return torch.cat([self._answer(part) for part in x.split(AT_ONCE)])

    def cost(self) -> Cost:
        """Return bytes of weights, optimiser, replay and what else the method keeps."""
        model = self._strategy.model
        kept = itertools.chain(model.parameters(), model.buffers(), self._kept())
        return Cost(
            state_bytes=sum(tensor.nbytes for tensor in kept)
            + len(self._memory.buffer) * self._bytes_per_sample,
            parameters=sum(p.numel() for p in model.parameters()),
            sample_gradients=float(self._spending.spent),
        )

    def _learn(self, experience: Any) -> None:  # noqa: ANN401
        self._strategy.train_mb_size = len(experience.dataset)
        self._strategy.train(experience, eval_streams=[])

    def _answer(self, x: Tensor) -> Tensor:
        labels: Tensor = self._strategy.model(x).argmax(1)
        return labels

    def _renew(self) -> None:
        """Make anew what answers; a classifier is always new."""

    def _kept(self) -> Sequence[Tensor]:
        """Return the tensors kept besides weights and replay."""
        states = self._strategy.optimizer.state.values()
        return [v for state in states for v in state.values() if isinstance(v, Tensor)]


class WithLogits(Replayed):
    """DER: each sample in memory carries the logits it had."""

    def _kept(self) -> Sequence[Tensor]:
        members = len(self._memory.buffer)
        logits = [self._memory.buffer[0][-1].expand(members, -1)] if members else []
        return [*super()._kept(), *logits]


class WithPrototypes(Replayed):
    """CoPE: the label of the prototype nearest in angle, among the classes seen."""

    def __init__(self, *parts: Any, prototypes: dict[int, Tensor]) -> None:  # noqa: ANN401
        super().__init__(*parts)
        self._prototypes = prototypes

    def _answer(self, x: Tensor) -> Tensor:
        seen = sorted(self._memory.seen_classes)
        if not seen:
            return x.new_full((len(x),), -1, dtype=torch.int64)
        prototypes_KD = torch.cat([self._prototypes[k] for k in seen])
        nearest: Tensor = (self._strategy.model(x) @ prototypes_KD.T).argmax(1)
        return torch.tensor(seen)[nearest]

    def _kept(self) -> Sequence[Tensor]:
        return [*super()._kept(), *self._prototypes.values()]


class WithMeans(Replayed):
    """SCR: the label of the class mean nearest in feature space, means over the whole memory."""

    def __init__(self, *parts: Any) -> None:  # noqa: ANN401
        super().__init__(*parts)
        self._means_of_memory = self._strategy.compute_class_means
        self._strategy.compute_class_means = lambda: None  # asked for after every experience

    def _renew(self) -> None:
        self._strategy.model.eval()
        self._strategy.model.eval_classifier.replace_class_means_dict({})
        self._means_of_memory()

    def _answer(self, x: Tensor) -> Tensor:
        means = self._strategy.model.eval_classifier.class_means_dict
        if not means:
            return x.new_full((len(x),), -1, dtype=torch.int64)
        features_BD = torch.nn.functional.normalize(self._strategy.model.feature_extractor(x))
        distances_BK = torch.cdist(features_BD, torch.stack(list(means.values())))
        return torch.tensor(list(means))[distances_BK.argmin(1)]


class FromScratch(Replayed):
    """GDumb: arriving samples only enter the memory; asked, a network is trained on the memory."""

    def __init__(self, *parts: Any) -> None:  # noqa: ANN401
        super().__init__(*parts)
        self._untaken: Any = None

    def _learn(self, experience: Any) -> None:  # noqa: ANN401
        if self._untaken is not None:
            self._memory.post_adapt(self._strategy, self._untaken)
        self._untaken = experience

    def _renew(self) -> None:
        self._strategy.train(self._untaken, eval_streams=[])  # takes it into the memory first
        self._untaken = None

    def _kept(self) -> Sequence[Tensor]:
        fresh = self._strategy.model  # the weights it starts again from
        return [*super()._kept(), *fresh.parameters(), *fresh.buffers()]


class StreamingLda:
    """StreamingLDA on the input itself: one mean per class, one shared covariance, no replay."""

    def __init__(self, strategy: Any) -> None:  # noqa: ANN401
        self._strategy = strategy
        self._batch = 0
        self._samples = 0

    def observe(self, x: Tensor, y: Tensor) -> None:
        """Add the labelled samples of one mini-batch, one after the other."""
        x, y = x[y >= 0], y[y >= 0]
        self._batch = len(x)
        self._samples += len(x)
        for feature_D, label in zip(self._strategy.model(x), y, strict=True):
            self._strategy.fit(feature_D[None], label[None])

    def predict(self, x: Tensor) -> Tensor:
        """Return a label for each sample, int64 [B]; -1 before the first evaluation."""
        if len(x) <= self._batch:
            self._strategy.prev_num_updates = self._strategy.num_updates  # keep the inverse
        scores_BK: Tensor = self._strategy.predict(self._strategy.model(x))
        seen_K = self._strategy.cK > 0
        if not seen_K.any() or not self._strategy.Lambda.any():
            return x.new_full((len(x),), -1, dtype=torch.int64)
        return scores_BK.masked_fill(~seen_K, -torch.inf).argmax(1)

    def cost(self) -> Cost:
        """Return bytes of means, covariance and its inverse; one closed-form update a sample."""
        kept = (self._strategy.muK, self._strategy.cK, self._strategy.Sigma, self._strategy.Lambda)
        return Cost(
            state_bytes=sum(t.nbytes for t in kept),
            parameters=self._strategy.muK.numel() + self._strategy.Lambda.numel(),
            sample_gradients=float(self._samples),
        )


@contextmanager
def _quietly() -> Iterator[None]:
    """Silence what Avalanche prints, and its warnings about itself, which no filter stops."""
    with warnings.catch_warnings(record=True), contextlib.redirect_stdout(io.StringIO()):
        yield
