"""One answer from several parts: a logarithmic opinion pool, its weights learned from evidence.

    p(y | x) proportional to the product over parts m of p_m(y | x)^w_m,   w_m >= 0

(Genest & Zidek 1986). The weights maximise the likelihood of held-out labels; the problem is convex
with one weight per part, so that a few hundred samples decide it. Ours: weights per domain, drawn
towards those of all, and the step back to what is simpler (from a domain to the pool of all, from
that to the best single part) where the pool is not clearly right more often.
Dimension key: H held-out samples, M parts, K classes, B batch.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

LOWEST = -30.0
"""Log-probability below which a part's opinion counts as this, and of a class it does not know."""
_ROUNDS = 40
_PRIOR = 2.0  # strength that draws weights towards where they start, in samples' information
_CLEARLY = 1.0  # standard deviations by which a pool must beat what is simpler than it


@dataclass(frozen=True, slots=True)
class Pool:
    """How much each part is trusted (Genest & Zidek 1986)."""

    weight_M: Tensor
    """>= 0, float32."""

    def __call__(self, logp_MBK: Tensor) -> Tensor:
        """Return the pooled probabilities, [B, K]; columns of -inf in every part stay 0."""
        return torch.einsum("m,mbk->bk", self.weight_M, logp_MBK.clamp_min(LOWEST)).softmax(1)


def fitted_pool(logp_MHK: Tensor, y_H: Tensor, start_M: Tensor | None = None) -> Pool:
    """Return the pool that makes held-out labels most likely.

    Args:
        logp_MHK: log-probabilities of each part.
        y_H: the true classes.
        start_M: weights of a wider pool, to be drawn towards and to keep unless others are clearly
            right more often; default: equal ones, and the best single part is kept.
    """
    logp_MHK = logp_MHK.clamp_min(LOWEST).double()
    M = len(logp_MHK)
    anchor_M = torch.full((M,), 1 / M).double() if start_M is None else start_M.double()
    weight_M = _likeliest(logp_MHK, y_H, anchor_M)
    plain_M = _best_part(logp_MHK, y_H) if start_M is None else anchor_M
    gained_H = _right(weight_M, logp_MHK, y_H).int() - _right(plain_M, logp_MHK, y_H).int()
    clearly = gained_H.sum() > _CLEARLY * gained_H.abs().sum() ** 0.5
    return Pool((weight_M if clearly or len(y_H) == 0 else plain_M).float())


def _likeliest(logp_MHK: Tensor, y_H: Tensor, anchor_M: Tensor) -> Tensor:
    """Return the weights that make held-out labels most likely, drawn towards the anchor."""
    weight_M = anchor_M.clone()
    best, best_loss = weight_M, torch.inf
    damping = 1.0
    for _ in range(_ROUNDS):
        loss, gradient_M, hessian_MM = _likelihood(logp_MHK, y_H, weight_M, anchor_M)
        if loss < best_loss:
            best, best_loss, damping = weight_M, loss, damping / 3
        else:
            weight_M, damping = best, damping * 5
            loss, gradient_M, hessian_MM = _likelihood(logp_MHK, y_H, best, anchor_M)
        free_M = (best > 0) | (gradient_M < 0)
        step_MM = hessian_MM + damping * torch.diag(hessian_MM.diagonal() + 1e-6)
        step_M = torch.zeros_like(best)
        step_M[free_M] = torch.linalg.solve(step_MM[free_M][:, free_M], gradient_M[free_M])
        weight_M = (best - step_M).clamp_min(0)
    return best


def _likelihood(
    logp_MHK: Tensor, y_H: Tensor, weight_M: Tensor, anchor_M: Tensor
) -> tuple[float, Tensor, Tensor]:
    """Return the negative log-likelihood, drawn towards the anchor, its gradient and Hessian."""
    pooled_HK = torch.einsum("m,mhk->hk", weight_M, logp_MHK)
    p_HK = pooled_HK.softmax(1)
    own_MH = logp_MHK[:, torch.arange(len(y_H)), y_H]
    mean_MH = torch.einsum("hk,mhk->mh", p_HK, logp_MHK)
    spread = logp_MHK - mean_MH[:, :, None]
    hessian_MM = torch.einsum("hk,mhk,nhk->mn", p_HK, spread, spread)
    drawn_M = _PRIOR * (weight_M - anchor_M)
    loss = (
        pooled_HK.logsumexp(1).sum()
        - (weight_M @ own_MH).sum()
        + 0.5 * drawn_M @ (weight_M - anchor_M)
    )
    eye_MM = torch.eye(len(weight_M), dtype=torch.float64)
    return float(loss), (mean_MH - own_MH).sum(1) + drawn_M, hessian_MM + _PRIOR * eye_MM


def _best_part(logp_MHK: Tensor, y_H: Tensor) -> Tensor:
    """Return weights of 0 for all parts but the one most often right; its own calibrates it."""
    best = int((logp_MHK.argmax(2) == y_H).sum(1).argmax())
    sure_M = torch.ones(1, dtype=torch.float64)
    alone_M = torch.zeros(len(logp_MHK), dtype=torch.float64)
    alone_M[best] = _likeliest(logp_MHK[best : best + 1], y_H, sure_M).clamp_min(1e-3).item()
    return alone_M


def _right(weight_M: Tensor, logp_MHK: Tensor, y_H: Tensor) -> Tensor:
    """Return whether each sample is answered right, bool [H]."""
    return torch.einsum("m,mhk->hk", weight_M, logp_MHK).argmax(1) == y_H
