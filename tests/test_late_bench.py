"""The benchmark of late labels: when labels come, what is counted, and both on the digits."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console
from rich.progress import Progress

from bench import late_labels
from bench.late_labels import BATCH, Prequential
from learner.evaluation import FadedAccuracy
from service.demo.data import load_data


def test_each_label_comes_once_after_at_most_so_many_samples() -> None:
    order, due = late_labels._drawn(1000, 200)

    late = due - order
    assert sorted(order) == list(range(BATCH, 1000))
    assert (late.min(), late.max()) == (1, 200)
    assert (np.diff(due) >= 0).all()
    assert (np.diff(order) < 0).mean() > 0.4


def test_what_is_computed_is_the_definition_of_prequential_accuracy() -> None:
    generator = torch.Generator().manual_seed(0)
    right_B, y_B = torch.rand(50, generator=generator) < 0.6, torch.zeros(50, dtype=torch.long)
    expected = FadedAccuracy()
    expected.count(right_B[:20], y_B[:20], 1)
    before = Prequential(
        labelled=20, right=int(right_B[:20].sum()), faded=float(expected.accuracy or 0)
    )
    expected.count(right_B[20:], y_B[20:], 1)

    found = late_labels._continued(before, right_B[20:].tolist())

    assert (found.labelled, found.right) == (50, int(right_B.sum()))
    assert found.faded == pytest.approx(expected.accuracy, abs=1e-12)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_digits_are_learned_as_well_from_late_labels_and_each_answer_is_counted() -> None:
    digits = load_data("digits", None, limit=250)
    order = np.random.default_rng(0).permutation(len(digits.x_train))
    data = replace(digits, x_train=digits.x_train[order], y_train=digits.y_train[order])

    with Progress(console=Console(quiet=True)) as bar:
        result = late_labels.measure(data, delay=100, bar=bar)

    other = replace(result.computed, right=result.computed.right + 1)
    assert result.late.told.labelled == len(data.x_train)
    assert 0 < result.late.told.right < len(data.x_train)
    assert result.agrees
    assert not replace(result, computed=other).agrees
    assert result.points > -3
