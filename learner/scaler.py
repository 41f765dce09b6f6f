"""Samples scaled to the models: images to [0, 1], vectors standardised. Ours.

A vector's mean and deviation per value are running moments (Welford 1962, merged by batch as in
Chan et al. 1979). They move while the first expert learns and stand still from the first expansion
on, like the backbone, so that what frozen experts saw keeps its meaning.
Dimension key: B batch, V values in a sample.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

_FAR = 10.0  # standard deviations; a wild sensor value counts as this far and no farther


def unit(x: Tensor) -> Tensor:
    """Return samples as float32: uint8 scaled to [0, 1], float32 as they are."""
    return x.float().div_(255) if x.dtype == torch.uint8 else x


@dataclass(frozen=True, slots=True)
class Scaler:
    """Running standardisation of vectors; images only become float32 in [0, 1]. Ours."""

    count: int
    """Vectors seen; stays 0 for images."""
    mean_V: Tensor
    """float64."""
    square_V: Tensor
    """Sum of squared deviations from the mean, float64."""

    @classmethod
    def fresh(cls, input_shape: tuple[int, ...], device: torch.device) -> Self:
        """Return a scaler that has seen nothing."""
        values = input_shape[0] if len(input_shape) == 1 else 0
        zero_V = torch.zeros(values, dtype=torch.float64, device=device)
        return cls(0, zero_V, zero_V.clone())

    def learned(self, x: Tensor) -> Self:
        """Return the scaler that has also seen this mini-batch."""
        if not len(self.mean_V):
            return self
        x_BV = x.double()
        n, mean_V = len(x_BV), x_BV.mean(0)
        total, delta_V = self.count + n, mean_V - self.mean_V
        between_V = delta_V.square() * (self.count * n / total)
        return type(self)(
            total,
            self.mean_V + delta_V * (n / total),
            self.square_V + (x_BV - mean_V).square().sum(0) + between_V,
        )

    def __call__(self, x: Tensor) -> Tensor:
        """Return the samples as float32, scaled; a value that never varied is only centred."""
        if not len(self.mean_V):
            return unit(x)
        return ((x - self.mean_V) / self._deviation()).clamp(-_FAR, _FAR).float()

    def undone(self, scaled_BV: Tensor) -> Tensor:
        """Return the vectors that were scaled to these, float32."""
        return (scaled_BV * self._deviation() + self.mean_V).float()

    def _deviation(self) -> Tensor:
        deviation_V = (self.square_V / max(1, self.count)).sqrt()
        return torch.where(deviation_V > 0, deviation_V, 1.0)
