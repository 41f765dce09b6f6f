"""The compact view: any sample as one short standardised vector, and its random Fourier features.

What density models, domain read-outs and the drift watch see, where patches would lose the place of
a value (a scrambled image has no patches). Images are averaged down until they have at most 1,024
values, series along time; vectors are taken as they are, wider ones folded by random signs (ours).
Random Fourier features approximate a Gaussian kernel (Rahimi & Recht 2007).
Dimension key: B batch, V values of the view, D features.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from learner.scaler import unit

WIDEST = 1024
"""Most values of a view."""
_FAR = 5.0  # standard deviations; a wild value counts as this far and no farther
_QUANTILE_VALUES = 2**22  # values that quantiles are taken of
_REACH = 3.0  # spans between the outer fiftieths beyond them to which values are believed
_HUGE = 1e9
_FLAT = 0.05  # of the mean deviation: a value that hardly varies is not blown up


@dataclass(frozen=True, slots=True)
class View:
    """Samples as vectors standardised by the moments of the samples it was fitted on; frozen."""

    mean_V: Tensor
    scale_V: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Return the view of each sample, float32 [B, V], values within 5 standard deviations."""
        return ((compact(x) - self.mean_V) * self.scale_V).clamp_(-_FAR, _FAR)

    @property
    def values(self) -> int:
        """V."""
        return len(self.mean_V)

    @classmethod
    def fitted(cls, x: Tensor) -> Self:
        """Return the view fitted on samples [n, ...], without labels."""
        raw = tamed(compact(x))
        deviation_V, mean_V = torch.std_mean(raw, dim=0, correction=0)
        if x.dim() > 2:  # one scale for an image, one per channel for a series
            channels = 1 if x.dim() == 4 else x.shape[2]
            square_CT = deviation_V.square().unflatten(0, (channels, -1))
            deviation_V = square_CT.mean(1, keepdim=True).sqrt().expand_as(square_CT).flatten()
        floor = _FLAT * deviation_V.mean() + 1e-6
        return cls(mean_V, 1 / deviation_V.clamp_min(floor))

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors of the state by name."""
        return {"mean": self.mean_V, "scale": self.scale_V}

    @classmethod
    def restored(cls, tensors: Mapping[str, Tensor]) -> Self:
        """Return the view whose `tensors` these are; KeyError if one is missing."""
        return cls(tensors["mean"], tensors["scale"])


def tamed(raw_NV: Tensor) -> Tensor:
    """Return values cut to where most of them lie, so that one wild sample spoils no moment."""
    some_NV = raw_NV[:: 1 + raw_NV.numel() // _QUANTILE_VALUES]
    low_V, high_V = torch.quantile(some_NV, torch.tensor([0.02, 0.98]), dim=0)
    span_V = (high_V - low_V).clamp_min(1e-12)
    return raw_NV.clamp(low_V - _REACH * span_V, high_V + _REACH * span_V)


def compact(x: Tensor) -> Tensor:
    """Return samples [B, ...] as vectors of at most `WIDEST` values, not standardised.

    Values are cut to +-1e9, so that sums of them stay finite.
    """
    return _shortened(x).clamp(-_HUGE, _HUGE)


def _shortened(x: Tensor) -> Tensor:
    if x.dim() == 4:
        x = unit(x)
        return F.adaptive_avg_pool2d(x, image_grid(tuple(x.shape[1:]))).flatten(1)
    if x.dim() == 3:
        steps = max(1, min(x.shape[1], WIDEST // x.shape[2]))
        return F.adaptive_avg_pool1d(x.transpose(1, 2), steps).flatten(1)
    if x.shape[1] <= WIDEST:
        return x
    return _folded(x)


def image_grid(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return height and width to which images of a shape (C, H, W) are averaged down."""
    side = math.isqrt(WIDEST // shape[0])
    return min(shape[1], side), min(shape[2], side)


def _folded(x_BD: Tensor) -> Tensor:
    """Return wide vectors as sums of randomly signed values (a count sketch; Charikar 2002)."""
    generator = torch.Generator().manual_seed(x_BD.shape[1])
    sign_D = torch.randint(2, (x_BD.shape[1],), generator=generator) * 2.0 - 1.0
    bucket_D = torch.randint(WIDEST, (x_BD.shape[1],), generator=generator)
    return x_BD.new_zeros(len(x_BD), WIDEST).index_add_(1, bucket_D, x_BD * sign_D)


@dataclass(frozen=True, slots=True)
class FourierFeatures:
    """sqrt(2 / D) cos(W v + b) and the view itself: a Gaussian kernel and a linear one."""

    weight_VD: Tensor
    phase_D: Tensor

    @classmethod
    def drawn(cls, values: int, features: int, generator: Generator, *, width: float) -> Self:
        """Return features drawn for views of V values.

        Args:
            values: V.
            features: D, cosines.
            generator: draws frequencies and phases.
            width: of the kernel, in units of the typical distance of two standardised samples.
        """
        scale = 1 / (width * math.sqrt(2 * values))
        weight_VD = torch.randn(values, features, generator=generator) * scale
        return cls(weight_VD, torch.rand(features, generator=generator) * (2 * math.pi))

    def __call__(self, view_BV: Tensor) -> Tensor:
        """Return the features, float32 [B, D]."""
        angle_BD = torch.addmm(self.phase_D, view_BV, self.weight_VD)
        return angle_BD.cos_() * math.sqrt(2 / len(self.phase_D))
