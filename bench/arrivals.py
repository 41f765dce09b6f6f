"""One stream: who arrives when, and when accuracy is measured.

A method is handed mini-batches and nothing else. What begins and ends where is known here and to
the evaluation only.
Dimension key: N arriving samples, M held-out samples, B batch, C channels, H height, W width,
D vector width, T time steps.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.datasets import Dataset
from bench.methods import Facts
from service.inputs import InputKind

CHECKPOINTS = 10
"""About so many times accuracy is measured."""

Arrive = Callable[[Tensor, torch.Generator], Tensor]
"""From the turn of each sample [N] to the order of arrival, indexes [N]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """Samples in order of arrival, and what the evaluation needs to judge who learned them."""

    name: str
    seed: int
    kind: InputKind
    x_train: Tensor
    """uint8 [N, C, H, W], or float32 [N, C, H, W], [N, D] or [N, T, C]."""
    y_train: Tensor
    """int64 [N]."""
    x_test: Tensor
    """Held-out samples [M, ...]; M is 0 where only test-then-train makes sense."""
    y_test: Tensor
    task_test: Tensor
    """int64 [M]: the task of each held-out sample; evaluation only."""
    seen_from: Tensor
    """int64 [M]: samples that have arrived once the first of its class (or domain) has; N + 1 if
    none does."""
    task_ends: tuple[int, ...]
    """Samples that have arrived when each task ends; evaluation only. Empty: no tasks."""
    checkpoints: tuple[int, ...]
    """Samples that have arrived when accuracy is measured, ascending; the last is N."""

    @property
    def facts(self) -> Facts:
        """What a method may know."""
        classes = int(torch.cat([self.y_train, self.y_test]).max()) + 1
        shape = tuple(self.x_train.shape[1:])
        return Facts(kind=self.kind, shape=shape, classes=classes, seed=self.seed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Judging:
    """What the evaluation knows of a stream; empty: that a class must come before it is asked."""

    task_test: Tensor | None = None
    """int64 [M]."""
    task_ends: tuple[int, ...] = ()
    unit_train: Tensor | None = None
    """int64 [N], in order of arrival: what must have come before it is asked; None: the class."""
    unit_test: Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How a stream is made from a data set."""

    name: str
    seed: int = 0
    samples: int | None = None
    """At most so many arrive; None: all."""

    @property
    def generator(self) -> torch.Generator:
        """A fresh generator of the plan's seed."""
        return torch.Generator().manual_seed(self.seed)


def arranged(plan: Plan, data: Dataset, order: Tensor, judging: Judging | None = None) -> Stream:
    """Return the samples `order` [N] of a data set as a stream."""
    judging = judging or Judging()
    y_train = data.y_train[order]
    unit_train = y_train if judging.unit_train is None else judging.unit_train
    unit_test = data.y_test if judging.unit_test is None else judging.unit_test
    none = torch.zeros_like(data.y_test)
    return Stream(
        name=plan.name,
        seed=plan.seed,
        kind=data.kind,
        x_train=data.x_train[order],
        y_train=y_train,
        x_test=data.x_test,
        y_test=data.y_test,
        task_test=none if judging.task_test is None else judging.task_test,
        seen_from=first_seen(unit_train, unit_test),
        task_ends=judging.task_ends,
        checkpoints=checkpoints(len(order), judging.task_ends),
    )


def split(
    plan: Plan, data: Dataset, *, arrive: Arrive, per_turn: int = 2, per_task: int = 2
) -> Stream:
    """Return a stream whose classes take turns, `per_turn` at a time, in the order of `arrive`.

    The evaluation calls `per_task` of them a task, which ends where it would without blur.
    """
    generator = plan.generator
    order = arrive(data.y_train // per_turn, generator)
    order = thinned(order, plan.samples, generator)
    ends = (data.y_train[order] // per_task).bincount().cumsum(0).tolist()
    judging = Judging(task_test=data.y_test // per_task, task_ends=tuple(ends))
    return arranged(plan, data, order, judging)


def in_file_order(plan: Plan, data: Dataset) -> Stream:
    """Return a stream in the order of its source: its first samples, whatever the seed."""
    return arranged(plan, data, torch.arange(len(data.x_train))[: plan.samples])


def unchanging(plan: Plan, data: Dataset) -> Stream:
    """Return a shuffled stream: all of it comes from one distribution."""
    order = torch.randperm(len(data.x_train), generator=plan.generator)
    return arranged(plan, data, order[: plan.samples])


def in_turn(turn_N: Tensor, generator: torch.Generator) -> Tensor:
    """Return an order by turn; within a turn shuffled."""
    order = torch.randperm(len(turn_N), generator=generator)
    return order[turn_N[order].argsort(stable=True)]


def blurred(turn_N: Tensor, generator: torch.Generator) -> Tensor:
    """Return an order in which turns overlap: times of arrival are Gaussian about their turn.

    The deviation is one turn, so two thirds of its samples come within a turn of their own.
    """
    time_N = turn_N + torch.randn(len(turn_N), generator=generator)
    return time_N.argsort(stable=True)


def gradual(turn_N: Tensor, generator: torch.Generator) -> Tensor:
    """Return an order in which each turn fades linearly into the next, half of it pure."""
    own_N, drift_N = torch.rand(2, len(turn_N), generator=generator)
    time_N: Tensor = turn_N + own_N + (drift_N - 0.5) / 2
    return time_N.argsort(stable=True)


def thinned(order: Tensor, samples: int | None, generator: torch.Generator) -> Tensor:
    """Return at most `samples` of an order, drawn evenly, still in that order."""
    if samples is None or samples >= len(order):
        return order
    kept = torch.randperm(len(order), generator=generator)[:samples]
    return order[kept.sort().values]


def first_seen(unit_train: Tensor, unit_test: Tensor) -> Tensor:
    """Return how many have arrived once the first of the same unit has, [M]; N + 1 if none does."""
    n = len(unit_train)
    units = int(torch.cat([unit_train, unit_test]).max()) + 1
    first_U = torch.full((units,), n + 1)
    first_U.scatter_reduce_(0, unit_train, torch.arange(1, n + 1), reduce="amin")
    return first_U.index_select(0, unit_test)


def checkpoints(n: int, task_ends: tuple[int, ...]) -> tuple[int, ...]:
    """Return about `CHECKPOINTS` counts up to n: every task's end, and evenly between them."""
    ends = task_ends or (n,)
    between = max(1, round(CHECKPOINTS / len(ends)))
    starts = (0, *ends[:-1])
    points = {
        start + round((end - start) * part / between)
        for start, end in zip(starts, ends, strict=True)
        for part in range(1, between + 1)
    }
    return tuple(sorted(points | {n}))
