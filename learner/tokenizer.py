"""The data-fitted tokenizer: images and series to tokens and features, fitted once without labels.

Coates & Ng 2011 ("An analysis of single-layer networks"): patches are compared with K unit-norm
directions of a dictionary, whitened (ZCA); see `responses`. The answers are averaged on a grid. A
2 x 2 grid, under a square root, makes the features phi of the analytic memory; a finer one, on its
principal axes, the tokens of the experts. Ours: the square root, the grids, and mirroring where the
data do not tell an image from its mirror image.
A series [T, C] is an image of width one.
Dimension key: B batch, C channels, H height, W width, P patch side, K filters, G grid side, N
tokens, R renditions of a sample (2 where mirrored, else 1), E width of a token, F features.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from learner.responses import Patches, contrast, extent, sides
from learner.scaler import unit
from learner.view import tamed

TOKEN_STEP = 1 / 24
"""Size of one step of a token's int8 values; a token has unit variance, so it reaches 5.3."""
_WHITENING = 0.1  # added to the eigenvalues before whitening
_PATCHES, _PATCH_VALUES = 40_000, 2**23  # patches that are looked at, and values in all of them
_MOST_VALUES = 512  # of a patch of a series
_ROUNDS = 8  # of k-means
_FILTERS_PER_VALUE = 12  # most filters for each value of a patch
_WIDEST = 128  # most values of a token
_COLOUR_SIDE, _GREY_SIDE, _TOKEN_STEPS = 6, 4, 16  # grid of tokens; a step costs what it covers
_ASYMMETRIC = 0.62  # share of images told from their mirror image above which none is mirrored
_TOGETHER = 32  # samples whose contrast is found at a time


