"""From a sample to all that the learner of preset `default` works with; fitted once, then frozen.

Images: features from patches. Series: from patches and, for what patches lose (level, slow trends),
random Fourier features of the compact view. Vectors: random Fourier features and the view. Ours.
Dimension key: B batch, F features, O own features, R renditions, N tokens, E token width, V view.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Generator, Tensor

from learner.adaptive_config import AdaptiveConfig
from learner.tokenizer import TOKEN_STEP, Tokenizer, fitted
from learner.view import FourierFeatures, View

KERNEL_WIDTH = 0.9  # of the Gaussian kernel, in typical distances between samples
_SERIES_SHARE = 4  # of a series' features, one in so many is a Fourier feature


@dataclass(frozen=True, slots=True)
class Encoded:
    """A mini-batch as read-outs, networks and density models see it."""

    features_BF: Tensor
    """Of the analytic memory, float32."""
    own_BO: Tensor
    """Of experts' own read-outs: random Fourier features of the view, float32."""
    tokens_BRNE: Tensor
    """int8, in units of TOKEN_STEP."""
    view_BV: Tensor
    """Standardised, float32."""

    def __getitem__(self, rows: Tensor) -> Self:
        """Return the chosen samples."""
        return type(self)(
            self.features_BF[rows], self.own_BO[rows], self.tokens_BRNE[rows], self.view_BV[rows]
        )


@dataclass(frozen=True, slots=True)
class Encoder:
    """Tokenizer, compact view and Fourier features of one kind of input; frozen."""

    input_shape: tuple[int, ...]
    patches: Tokenizer | None
    view: View
    fourier: FourierFeatures

    @classmethod
    def fitted(cls, x: Tensor, config: AdaptiveConfig, generator: Generator) -> Self:
        """Return the encoder fitted on samples [n, ...], without labels."""
        shape, most = config.input_shape, config.features
        view = View.fitted(x)
        fourier = FourierFeatures.drawn(
            view.values, config.own_features, generator, width=KERNEL_WIDTH
        )
        patches = None
        if len(shape) > 1:
            room = most - most // _SERIES_SHARE if len(shape) == 2 else most
            patches = fitted(x, room, generator)
        return cls(shape, patches, view, fourier)

    def __call__(self, x: Tensor) -> Encoded:
        """Return what samples [B, ...] become."""
        view_BV = self.view(x)
        own_BO = self.fourier(view_BV)
        if self.patches is None:
            tokens = (view_BV / TOKEN_STEP).round().clamp(-127, 127).to(torch.int8)
            features = torch.cat([own_BO, view_BV / self.view.values**0.5], 1)
            return Encoded(features, own_BO, tokens[:, None, None], view_BV)
        grids = self.patches(x)
        features = torch.cat([grids.features_BF, own_BO[:, : self._fourier_share]], 1)
        return Encoded(features, own_BO, grids.tokens_BRNE, view_BV)

    def tokens(self, x: Tensor) -> Tensor:
        """Return the tokens of samples alone, int8 [B, R, N, E]; the bits that a call gives."""
        return self(x).tokens_BRNE if self.patches is None else self.patches(x).tokens_BRNE

    @property
    def _fourier_share(self) -> int:
        if self.patches is None or len(self.input_shape) == 3:
            return 0
        features = int(self.patches.features)
        return min(len(self.fourier.phase_D), features // (_SERIES_SHARE - 1))

    @property
    def features(self) -> int:
        """F."""
        if self.patches is None:
            return len(self.fourier.phase_D) + self.view.values
        return self.patches.features + self._fourier_share

    @property
    def own_features(self) -> int:
        """O."""
        return len(self.fourier.phase_D)

    @property
    def token_shape(self) -> tuple[int, int, int]:
        """(R, N, E)."""
        if self.patches is None:
            return 1, 1, self.view.values
        rows, columns = self.token_grid
        return (2 if self.patches.mirror else 1), rows * columns, self.patches.token_axes.shape[1]

    @property
    def token_grid(self) -> tuple[int, int]:
        """How the N tokens lie, rows and columns."""
        return (1, 1) if self.patches is None else self.patches.token_grid(self.input_shape)

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors of the state by name."""
        named = {f"view.{name}": t for name, t in self.view.tensors().items()}
        named |= {"fourier.weight": self.fourier.weight_VD, "fourier.phase": self.fourier.phase_D}
        if self.patches is not None:
            named |= {f"patches.{name}": t for name, t in self.patches.tensors().items()}
        return named

    def values(self) -> dict[str, Any]:
        """Return the rest of the state."""
        if self.patches is None:
            return {}
        return {"mirror": self.patches.mirror, "grid": self.patches.grid}

    @classmethod
    def restored(
        cls, shape: tuple[int, ...], tensors: Mapping[str, Tensor], values: Mapping[str, Any]
    ) -> Self:
        """Return the encoder that the state was taken from; KeyError if something is missing."""

        def under(prefix: str) -> dict[str, Tensor]:
            return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}

        patches = Tokenizer.restored(under("patches."), **values) if values else None
        fourier = FourierFeatures(tensors["fourier.weight"], tensors["fourier.phase"])
        return cls(shape, patches, View.restored(under("view.")), fourier)
