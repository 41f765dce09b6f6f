"""From a sample to all that the learner of preset `default` works with; fitted once, then frozen.

Images: features from patches. Series: from patches and, for what patches lose (level, slow trends),
random Fourier features of the compact view. Vectors: random Fourier features and the view. Ours.
Dimension key: B batch, F features, O own features, S smooth features, R renditions, N tokens, E
token width, V view.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Generator, Tensor

from learner.adaptive_config import AdaptiveConfig
from learner.reservoir import ReplayBuffer
from learner.tokenizer import TOKEN_STEP, Grids, Tokenizer, fitted
from learner.view import FourierFeatures, View

KERNEL_WIDTH, SMOOTH_WIDTH = 0.9, 1.6
"""Of the Gaussian kernels, in typical distances between samples: of own read-outs, and of read-outs
that forget, which have few samples and need smooth functions."""
SMOOTH = 100
"""Fourier features of read-outs that forget."""
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
    smooth_BS: Tensor
    """Of read-outs that forget: Fourier features of a wide kernel, float32."""


@dataclass(frozen=True, slots=True)
class Encoder:
    """Tokenizer, compact view and Fourier features of one kind of input; frozen."""

    input_shape: tuple[int, ...]
    patches: Tokenizer | None
    view: View
    fourier: FourierFeatures
    smooth: FourierFeatures

    @classmethod
    def fitted(cls, x: Tensor, config: AdaptiveConfig, generator: Generator) -> Self:
        """Return the encoder fitted on samples [n, ...], without labels."""
        shape, most = config.input_shape, config.features
        view = View.fitted(x)
        fourier = FourierFeatures.drawn(
            view.values, config.own_features, generator, width=KERNEL_WIDTH
        )
        smooth = FourierFeatures.drawn(view.values, SMOOTH, generator, width=SMOOTH_WIDTH)
        patches = None
        if len(shape) > 1:
            room = most - most // _SERIES_SHARE if len(shape) == 2 else most
            patches = fitted(x, room, generator, tokens=config.budget > 0)
        return cls(shape, patches, view, fourier, smooth)

    def __call__(self, x: Tensor, grids: Grids | None = None) -> Encoded:
        """Return what samples [B, ...] become.

        Args:
            x: the samples.
            grids: what `patches` made of them before; None: it is asked.
        """
        view_BV = self.view(x)
        own_BO, smooth_BS = self.fourier(view_BV), self.smooth(view_BV)
        if self.patches is None:
            tokens = (view_BV / TOKEN_STEP).round().clamp(-127, 127).to(torch.int8)
            features = torch.cat([own_BO, view_BV / self.view.values**0.5], 1)
            return Encoded(features, own_BO, tokens[:, None, None], view_BV, smooth_BS)
        grids = grids or self.patches(x)
        features = torch.cat([grids.features_BF, own_BO[:, : self._fourier_share]], 1)
        return Encoded(features, own_BO, grids.tokens_BRNE, view_BV, smooth_BS)

    def replayed(self, replay: ReplayBuffer, slots: Tensor) -> Tensor:
        """Return the tokens of members, int8 [B, R, N, E]; made again where a restart lost them."""
        tokens, ready = replay.columns["tokens"], replay.columns["ready"]
        missing = slots[~ready[slots]]
        if len(missing):
            tokens[missing] = self._tokens(replay.x[missing])
            ready[missing] = True
        return tokens[slots]

    def _tokens(self, x: Tensor) -> Tensor:
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
        for name, kernel in (("fourier", self.fourier), ("smooth", self.smooth)):
            named |= {f"{name}.weight": kernel.weight_VD, f"{name}.phase": kernel.phase_D}
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
            """Return the tensors whose names begin with the prefix, without it."""
            return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}

        patches = Tokenizer.restored(under("patches."), **values) if values else None
        fourier, smooth = (
            FourierFeatures(tensors[f"{name}.weight"], tensors[f"{name}.phase"])
            for name in ("fourier", "smooth")
        )
        return cls(shape, patches, View.restored(under("view.")), fourier, smooth)
