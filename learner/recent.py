"""Read-outs that forget, for streams whose labels come to mean something else (concept drift).

Ridge regressions on a few Fourier features, each with its own half-life, solved anew with every
mini-batch; which of them to trust is learned from arriving samples, predicted before they are
learned (exponentially weighted experts, Vovk 1990; faded, Herbster & Warmuth 1998). Beside them
stands `blend`, the answer of the past. Ours: the half-lives, and when the present may overrule the
past at all (`Recent.overrules`).
Dimension key: B batch, F features, K classes, L half-lives.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

HALF_LIVES = (12.0, 25.0, 50.0, 200.0, 800.0, 3200.0)
"""Labelled samples after which one counts half."""
LINEAR = 64
"""Most values of the view that these read-outs see beside Fourier features."""
_RIDGE = 0.01
_CURVED, _LEVEL = 2.0, 3.0  # Fourier features and a constant beside the view: what the ridge allows
_MEMORY = 0.98  # what the evidence of one mini-batch of 10 weighs against the next
_SURE = 0.02  # least probability that a read-out is taken to give
_WINDOW = 0.999  # fading of the tallies: about the last 1,000 labelled samples
_LATELY = 0.995  # fading of label counts: about the last 200; an ordered stream soon shows
_ENOUGH = 1000.0  # labelled samples before the present, the last 1,000, can contradict a past
_REPRESENTATIVE = 0.25  # most total variation distance of recent labels from all labels
_STILL = 0.5  # and by which it goes on to overrule
_CLEARLY = 2.0  # standard deviations by which the present must have been right more often


def recent_width(smooth: int, values: int) -> int:
    """Return F for smooth features and values of the view."""
    return smooth + min(LINEAR, values) + 1


def recent_features(smooth_BS: Tensor, view_BV: Tensor) -> Tensor:
    """Return what the forgetting read-outs see, float32 [B, F]."""
    ones_B1 = view_BV.new_ones(len(view_BV), 1)
    return torch.cat([_CURVED * smooth_BS, view_BV[:, :LINEAR], _LEVEL * ones_B1], 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recent:
    """Forgetting read-outs and the tallies that say whether to trust them; never changed."""

    gram_LFF: Tensor
    sums_LFK: Tensor
    weight_LFK: Tensor
    evidence_L: Tensor
    """Faded log-likelihood of each read-out, and of the past last, [L + 1], float64."""
    recent_K: Tensor
    """Counts of the newest labels, faded, float64."""
    gain: float = 0.0
    """Faded sum of (present right) - (past right)."""
    differ: float = 0.0
    """Faded count of samples where just one was right."""

    @classmethod
    def fresh(cls, features: int) -> Self:
        """Return read-outs that have seen nothing."""
        L = len(HALF_LIVES)
        nothing = torch.zeros(L, features, 0)
        return cls(
            gram_LFF=torch.zeros(L, features, features, dtype=torch.float64),
            sums_LFK=nothing.double(),
            weight_LFK=nothing,
            evidence_L=torch.zeros(L + 1, dtype=torch.float64),
            recent_K=torch.zeros(0, dtype=torch.float64),
        )

    def probabilities(self, features_BF: Tensor, past_BK: Tensor) -> Tensor:
        """Return what the present answers, the past being one of its voices, [B, K]."""
        voices = self._voices(features_BF, past_BK)
        trust_L = self.evidence_L.softmax(0).float()
        return torch.einsum("l,lbk->bk", trust_L, voices)

    def overrules(self, counts_K: Tensor, *, already: bool) -> bool:
        """Return whether labels contradict the past: the present has been right clearly more often.

        Only while recent labels are a fair sample of all labels: on a class-ordered stream whoever
        says "the current class" is right, and trusting it is how old classes are lost.

        Args:
            counts_K: labelled samples of each class since the start.
            already: whether it overrules now; then it goes on as long as it gains anything.
        """
        if len(counts_K) != len(self.recent_K) or counts_K.sum() < _ENOUGH:
            return False
        share_K, lately_K = counts_K / counts_K.sum(), self.recent_K / self.recent_K.sum()
        if 0.5 * (share_K - lately_K).abs().sum() > _REPRESENTATIVE:
            return False
        clearly = _STILL if already else _CLEARLY
        return bool(self.gain > clearly * self.differ**0.5)

    def learned(self, features_BF: Tensor, y_B: Tensor, past_BK: Tensor, classes: int) -> Self:
        """Return the read-outs after one labelled mini-batch: tested on it first, then fitted.

        Args:
            features_BF: of the labelled samples.
            y_B: their classes.
            past_BK: what the past answered, over the classes known then.
            classes: classes known by now.
        """
        known_B = y_B < past_BK.shape[1]
        judged = self._judged(features_BF[known_B], y_B[known_B], past_BK[known_B])
        more = classes - self.sums_LFK.shape[2]
        sums_LFK = F.pad(self.sums_LFK, (0, more))
        recent_K = F.pad(self.recent_K, (0, more))
        n = len(y_B)
        keep_L11 = 0.5 ** (n / torch.tensor(HALF_LIVES, dtype=torch.float64))[:, None, None]
        features_BF, target_BK = features_BF.double(), F.one_hot(y_B, classes).double()
        gram_LFF = keep_L11 * self.gram_LFF + features_BF.T @ features_BF
        sums_LFK = keep_L11 * sums_LFK + features_BF.T @ target_BK
        return replace(
            judged,
            gram_LFF=gram_LFF,
            sums_LFK=sums_LFK,
            weight_LFK=_solved(gram_LFF, sums_LFK),
            recent_K=recent_K * _LATELY**n + target_BK.double().sum(0),
        )

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors of the state by name."""
        names = ("gram_LFF", "sums_LFK", "weight_LFK", "evidence_L", "recent_K")
        return {name.rsplit("_", 1)[0]: getattr(self, name) for name in names}

    def values(self) -> dict[str, Any]:
        """Return the rest of the state."""
        return {"gain": self.gain, "differ": self.differ}

    @classmethod
    def restored(cls, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> Self:
        """Return what the state was taken from; KeyError if something is missing."""
        return cls(
            gram_LFF=tensors["gram"],
            sums_LFK=tensors["sums"],
            weight_LFK=tensors["weight"],
            evidence_L=tensors["evidence"],
            recent_K=tensors["recent"],
            **values,
        )

    def _voices(self, features_BF: Tensor, past_BK: Tensor) -> Tensor:
        """Return the answer of each read-out and of the past, [L + 1, B, K]."""
        known = past_BK.shape[1]
        own = torch.einsum("bf,lfk->lbk", features_BF, self.weight_LFK).clamp(_SURE, 1 - _SURE)
        own = F.pad(own, (0, known - own.shape[2]), value=_SURE)
        own = own / own.sum(2, keepdim=True)
        past = past_BK.clamp_min(_SURE)
        return torch.cat([own, (past / past.sum(1, keepdim=True))[None]])

    def _judged(self, features_BF: Tensor, y_B: Tensor, past_BK: Tensor) -> Self:
        if len(y_B) == 0 or past_BK.shape[1] == 0:
            return self
        rows = torch.arange(len(y_B))
        voices = self._voices(features_BF, past_BK)
        present_BK = torch.einsum("l,lbk->bk", self.evidence_L.softmax(0).float(), voices)
        present_B, past_B = present_BK.argmax(1) == y_B, past_BK.argmax(1) == y_B
        keep = _WINDOW ** len(y_B)
        gained_B = present_B.int() - past_B.int()
        return replace(
            self,
            evidence_L=self.evidence_L * _MEMORY ** (len(y_B) / 10)
            + voices[:, rows, y_B].double().log().sum(1),
            gain=self.gain * keep + float(gained_B.sum()),
            differ=self.differ * keep + float(gained_B.abs().sum()),
        )


def _solved(gram_LFF: Tensor, sums_LFK: Tensor) -> Tensor:
    """Return the ridge solutions, [L, F, K]."""
    ridge_FF = _RIDGE * torch.eye(gram_LFF.shape[1], dtype=gram_LFF.dtype)
    factor_LFF = torch.linalg.cholesky(gram_LFF + ridge_FF)
    weight_LFK = torch.cholesky_solve(sums_LFK, factor_LFF).float()
    return weight_LFK.contiguous()  # the bits of a product depend on the layout
