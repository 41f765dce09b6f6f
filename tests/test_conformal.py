"""Conformal p-values: uniform, exact with ties, the same however the stream is cut."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Generator, Tensor

from learner.conformal import ConformalRanks


def _seeded(seed: int = 0) -> Generator:
    return torch.Generator().manual_seed(seed)


def _ranked(scores: Tensor, sizes: list[int], capacity: int) -> tuple[Tensor, ConformalRanks]:
    """Return the p-values of the scores in batches of these sizes, in turn."""
    ranks, generator, p, start = ConformalRanks(capacity), _seeded(), list[Tensor](), 0
    while start < len(scores):
        size = sizes[len(p) % len(sizes)]
        p_B, ranks = ranks.ranked(scores[start : start + size], generator)
        p.append(p_B)
        start += size
    return torch.cat(p), ranks


def _by_hand(scores: list[float], u: list[float], capacity: int) -> list[float]:
    """Return the definition, one score after another."""
    known, p = list[float](), list[float]()
    for score, own in zip(scores, u, strict=True):
        if len(known) == capacity:
            known = []
        greater, equal = sum(k > score for k in known), sum(k == score for k in known)
        p.append((greater + (1 - own) * (equal + 1)) / (len(known) + 1))
        known.append(score)
    return p


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=40), st.integers(1, 15))
def test_p_values_are_the_definition_with_ties_and_a_full_round(
    scores: list[int], capacity: int
) -> None:
    u = torch.rand(len(scores), dtype=torch.float64, generator=_seeded()).tolist()

    p, _ = _ranked(torch.tensor(scores, dtype=torch.float32), [7], capacity)

    assert p.tolist() == _by_hand([float(score) for score in scores], u, capacity)


def test_p_values_are_the_definition_after_scores_were_merged() -> None:
    scores = torch.randint(0, 400, (1500,), generator=_seeded(1)).float()
    u = torch.rand(len(scores), dtype=torch.float64, generator=_seeded()).tolist()

    p, ranks = _ranked(scores, [100], capacity=10_000)

    assert len(ranks.sorted_N) == 1024
    assert p.tolist() == _by_hand(scores.tolist(), u, 10_000)


@pytest.mark.parametrize("sizes", [[1], [10], [3, 600, 1], [2500]], ids=str)
def test_any_cut_into_batches_gives_the_same_bits(sizes: list[int]) -> None:
    scores = torch.randn(2500, generator=_seeded(2)).round(decimals=1)
    whole, at_once = _ranked(scores, [1000], capacity=2000)

    cut, ranks = _ranked(scores, sizes, capacity=2000)

    assert torch.equal(cut, whole)
    assert torch.equal(ranks.sorted_N, at_once.sorted_N)
    assert torch.equal(ranks.recent_M, at_once.recent_M)


@pytest.mark.parametrize("decimals", [6, 0], ids=["continuous", "many ties"])
def test_exchangeable_scores_give_uniform_and_independent_p_values(decimals: int) -> None:
    scores = torch.randn(20_000, generator=_seeded(3)).round(decimals=decimals)

    p, _ = _ranked(scores, [1000], capacity=100_000)

    assert stats.kstest(p.numpy(), "uniform").pvalue > 0.001
    assert abs(torch.corrcoef(torch.stack([p[1:], p[:-1]]))[0, 1].item()) < 0.025  # 3.5 deviations
    assert p.min() > 0
    assert p.max() <= 1


def test_rounds_begun_anew_at_capacity_leave_p_values_uniform_and_memory_bounded() -> None:
    scores = torch.randn(20_000, generator=_seeded(4))

    p, ranks = _ranked(scores, [70], capacity=300)

    assert stats.kstest(p.numpy(), "uniform").pvalue > 0.001
    assert len(ranks) == 20_000 % 300


def test_unusually_large_score_has_a_small_p_value_and_a_small_one_a_large() -> None:
    _, ranks = _ranked(torch.randn(999, generator=_seeded(5)), [999], capacity=2000)

    p, _ = ranks.ranked(torch.tensor([9.0, -9.0]), _seeded())

    assert p[0] <= 1 / 1000
    assert p[1] >= 1 - 2 / 1001


def test_fixed_calibration_set_would_bias_all_p_values_alike() -> None:
    means, online = [], []
    for seed in range(40):
        scores = torch.randn(4100, generator=_seeded(100 + seed))
        known, later = scores[:100], scores[100:]
        means.append((known[:, None] > later).double().mean().item())
        online.append(_ranked(scores, [1000], 10_000)[0].mean().item())

    alone = (1 / 12 / 4000) ** 0.5  # deviation of the mean of 4,000 uniform p-values
    assert torch.tensor(online).std().item() < 1.5 * alone
    assert torch.tensor(means).std().item() > 4 * alone


def test_earlier_ranks_stay_as_they_were_and_continue_alike_after_restoring() -> None:
    scores = torch.randn(1200, generator=_seeded(6))
    _, before = _ranked(scores[:700], [100], capacity=1000)
    kept = {name: tensor.clone() for name, tensor in before.tensors().items()}

    p, _ = before.ranked(scores[700:], _seeded(7))
    again, _ = ConformalRanks.restored(1000, kept).ranked(scores[700:], _seeded(7))

    assert all(torch.equal(tensor, kept[name]) for name, tensor in before.tensors().items())
    assert torch.equal(p, again)


def test_fresh_ranks_know_no_score() -> None:
    _, ranks = _ranked(torch.randn(600, generator=_seeded(8)), [600], capacity=700)

    fresh = ranks.fresh()

    assert (len(ranks), len(fresh), fresh.capacity) == (600, 0, 700)
