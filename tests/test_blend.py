"""The opinion pool: its weights against a general optimiser, and when it steps back."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import logsumexp
from torch import Generator, Tensor

from learner.blend import _PRIOR, Pool, fitted_pool


def _problem(seed: int, *, M: int = 5, H: int = 300, K: int = 6) -> tuple[Tensor, Tensor]:
    """Return log-probabilities of parts that see the truth more or less, and the truth."""
    generator = Generator().manual_seed(seed)
    y = torch.randint(K, (H,), generator=generator)
    truth = torch.nn.functional.one_hot(y, K).float()
    strength = 2 * torch.rand(M, 1, 1, generator=generator)
    logits = strength * truth + torch.randn(M, H, K, generator=generator)
    return logits.log_softmax(2), y


def _loss(weights: np.ndarray, logp: Tensor, y: Tensor, anchor: np.ndarray) -> float:
    """Return the negative log-likelihood of the pool as its formula reads, with the prior."""
    parts = logp.double().numpy()
    pooled = np.tensordot(weights, parts, 1)
    own = pooled[np.arange(len(y)), y.numpy()]
    drawn = 0.5 * _PRIOR * ((weights - anchor) ** 2).sum()
    return float((logsumexp(pooled, axis=1) - own).sum() + drawn)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("anchored", [False, True])
def test_weights_are_those_that_a_general_optimiser_finds(seed: int, anchored: bool) -> None:
    logp, y = _problem(seed)
    start = torch.tensor([0.0, 2.0, 0.5, 0.0, 1.0]) if anchored else None
    anchor = np.full(5, 0.2) if start is None else start.double().numpy()

    found = minimize(
        _loss, anchor, (logp, y, anchor), method="L-BFGS-B", bounds=[(0, None)] * 5, tol=1e-12
    )

    weights = fitted_pool(logp, y, start).weight_M.double().numpy()
    assert _loss(weights, logp, y, anchor) <= found.fun * (1 + 1e-6)
    np.testing.assert_allclose(weights, found.x, atol=2e-3)


@pytest.mark.parametrize("seed", range(6))
def test_weights_are_never_negative_though_a_part_points_the_wrong_way(seed: int) -> None:
    logp, y = _problem(seed)
    logp[0] = (-2 * logp[1]).log_softmax(1)

    weights = fitted_pool(logp, y).weight_M

    assert (weights >= 0).all()
    assert weights[0] == 0


@pytest.mark.parametrize("seed", range(20))
def test_pool_is_never_worse_than_its_best_part_on_what_it_was_fitted_to(seed: int) -> None:
    logp, y = _problem(seed, H=100)
    logp[0, ::2] = 5 * logp[0, ::2]  # a part that is wildly sure at times

    pool = fitted_pool(logp, y)

    pooled = pool(logp).argmax(1) == y
    best = max((part.argmax(1) == y for part in logp), key=lambda right: int(right.sum()))
    gained = best.int() - pooled.int()
    assert gained.sum() <= 0


def test_part_that_is_right_but_unsure_replaces_a_pool_that_is_often_wrong() -> None:
    """The first part is always right by a hair, the second sure and mostly right."""
    K, H = 2, 200
    y = torch.arange(H) % K
    hair, sure = torch.zeros(H, K), torch.zeros(H, K)
    hair[torch.arange(H), y] = 1e-4
    sure[torch.arange(H), torch.where(torch.arange(H) % 5 == 0, 1 - y, y)] = 5.0

    logp = torch.stack([hair, sure]).log_softmax(2)
    pool = fitted_pool(logp, y)

    assert pool.weight_M[1] == 0
    assert pool.weight_M[0] > 1  # as it is always right, it may be surer than it says
    assert bool((pool(logp).argmax(1) == y).all())


def test_without_evidence_the_weights_are_where_they_start() -> None:
    nothing = torch.zeros(3, 0, 4), torch.zeros(0, dtype=torch.int64)
    start = torch.tensor([0.5, 0.0, 2.0])

    assert fitted_pool(*nothing).weight_M.tolist() == pytest.approx([1 / 3] * 3)
    assert torch.equal(fitted_pool(*nothing, start).weight_M, start)


def test_pool_is_a_weighted_geometric_mean() -> None:
    p = torch.tensor([[[0.5, 0.3, 0.2]], [[0.1, 0.1, 0.8]]])
    weight = torch.tensor([2.0, 0.5])

    pooled = Pool(weight)(p.log())

    product = p[0] ** 2 * p[1] ** 0.5
    torch.testing.assert_close(pooled, product / product.sum())


def test_one_class_is_answered_with_certainty() -> None:
    pool = fitted_pool(torch.zeros(4, 30, 1), torch.zeros(30, dtype=torch.int64))

    assert pool(torch.zeros(4, 2, 1)).tolist() == [[1.0], [1.0]]
