"""Linear read-outs solved in closed form from sums over labelled samples.

Streaming LDA (Hayes & Kanan 2020; shared covariance within the classes) and ridge regression on
centred one-hot targets (the closed form of ACIL and RanPAC). With N samples, n_c of class c, class
means mu_c and overall mean mu, both are one linear system

    A W = T,   A = (G - R^T R) / N + ridge * unit * I,   G = sum of phi phi^T

    lda:    R = rows sqrt(n_c) mu_c,   T = columns mu_c - mu,             b_c = -(mu_c + mu) W_c / 2
    ridge:  R = the row sqrt(N) mu,    T = columns n_c (mu_c - mu) / N,   b_c = n_c / N - mu W_c

Taking mu from LDA's means moves all scores of a sample alike and keeps float32 exact enough.
`unit` is the mean diagonal of (G - R^T R) / N, but at least what float32 products resolve.
A is factored in float32 (Cholesky), half the bytes and time of float64; the factor preconditions
conjugate gradients (Hestenes & Stiefel 1952) on the float64 sums, which is ours.
Dimension key: B batch, D features, K classes, P classes with samples, Q rows not yet in the panels.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from learner.errors import NonFiniteError

Kind = Literal["lda", "ridge"]
PANEL = 256
"""Rows of G in one panel."""
BLOCK = 256
"""Samples whose products are summed in float32 before they join the float64 sums."""
_RESOLUTION = 1e-3  # smallest unit, in mean squares of a feature: above the rounding of the sums
_JITTERS = (0.0, 1e-4, 1e-2, 1.0)  # added to the float32 factor alone, in units, if it breaks down
_TOLERANCE = 1e-10  # squared error left, of the squared length of the answer, both measured by A
_MOST_ROUNDS = 30


@dataclass(frozen=True, slots=True)
class ReadOut:
    """A linear classifier of features (Hayes & Kanan 2020); classes without samples answer -inf."""

    weight_DK: Tensor
    """float32."""
    bias_K: Tensor
    """float32; -inf where a class has no samples."""
    log_frequency_K: Tensor
    """log(n_c / N), float32, what `bias_K` leaves out of an LDA; -inf for a class without samples.
    """

    def scores(self, phi_BD: Tensor) -> Tensor:
        """Return a score per class, [B, K]; the largest is the answer.

        Of "lda" a log-likelihood but for a number common to the classes, so that its softmax is the
        posterior of equally frequent classes; of "ridge" an estimate of the posterior itself.
        """
        return torch.addmm(self.bias_K, phi_BD, self.weight_DK)


@dataclass(frozen=True, slots=True)
class Sums:
    """Sums over labelled samples: G = faded * panels + sum over rows of weight phi phi^T. Ours."""

    counts_K: Tensor
    """Samples per class, float64, rows included."""
    sums_KD: Tensor
    """Sum of features per class, float64, rows included."""
    panels: Sequence[Tensor]
    """The lower triangle, 256 rows each, from the left edge to the end of the diagonal block."""
    faded: float
    phi_QD: Tensor
    """float32."""
    weight_Q: Tensor
    """float32."""

    def blocks(self) -> Iterator[Tensor]:
        """Yield each panel with the rows added in, float64, the caller's own."""
        for i, panel in enumerate(self.panels):
            block = panel * self.faded
            for phi_QD, weight_Q in self._split():
                block += product(phi_QD, weight_Q, i * PANEL)
            yield block

    def diagonal(self) -> Tensor:
        """Return the diagonal of G, float64 [D]."""
        parts = [panel.diagonal(i * PANEL) for i, panel in enumerate(self.panels)]
        diagonal_D = torch.cat(parts) * self.faded
        for phi_QD, weight_Q in self._split():
            diagonal_D += weight_Q.double() @ phi_QD.double().square()
        return diagonal_D

    def times(self, v_DP: Tensor) -> Tensor:
        """Return G v, float64 [D, P]; each panel stands for itself and its mirror image."""
        out_DP = torch.zeros_like(v_DP)
        for i, panel in enumerate(self.panels):
            start, end = i * PANEL, panel.shape[1]
            out_DP[start:end].addmm_(panel, v_DP[:end])
            out_DP[:start].addmm_(panel[:, :start].T, v_DP[start:end])
        out_DP *= self.faded
        for phi_QD, weight_Q in self._split():
            phi64_QD = phi_QD.double()
            out_DP.addmm_(phi64_QD.T, (phi64_QD @ v_DP) * weight_Q[:, None])
        return out_DP

    def _split(self) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(self.phi_QD.split(BLOCK), self.weight_Q.split(BLOCK), strict=True)


def product(phi_QD: Tensor, weight_Q: Tensor, start: int) -> Tensor:
    """Return the panel of sum of weight phi phi^T whose first row is `start`, float32."""
    end = min(start + PANEL, phi_QD.shape[1])
    return (phi_QD[:, start:end] * weight_Q[:, None]).T @ phi_QD[:, :end]


