"""Prequential accuracy against the definition, one sample at a time; the rest worked by hand."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from learner.evaluation import (
    FADE,
    FadedAccuracy,
    anytime_accuracy,
    average_accuracy,
    backward_transfer,
    forgetting,
    task_accuracy,
)

Outcomes = list[tuple[bool, int]]


@given(st.lists(st.lists(st.tuples(st.booleans(), st.integers(0, 2)), max_size=7), max_size=6))
def test_batches_count_as_the_recursion_over_samples(batches: list[Outcomes]) -> None:
    accuracy = FadedAccuracy()
    right_sum = all_sum = 0.0
    by_class = [(0.0, 0.0)] * 3

    for batch in batches:
        right = torch.tensor([r for r, _ in batch], dtype=torch.bool)
        accuracy.count(right, torch.tensor([k for _, k in batch], dtype=torch.int64), 3)
        for hit, k in batch:
            right_sum, all_sum = FADE * right_sum + hit, FADE * all_sum + 1
            by_class[k] = (FADE * by_class[k][0] + hit, FADE * by_class[k][1] + 1)

    if all_sum == 0:
        assert accuracy.accuracy is None
    else:
        assert accuracy.accuracy == pytest.approx(right_sum / all_sum)
    assert [counts[1] for counts in accuracy.by_class] == pytest.approx(
        [counts[1] for counts in by_class[: len(accuracy.by_class)]]
    )
    assert [counts[0] for counts in accuracy.by_class] == pytest.approx(
        [counts[0] for counts in by_class[: len(accuracy.by_class)]]
    )


def test_old_mistakes_fade() -> None:
    accuracy = FadedAccuracy()

    accuracy.count(torch.zeros(1000, dtype=torch.bool), torch.zeros(1000, dtype=torch.int64), 1)
    accuracy.count(torch.ones(5000, dtype=torch.bool), torch.zeros(5000, dtype=torch.int64), 1)

    assert accuracy.accuracy is not None
    assert accuracy.accuracy > 0.99


def test_class_without_a_label_has_no_accuracy() -> None:
    accuracy = FadedAccuracy()

    accuracy.count(torch.ones(1, dtype=torch.bool), torch.tensor([1]), 2)

    assert list(accuracy.class_accuracy) == [None, 1.0]


NAN = float("nan")
ACCURACY_33 = torch.tensor([[0.9, NAN, NAN], [0.5, 0.8, NAN], [0.6, 0.9, 0.7]]).double()


def test_average_accuracy_is_the_mean_of_the_last_row() -> None:
    assert average_accuracy(ACCURACY_33) == pytest.approx((0.6 + 0.9 + 0.7) / 3)


def test_backward_transfer_compares_the_end_with_the_diagonal() -> None:
    assert backward_transfer(ACCURACY_33) == pytest.approx(((0.6 - 0.9) + (0.9 - 0.8)) / 2)


def test_forgetting_compares_the_end_with_the_best_before_the_last_task() -> None:
    assert forgetting(ACCURACY_33) == pytest.approx(((0.9 - 0.6) + (0.8 - 0.9)) / 2)


def test_forgetting_counts_a_best_that_came_after_the_task_itself() -> None:
    accuracy_33 = ACCURACY_33.clone()
    accuracy_33[1, 0] = 1.0

    assert forgetting(accuracy_33) == pytest.approx(((1.0 - 0.6) + (0.8 - 0.9)) / 2)


@pytest.mark.parametrize("metric", [backward_transfer, forgetting])
def test_one_task_alone_cannot_be_forgotten(metric: Callable[[torch.Tensor], float]) -> None:
    with pytest.raises(ValueError, match="two tasks"):
        metric(torch.ones(1, 1))


def test_task_accuracy_is_the_share_of_right_samples_in_each_task() -> None:
    right = torch.tensor([True, False, True, True, False])

    accuracy = task_accuracy(right, torch.tensor([0, 0, 2, 2, 2]), 3)

    assert accuracy.tolist() == pytest.approx([1 / 2, NAN, 2 / 3], nan_ok=True)


def test_anytime_accuracy_is_the_mean_over_checkpoints() -> None:
    assert anytime_accuracy([1.0, 0.5, 0.6]) == pytest.approx(0.7)


def test_no_checkpoint_has_no_anytime_accuracy() -> None:
    with pytest.raises(ValueError, match="one checkpoint"):
        anytime_accuracy([])
