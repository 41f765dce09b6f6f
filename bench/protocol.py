"""The strict protocol: one pass, test-then-train, each sample judged alone, no task information.

Labels reach a method only after its mini-batch was predicted. After the mini-batch that holds a
checkpoint, it answers for held-out samples of all classes (domains) that came up to the checkpoint:
of at most `CHECKED` on the way, of all at the end. Samples are predicted many at a time, which
changes nothing beyond rounding for a method that keeps the rule.
Dimension key: M held-out samples, T tasks.
"""

import math
import resource
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from bench.arrivals import Stream
from bench.methods import Method, WithNovelty, WithParts
from bench.outcome import Checkpoint, Outcome, Passing
from learner.evaluation import (
    FadedAccuracy,
    anytime_accuracy,
    average_accuracy,
    backward_transfer,
    forgetting,
    task_accuracy,
)

CHECKED = 2000
"""Held-out samples, drawn once per seed, that are asked about before the end."""
ASKED_AT_ONCE = 200
TRACED = 50
"""Points of the curves over the stream."""
TOLD_EVERY_S = 0.2

Tell = Callable[[int], None]
"""Takes how many samples have passed."""


class Pass:
    """One method going once through one stream."""

    def __init__(self, stream: Stream, make: Callable[[], Method], *, batch: int = 10) -> None:
        """Make the method; nothing is learned yet."""
        self._stream, self._batch = stream, batch
        self._loaded_bytes = peak_bytes()
        self._method = make()
        self._classes = stream.facts.classes
        self._observe_s = self._predict_s = 0.0
        self._faded = FadedAccuracy()
        self._right = self._asked = 0
        self._right_parts: dict[str, int] = {}
        self._checkpoints: list[Checkpoint] = []
        self._passing: list[Passing] = []
        generator = torch.Generator().manual_seed(stream.seed)
        held_out = torch.randperm(len(stream.y_test), generator=generator)
        self._checked = held_out[:CHECKED].sort().values

    def run(self, tell: Tell | None = None) -> Outcome:
        """Go through the whole stream; `tell` hears now and then how far."""
        stream, n = self._stream, len(self._stream.y_train)
        traced = {round(n * (k + 1) / TRACED) for k in range(TRACED)}
        started = told_at = time.perf_counter()
        for begin in range(0, n, self._batch):
            end = min(begin + self._batch, n)
            self._step(stream.x_train[begin:end], stream.y_train[begin:end])
            if any(begin < count <= end for count in traced):
                self._trace(end)
            for count in stream.checkpoints:
                if begin < count <= end:
                    self._check(count)
            if tell and time.perf_counter() - told_at > TOLD_EVERY_S:
                tell(end)
                told_at = time.perf_counter()
        return self._outcome(time.perf_counter() - started)

    def _step(self, x: Tensor, y: Tensor) -> None:
        """Test, then train."""
        labelled = y >= 0
        right = (self._predict(x) == y)[labelled]
        self._faded.count(right, y[labelled], self._classes)
        self._right += int(right.sum())
        self._asked += len(right)
        if isinstance(self._method, WithParts) and not len(self._stream.y_test):
            for name, said in self._method.parts(x).items():
                hits = int((said == y)[labelled].sum())
                self._right_parts[name] = self._right_parts.get(name, 0) + hits
        started = time.perf_counter()
        self._method.observe(x, y)
        self._observe_s += time.perf_counter() - started

    def _predict(self, x: Tensor) -> Tensor:
        started = time.perf_counter()
        said = torch.cat([self._method.predict(part) for part in x.split(ASKED_AT_ONCE)])
        self._predict_s += time.perf_counter() - started
        return said

    def _trace(self, samples: int) -> None:
        accuracy = self._faded.accuracy or 0.0
        experts = self._method.cost().experts
        self._passing.append(Passing(samples=samples, prequential=accuracy, experts=experts))

    def _check(self, samples: int) -> None:
        """Ask about held-out samples of everything that is among the first `samples`."""
        stream = self._stream
        last = samples == len(stream.y_train)
        asked = torch.arange(len(stream.y_test)) if last else self._checked
        asked = asked[stream.seen_from[asked] <= samples]
        if not len(asked):
            return
        right = self._predict(stream.x_test[asked]) == stream.y_test[asked]
        tasks = max(1, len(stream.task_ends))
        self._checkpoints.append(
            Checkpoint(
                samples=samples,
                accuracy=right.double().mean().item(),
                by_task=_plain(task_accuracy(right, stream.task_test[asked], tasks)),
            )
        )

    def _outcome(self, seconds: float) -> Outcome:
        checks, matrix = self._checkpoints, self._matrix()
        compared = len(matrix) > 1
        end = checks[-1].accuracy if checks else None
        return Outcome(
            samples=len(self._stream.y_train),
            accuracy=end,
            average_accuracy=average_accuracy(matrix) if len(matrix) else end,
            anytime=anytime_accuracy([c.accuracy for c in checks]) if checks else None,
            forgetting=forgetting(matrix) if compared else None,
            backward_transfer=backward_transfer(matrix) if compared else None,
            accuracy_matrix=[_plain(row) for row in matrix],
            prequential=self._right / max(1, self._asked),
            prequential_faded=self._faded.accuracy or 0.0,
            checkpoints=checks,
            passing=self._passing,
            novelty=self._method.novelty_trace() if isinstance(self._method, WithNovelty) else (),
            parts=self._parts(),
            cost=self._method.cost(),
            seconds=seconds,
            observe_s=self._observe_s,
            predict_s=self._predict_s,
            loaded_bytes=self._loaded_bytes,
            peak_bytes=peak_bytes(),
        )

    def _matrix(self) -> Tensor:
        """Return R [T, T], each row from the checkpoint at the task's end; [0, 0] without tasks."""
        ends = self._stream.task_ends if self._checkpoints else ()
        by_task = {check.samples: check.by_task for check in self._checkpoints}
        rows = [by_task[end] for end in ends]
        numbers = [[math.nan if a is None else a for a in row] for row in rows]
        return torch.tensor(numbers, dtype=torch.float64).reshape(len(ends), len(ends))

    def _parts(self) -> dict[str, float]:
        """Return the accuracy of each part alone."""
        stream, method = self._stream, self._method
        if not isinstance(method, WithParts):
            return {}
        if not len(stream.y_test):
            return {name: right / self._asked for name, right in self._right_parts.items()}
        asked = torch.nonzero(stream.seen_from <= len(stream.y_train))[:, 0]
        right: dict[str, int] = {}
        for part in asked.split(ASKED_AT_ONCE):
            for name, said in method.parts(stream.x_test[part]).items():
                right[name] = right.get(name, 0) + int((said == stream.y_test[part]).sum())
        return {name: count / len(asked) for name, count in right.items()}


def peak_bytes() -> int:
    """Return the peak resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _plain(accuracies: Tensor) -> list[float | None]:
    """Return accuracies as plain numbers, None for NaN."""
    return [None if math.isnan(accuracy) else accuracy for accuracy in accuracies.tolist()]