def solve(sums: Sums, ridges: Sequence[float], kind: Kind) -> list[ReadOut]:
    """Return the read-out for each ridge; they share the means and one float32 [D, D] of scratch.

    Args:
        sums: of at least one sample.
        ridges: each > 0, in units of the mean diagonal.
        kind: "lda" or "ridge".

    Raises:
        NonFiniteError: the sums hold NaN or infinity.
    """
    seen_K = sums.counts_K > 0
    counts_P = sums.counts_K[seen_K]
    total, D = counts_P.sum().item(), sums.sums_KD.shape[1]
    means_PD = sums.sums_KD[seen_K] / counts_P[:, None]
    mean_D = counts_P @ means_PD / total
    target_DP = (means_PD - mean_D).T.contiguous()
    if kind == "lda":
        removed_RD = means_PD * counts_P.sqrt()[:, None]
    else:
        removed_RD = mean_D[None] * total**0.5
        target_DP *= counts_P / total
    square = sums.diagonal().sum().item() / (total * D)
    unit = max(square - removed_RD.square().sum().item() / (total * D), _RESOLUTION * square) or 1.0
    scratch_DD = torch.empty(D, D, device=mean_D.device)
    answers = []
    for ridge in ridges:
        system = _System(sums, removed_RD, total, ridge * unit)
        weight_DP = system.solved(target_DP, scratch_DD, unit)
        if kind == "lda":
            bias_P = -((means_PD + mean_D).T * weight_DP).sum(0) / 2
        else:
            bias_P = counts_P / total - mean_D @ weight_DP
        answers.append(_spread(weight_DP, bias_P, (counts_P / total).log(), seen_K))
    return answers


def _spread(weight_DP: Tensor, bias_P: Tensor, frequency_P: Tensor, seen_K: Tensor) -> ReadOut:
    """Return the read-out over all classes, given the one over those with samples."""
    weight_DK = weight_DP.new_zeros(len(weight_DP), len(seen_K), dtype=torch.float32)
    weight_DK[:, seen_K] = weight_DP.float()
    bias_K, frequency_K = weight_DK.new_full((2, len(seen_K)), -torch.inf)
    bias_K[seen_K], frequency_K[seen_K] = bias_P.float(), frequency_P.float()
    return ReadOut(weight_DK, bias_K, frequency_K)


@dataclass(frozen=True, slots=True)
class _System:
    """The matrix A = (G - R^T R) / N + ridge I of the module head. Ours."""

    sums: Sums
    removed_RD: Tensor
    total: float
    ridge: float

    def times(self, v_DP: Tensor) -> Tensor:
        """Return A v, float64 [D, P]."""
        out_DP = self.sums.times(v_DP).sub_(self.removed_RD.T @ (self.removed_RD @ v_DP))
        return out_DP.div_(self.total).add_(v_DP, alpha=self.ridge)

    def solved(self, target_DP: Tensor, scratch_DD: Tensor, unit: float) -> Tensor:
        """Return W with A W = target, float64 [D, P]: preconditioned conjugate gradients.

        Stops when the part missing is, measured by A, 1e-5 of the answer: a read-out that scores
        samples so is off by 1e-5 of the spread of the scores within a class.
        """
        self._factor(scratch_DD, unit)
        answer_DP, rest_DP = torch.zeros_like(target_DP), target_DP.clone()
        step_DP = near_DP = _near(scratch_DD, rest_DP)
        left_P = first_P = (rest_DP * near_DP).sum(0)
        for _ in range(_MOST_ROUNDS):
            image_DP = self.times(step_DP)
            length_P = _ratio(left_P, (step_DP * image_DP).sum(0))
            answer_DP += step_DP * length_P
            rest_DP -= image_DP * length_P
            near_DP = _near(scratch_DD, rest_DP)
            before_P, left_P = left_P, (rest_DP * near_DP).sum(0)
            if (left_P <= first_P * _TOLERANCE).all():
                break
            step_DP = near_DP + step_DP * _ratio(left_P, before_P)
        return answer_DP

    def _factor(self, scratch_DD: Tensor, unit: float) -> None:
        """Leave in the scratch the Cholesky factor L of A, lower, nearly L L^T = A.

        Raises:
            NonFiniteError: there is none, whatever is added to the diagonal.
        """
        upper_DD = scratch_DD.mT  # in columns, as LAPACK wants it: factored in place
        info = torch.empty((), dtype=torch.int32, device=scratch_DD.device)
        for jitter in _JITTERS:
            self._fill(scratch_DD, self.ridge + jitter * unit)
            torch.linalg.cholesky_ex(upper_DD, upper=True, out=(upper_DD, info))
            if info.item() == 0:
                return
        raise NonFiniteError("the sums of the analytic memory are not finite")

    def _fill(self, scratch_DD: Tensor, ridge: float) -> None:
        for i, block in enumerate(self.sums.blocks()):
            start, end = i * PANEL, block.shape[1]
            block.addmm_(self.removed_RD[:, start:end].T, self.removed_RD[:, :end], alpha=-1)
            block.div_(self.total).diagonal(start).add_(ridge)
            scratch_DD[start:end, :end] = block


def _near(factor_DD: Tensor, rest_DP: Tensor) -> Tensor:
    """Return the solution of L L^T x = rest to float32 precision, as float64."""
    half_DP: Tensor = torch.linalg.solve_triangular(factor_DD, rest_DP.float(), upper=False)
    near_DP: Tensor = torch.linalg.solve_triangular(factor_DD.mT, half_DP, upper=True)
    return near_DP.double()


def _ratio(above_P: Tensor, below_P: Tensor) -> Tensor:
    """Return the quotient, 0 where a column is solved already."""
    ratio_P: Tensor = torch.where(below_P > 0, above_P / below_P, 0.0)
    return ratio_P
