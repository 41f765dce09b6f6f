"""The novelty measure against a double loop, and the expansion rule where the stream shifts."""

import torch

from learner import LEViT, paper
from learner.novelty import distances, latent_statistics, novelty
from tests.streams import BATCH, Shift


def test_distance_equals_the_double_loop() -> None:
    generator = torch.Generator().manual_seed(1)
    means = torch.randn(9, 3, 4, generator=generator)
    known_mean = torch.randn(3, 4, generator=generator)
    known_deviation = torch.rand(3, 4, generator=generator) + 0.5

    looped = []
    for k in range(3):
        total = 0.0
        for z in range(4):
            column = [means[m, k, z].item() for m in range(9)]
            mean = sum(column) / 9
            deviation = (sum((value - mean) ** 2 for value in column) / 9) ** 0.5
            unit = known_deviation[k, z].item()
            total += ((mean - known_mean[k, z].item()) / unit) ** 2
            total += ((deviation - unit) / unit) ** 2
        looped.append(total / 4)

    torch.testing.assert_close(
        distances(means, known_mean, known_deviation), torch.tensor(looped), atol=1e-5, rtol=1e-5
    )
    assert abs(novelty(means, known_mean, known_deviation) - min(looped)) < 1e-5


def test_memory_that_an_expert_was_frozen_with_is_not_novel_to_it() -> None:
    means = torch.randn(9, 2, 4, generator=torch.Generator().manual_seed(1))
    mean, deviation = latent_statistics(means)

    assert novelty(means, mean + torch.tensor([[0.0], [5.0]]), deviation) == 0.0


def test_same_distribution_gives_about_three_over_the_members_in_any_unit() -> None:
    generator = torch.Generator().manual_seed(2)
    unit = torch.logspace(-4, 3, 50)

    values = []
    for _ in range(50):
        known, today = (torch.randn(500, 1, 50, generator=generator) * unit for _ in range(2))
        mean, deviation = latent_statistics(known)
        values.append(novelty(today, mean, deviation))

    assert 2.8 / 500 < sum(values) / 50 < 3.2 / 500


def test_latent_value_that_never_moved_does_not_divide_by_zero() -> None:
    still = torch.zeros(4, 1, 2)

    assert novelty(still, torch.zeros(1, 2), torch.zeros(1, 2)) == 0.0


def _novelties(classes: list[int]) -> tuple[list[float], list[int]]:
    """Return the novelty after each mini-batch, and the steps of expansion."""
    config = paper((1, 8, 8), capacity=40, per_batch=118, threshold=1e9, learning_rate=3e-3)
    levit, source = LEViT(config), Shift(config.input_shape)
    reports = [levit.observe(source.of(k, BATCH), torch.full((BATCH,), k)) for k in classes]
    return (
        [r.novelty for r in reports if r.novelty is not None],
        [r.step for r in reports if r.expanded],
    )


def test_first_full_memory_expands() -> None:
    _, expansions = _novelties([0] * 8)

    assert expansions == [4]


def test_novelty_jumps_when_the_class_changes_and_not_before() -> None:
    values, _ = _novelties([0] * 12 + [1] * 4)

    familiar, new = values[:-4], values[-1]
    assert new > 5 * max(familiar)


def test_returning_class_is_familiar() -> None:
    values, _ = _novelties([0] * 8 + [1] * 4 + [0] * 8)

    assert values[-1] < 0.2 * max(values)
