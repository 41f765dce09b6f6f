"""How the patches of samples answer to filters, and the means of that over the cells of a grid.

Coates & Ng 2011: a patch is contrast-normalised, whitened and compared with K directions; the
answers r pass a two-sided soft threshold [relu(r - a), relu(-r - a)]. All of it is one convolution
with the kernel (dictionary x whitening, row means removed), divided by a box filter's deviation;
patches are never materialised. A series is an image of width one.
Dimension key: B batch, C channels, H height, W width, P patch side, K filters.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

THRESHOLD = 0.25  # a, of the soft threshold (Coates & Ng 2011)
_CONTRAST = 10 / 255**2  # added to an image patch's variance (Coates & Ng 2011: 10 on 0 to 255)
_SERIES_CONTRAST = 0.1  # the same for standardised series; ours
_STRIDE_ABOVE = 64  # pixels


@dataclass(frozen=True, slots=True)
class Patches:
    """Samples whose patches are about to be compared with filters. Ours."""

    x_BCHW: Tensor
    """float32, filters last: answers laid out so pool several times as fast."""
    gain_B1HW: Tensor
    """One over the deviation of each patch, [B, 1, H', W']."""
    stride: tuple[int, int]

    @classmethod
    def of(cls, x_BCHW: Tensor, patch: tuple[int, ...]) -> Self:
        """Return samples [B, C, H, W] with the contrast of their patches of sides `patch`."""
        steps = (stride(x_BCHW.shape[2]), stride(x_BCHW.shape[3]))
        moments = torch.cat([y.mean(1, keepdim=True) for y in (x_BCHW, x_BCHW.square())], 1)
        mean, square = F.avg_pool2d(moments, patch, steps).split(1, 1)
        variance = (square - mean.square()).clamp_min_(0)
        gain = (variance + contrast(series=patch[1] == 1)).rsqrt_()
        # `contiguous` would keep the strides of one channel, and the answers' layout with them.
        last = torch.empty_like(x_BCHW, memory_format=torch.channels_last).copy_(x_BCHW)
        return cls(last, gain, steps)

    def split(self, samples: int) -> list["Patches"]:
        """Return these in order, so many samples each."""
        both = zip(self.x_BCHW.split(samples), self.gain_B1HW.split(samples), strict=True)
        return [Patches(x, gain, self.stride) for x, gain in both]

    def responses(self, kernel: Tensor, offset_K: Tensor) -> tuple[Tensor, Tensor]:
        """Return how far each patch exceeds the threshold on either side, [B, K, H', W'] each.

        Args:
            kernel: [K, C, P, P'], channels last, P' = P for images and 1 for series.
            offset_K: taken from the answers.
        """
        raw = F.conv2d(self.x_BCHW, kernel, stride=self.stride)
        offset = offset_K[:, None, None]
        above = torch.addcmul(-offset - THRESHOLD, raw, self.gain_B1HW).relu_()
        below = torch.addcmul(offset - THRESHOLD, raw, self.gain_B1HW, value=-1, out=raw).relu_()
        return above, below

    def means(
        self, kernel: Tensor, offset_K: Tensor, grids: Sequence[tuple[int, int]]
    ) -> list[Tensor]:
        """Return for each grid the mean responses of its cells, either side, [B, 2K, *grid]."""
        halves = self.responses(kernel, offset_K)
        return [torch.cat([pooled(half, grid) for half in halves], 1) for grid in grids]


def stride(side: int) -> int:
    """Return the step between patches along a side of so many pixels."""
    return 2 if side > _STRIDE_ABOVE else 1


def extent(side: int, patch: int) -> int:
    """Return how many patches lie along a side."""
    return (side - patch) // stride(side) + 1


def contrast(*, series: bool) -> float:
    """Return what is added to the variance of a patch."""
    return _SERIES_CONTRAST if series else _CONTRAST


def pooled(r_BKHW: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return the mean of each cell of a grid, [B, K, *grid]."""
    return F.adaptive_avg_pool2d(r_BKHW, grid)


def sides(r_BKHW: Tensor, most: int) -> tuple[int, int]:
    """Return the sides of a grid of at most so many cells each way."""
    return min(most, r_BKHW.shape[2]), min(most, r_BKHW.shape[3])
