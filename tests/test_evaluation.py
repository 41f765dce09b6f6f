"""Prequential accuracy against the definition, one sample at a time."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from learner.evaluation import FADE, FadedAccuracy

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