class Grids(NamedTuple):
    """What a mini-batch becomes."""

    features_BF: Tensor
    """float32, >= 0."""
    tokens_BRNE: Tensor
    """int8, in units of TOKEN_STEP."""


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """A frozen map from samples to features and tokens (Coates & Ng 2011); see the head."""

    kernel: Tensor
    """[K, C, P, P'], P' = P for images and 1 for series."""
    offset_K: Tensor
    mean_C: Tensor
    """Of each channel; zeros for images."""
    scale_C: Tensor
    """One over each channel's deviation; ones for images."""
    token_mean: Tensor
    """Mean of a grid cell's 2K values."""
    token_axes: Tensor
    """Principal axes of a grid cell, scaled to unit variance, [2K, E]; E = 0: no tokens made."""
    mirror: bool
    grid: int
    """Cells along each side of the feature grid (along time for a series)."""

    def __call__(self, x: Tensor) -> Grids:
        """Return features and tokens of samples [B, C, H, W] or [B, T, C].

        One sample at a time: its responses stay in the cache, which is as fast as a batch, and its
        bits do not depend on its neighbours, so that tokens made again are the same tokens.
        """
        parts = [
            self._grids(sample)
            for few in self.scaled(x).split(_TOGETHER)
            for sample in self._renditions(few).split(2 if self.mirror else 1)
        ]
        return Grids(*(torch.cat(group) for group in zip(*parts, strict=True)))

    @property
    def features(self) -> int:
        """F, values in a sample's features."""
        return 2 * len(self.kernel) * (self.grid if self.kernel.shape[3] == 1 else self.grid**2)

    def token_grid(self, input_shape: tuple[int, ...]) -> tuple[int, int]:
        """Return how the N tokens of samples of this shape lie: rows and columns."""
        extents = (input_shape[0], 1) if len(input_shape) == 2 else input_shape[1:]
        patch = self.kernel.shape[2:]
        rows, columns = (extent(s, p) for s, p in zip(extents, patch, strict=True))
        return min(self._finest, rows), min(self._finest, columns)

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors of the state by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.type is Tensor}

    @classmethod
    def restored(cls, tensors: Mapping[str, Tensor], *, mirror: bool, grid: int) -> Self:
        """Return the tokenizer whose `tensors` these are; KeyError if one is missing."""
        own = {f.name: tensors[f.name] for f in fields(cls) if f.type is Tensor}
        kernel = own.pop("kernel").contiguous(memory_format=torch.channels_last)  # as when fitted
        return cls(kernel, **own, mirror=mirror, grid=grid)

    def scaled(self, x: Tensor) -> Tensor:
        """Return samples as `responses` takes them, float32 [B, C, H, W]."""
        if x.dim() == 4:
            return unit(x)
        return ((x - self.mean_C) * self.scale_C).clamp(-10, 10).transpose(1, 2).unsqueeze(3)

    def _renditions(self, x_BCHW: Tensor) -> Patches:
        """Return scaled samples, each followed by its mirror image where that is asked for."""
        if self.mirror:
            x_BCHW = torch.stack([x_BCHW, x_BCHW.flip(3)], 1).flatten(0, 1)
        return Patches.of(x_BCHW, self.kernel.shape[2:])

    def _grids(self, sample: Patches) -> Grids:
        coarse, fine = sides(sample.gain_B1HW, self.grid), self._token_grid(sample)
        wanted = [coarse, fine] if self.token_axes.shape[1] else [coarse]
        means, *cells = sample.means(self.kernel, self.offset_K, wanted)
        features = means.mean(0, keepdim=True).flatten(1).sqrt_()
        if not cells:
            nothing = means.new_empty((1, len(means), math.prod(fine), 0), dtype=torch.int8)
            return Grids(features, nothing)
        cells_RNV = cells[0].flatten(2).transpose(1, 2)
        tokens = ((cells_RNV - self.token_mean) @ self.token_axes / TOKEN_STEP).round_()
        return Grids(features, tokens.clamp_(-127, 127).to(torch.int8).unsqueeze(0))

    def responses(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Return how far each patch exceeds the threshold on either side, [B, K, H', W'] each."""
        return Patches.of(x_BCHW, self.kernel.shape[2:]).responses(self.kernel, self.offset_K)

    def cells(self, x_1CHW: Tensor) -> Tensor:
        """Return the raw values of a sample's tokens, before the principal axes, [N, 2K]."""
        sample = Patches.of(x_1CHW, self.kernel.shape[2:])
        (cells,) = sample.means(self.kernel, self.offset_K, [self._token_grid(sample)])
        return cells.flatten(2).squeeze(0).T

    def _token_grid(self, sample: Patches) -> tuple[int, int]:
        return sides(sample.gain_B1HW, self._finest)

    @property
    def _finest(self) -> int:
        if self.kernel.shape[3] == 1:
            return _TOKEN_STEPS
        return _GREY_SIDE if self.kernel.shape[1] == 1 else _COLOUR_SIDE


def fitted(
    x: Tensor, most_features: int, generator: Generator, *, tokens: bool = True
) -> Tokenizer:
    """Return a tokenizer fitted on samples [n, C, H, W] or [n, T, C], without labels.

    Args:
        x: the samples, a few hundred, of one class or of many.
        most_features: bound on F.
        generator: chooses patches and first directions.
        tokens: whether anybody wants tokens; without, features alone are made, in less time.
    """
    series = x.dim() == 3
    mean_C, scale_C = _moments(x) if series else (torch.zeros(x.shape[1]), torch.ones(x.shape[1]))
    x_BCHW = ((x - mean_C) * scale_C).transpose(1, 2).unsqueeze(3) if series else unit(x)
    shorter = x.shape[1] if series else min(x.shape[2:])
    side = _patch_side(shorter, x.shape[2]) if series else min(6, max(3, shorter // 3), shorter)
    shape = (x_BCHW.shape[1], side, 1 if series else side)
    values = shape[0] * shape[1] * shape[2]
    grid, filters = _sizes(most_features, values, extent(shorter, side), series=series)
    kernel, offset_K = _dictionary(x_BCHW, shape, filters, generator)
    half = Tokenizer(
        *(kernel, offset_K, mean_C, scale_C),
        *(torch.zeros(2 * len(kernel)), torch.zeros(2 * len(kernel), 0)),
        mirror=not series and not _handed(x_BCHW, kernel, offset_K),
        grid=grid,
    )
    if not tokens:
        return half
    cells = torch.cat([half.cells(x_1CHW) for x_1CHW in x_BCHW.split(1)])
    mean, axes = _principal_axes(cells)
    return replace(half, token_mean=mean, token_axes=axes)


def _patch_side(steps: int, channels: int) -> int:
    return max(1, min(16, steps // 3, _MOST_VALUES // channels))


def _sizes(most_features: int, values: int, places: int, *, series: bool) -> tuple[int, int]:
    """Return grid side and filters that fit: as many filters as are useful, then a finer grid.

    Args:
        most_features: bound on the features.
        values: of a patch.
        places: of a patch along the shorter side, the finest grid there is.
        series: whether samples are series.
    """
    most_filters = _FILTERS_PER_VALUE * values
    grid = min(places, 4 if series else 2)
    cells = grid if series else grid**2
    while (
        not series and grid < min(places, 4) and 2 * most_filters * (grid + 1) ** 2 <= most_features
    ):
        grid += 1
        cells = grid**2
    return grid, max(1, min(most_filters, most_features // (2 * cells)))


def _moments(x_BTC: Tensor) -> tuple[Tensor, Tensor]:
    deviation_C, mean_C = torch.std_mean(tamed(x_BTC.flatten(0, 1)), dim=0)
    return mean_C, 1 / torch.where(deviation_C > 0, deviation_C, 1.0)


def _dictionary(
    x_BCHW: Tensor, shape: tuple[int, ...], filters: int, generator: Generator
) -> tuple[Tensor, Tensor]:
    """Return kernel and offset: spherical k-means on whitened patches (Coates & Ng 2012)."""
    patches_NV = _patches(x_BCHW, shape, generator)
    variance_N1, mean_N1 = torch.var_mean(patches_NV, dim=1, correction=0, keepdim=True)
    patches_NV = (patches_NV - mean_N1) / (variance_N1 + contrast(series=shape[2] == 1)).sqrt()
    mean_V = patches_NV.mean(0)
    centred_NV = patches_NV - mean_V
    values_V, vectors_VV = torch.linalg.eigh(centred_NV.T @ centred_NV / len(centred_NV))
    whitening_VV = vectors_VV * (values_V.clamp_min(0) + _WHITENING).rsqrt() @ vectors_VV.T
    directions_KV = _directions(F.normalize(centred_NV @ whitening_VV), filters, generator)
    kernel_KV = directions_KV @ whitening_VV
    offset_K = kernel_KV @ mean_V
    kernel_KV = kernel_KV - kernel_KV.mean(1, keepdim=True)
    kernel = kernel_KV.reshape(-1, *shape).contiguous(memory_format=torch.channels_last)
    return kernel, offset_K


def _patches(x_BCHW: Tensor, shape: tuple[int, ...], generator: Generator) -> Tensor:
    """Return randomly placed patches, [n, C * P * P']."""
    n = min(_PATCHES, _PATCH_VALUES // math.prod(shape))
    sample_N = torch.randint(len(x_BCHW), (n,), generator=generator)
    high_H, high_W = (
        side - patch + 1 for side, patch in zip(x_BCHW.shape[2:], shape[1:], strict=True)
    )
    row_N = torch.randint(high_H, (n,), generator=generator)
    column_N = torch.randint(high_W, (n,), generator=generator)
    windows = x_BCHW.unfold(2, shape[1], 1).unfold(3, shape[2], 1)
    return windows[sample_N, :, row_N, column_N].reshape(n, -1)


def _directions(points_NV: Tensor, filters: int, generator: Generator) -> Tensor:
    """Return unit-norm centres of points on the sphere; a point and its opposite are one."""
    centres_KV = points_NV[torch.randperm(len(points_NV), generator=generator)[:filters]]
    for _ in range(_ROUNDS):
        likeness_NK = points_NV @ centres_KV.T
        nearest_N = likeness_NK.abs().argmax(1)
        sign_N1 = likeness_NK.gather(1, nearest_N[:, None]).sign()
        sums_KV = torch.zeros_like(centres_KV).index_add_(0, nearest_N, points_NV * sign_N1)
        centres_KV = torch.where(
            sums_KV.norm(dim=1, keepdim=True) > 0, F.normalize(sums_KV), centres_KV
        )
    return centres_KV


def _handed(x_BCHW: Tensor, kernel: Tensor, offset_K: Tensor) -> bool:
    """Return whether images can be told from their mirror images, so that mirroring would lose.

    If an image were as likely as its mirror image, phi(x) - phi(mirrored x) would be symmetric
    around zero. A direction from one half of the samples is tried on the other. Ours.
    """
    few = kernel[:64], offset_K[:64], [(2, 2)]

    def quarters(x: Tensor) -> Tensor:
        return Patches.of(x, kernel.shape[2:]).means(*few)[0].flatten(1)

    odd = torch.cat([quarters(x) - quarters(x.flip(3)) for x in x_BCHW.split(1)])
    first, second = odd[::2], odd[1::2]
    direction = first.mean(0) / (first.square().mean(0) + 1e-8)
    return bool(((second @ direction) > 0).float().mean() > _ASYMMETRIC)


def _principal_axes(cells: Tensor) -> tuple[Tensor, Tensor]:
    mean = cells.mean(0)
    values, vectors = torch.linalg.eigh((cells - mean).T @ (cells - mean) / len(cells))
    width = min(_WIDEST, len(mean))
    values, vectors = values[-width:].flip(0), vectors[:, -width:].flip(1)
    scale = (values.clamp_min(0) + 1e-6 * values[0].clamp_min(1e-12)).sqrt()
    return mean, (vectors / scale).contiguous()  # the bits of a product depend on the layout
