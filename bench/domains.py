"""Streams whose classes stay while their inputs change: permuted pixels, slow rotation.

Dimension key: N arriving samples, B batch, C channels, H height, W width.
"""

import torch
from torch import Tensor
from torch.nn import functional

from bench.arrivals import Judging, Plan, Stream, arranged
from bench.datasets import Dataset

PERMUTATIONS = 10
TURNED_TESTS = 5
"""Angles at which a turning stream is tested."""
TESTED_PER_DOMAIN = 1000
"""Held-out samples per permutation or angle."""


def permuted(plan: Plan, data: Dataset, *, per_domain: int) -> Stream:
    """Return images under one fixed permutation of their pixels after another, the first none.

    Each domain has `per_domain` samples (or its share of `plan.samples`), drawn anew.
    """
    count = min(per_domain, (plan.samples or per_domain * PERMUTATIONS) // PERMUTATIONS)
    generator, pixels = plan.generator, data.x_train[0, 0].numel()
    train, test = [], []
    for domain in range(PERMUTATIONS):
        to = torch.randperm(pixels, generator=generator) if domain else torch.arange(pixels)
        train.append(_drawn(data.x_train, data.y_train, count, generator))
        test.append(_drawn(data.x_test, data.y_test, TESTED_PER_DOMAIN, generator))
        train[-1] = (_moved(train[-1][0], to), train[-1][1])
        test[-1] = (_moved(test[-1][0], to), test[-1][1])
    whole = _joined(train, test)
    task_test = torch.arange(PERMUTATIONS).repeat_interleave(len(test[0][0]))
    judging = Judging(
        task_test=task_test,
        task_ends=tuple(count * (domain + 1) for domain in range(PERMUTATIONS)),
        unit_train=torch.arange(PERMUTATIONS).repeat_interleave(count),
        unit_test=task_test,
    )
    return arranged(plan, whole, torch.arange(len(whole.x_train)), judging)


def rotating(plan: Plan, data: Dataset) -> Stream:
    """Return images that turn slowly, half a circle over the stream; tested at five angles."""
    generator = plan.generator
    x_train, y_train = _drawn(data.x_train, data.y_train, plan.samples, generator)
    x_test, y_test = _drawn(data.x_test, data.y_test, TESTED_PER_DOMAIN, generator)
    angle_N = torch.linspace(0, 1, len(x_train))
    last = TURNED_TESTS - 1
    tests = [
        (turned(x_test, torch.full((len(x_test),), k / last)), y_test) for k in range(last + 1)
    ]
    whole = _joined([(turned(x_train, angle_N), y_train)], tests)
    unit_train, task_test = (
        (angle_N * last).round().long(),
        torch.arange(TURNED_TESTS).repeat_interleave(len(x_test)),
    )
    judging = Judging(
        task_test=task_test,
        task_ends=tuple(unit_train.bincount().cumsum(0).tolist()),
        unit_train=unit_train,
        unit_test=task_test,
    )
    return arranged(plan, whole, torch.arange(len(x_train)), judging)


def turned(x_BCHW: Tensor, angle_B: Tensor) -> Tensor:
    """Return uint8 images turned by `angle_B` half circles; bilinear, black outside."""
    cosine, sine = (angle_B * torch.pi).cos(), (angle_B * torch.pi).sin()
    zero = torch.zeros_like(angle_B)
    rows = torch.stack([cosine, -sine, zero, sine, cosine, zero], 1).view(-1, 2, 3)
    grid = functional.affine_grid(rows, list(x_BCHW.shape), align_corners=False)
    found = functional.grid_sample(x_BCHW.float(), grid, align_corners=False)
    return found.round().clamp(0, 255).byte()


def _drawn(
    x: Tensor, y: Tensor, count: int | None, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return `count` samples at random, or all of them shuffled."""
    chosen = torch.randperm(len(x), generator=generator)[:count]
    return x[chosen], y[chosen]


def _moved(x_BCHW: Tensor, to: Tensor) -> Tensor:
    """Return images with the same permutation of pixels in every channel."""
    return x_BCHW.flatten(2)[:, :, to].view(x_BCHW.shape)


def _joined(train: list[tuple[Tensor, Tensor]], test: list[tuple[Tensor, Tensor]]) -> Dataset:
    """Return parts one after another."""
    return Dataset(
        kind="image",
        x_train=torch.cat([x for x, _ in train]),
        y_train=torch.cat([y for _, y in train]),
        x_test=torch.cat([x for x, _ in test]),
        y_test=torch.cat([y for _, y in test]),
    )
