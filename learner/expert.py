"""One expert: attention module, fusion, MLP, growing classifier and VAE (LEViT, Ye & Bors 2026).

Networks are made on the meta device, without values, and filled from the learner's own generator
(`initialised`) or from a saved state: nothing here draws from a global generator.
Dimension key: B batch, J frozen experts before this one, D width, K classes it has seen, Z latent
size.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from learner.config import LearnerConfig
from learner.fusion import Fusion
from learner.vae import VAE
from learner.vit import PatchBackbone, feature_module

N = TypeVar("N", bound=nn.Module)


class Head(nn.Module):
    """A linear classifier that gains a column with each new class; ours, for an open label set."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.weight_KD = nn.Parameter(torch.empty(classes, width))
        self.bias_K = nn.Parameter(torch.empty(classes))

    def forward(self, x_BD: Tensor) -> Tensor:
        """Return one score per class seen, [B, K]."""
        return F.linear(x_BD, self.weight_KD, self.bias_K)


class Expert(nn.Module):
    """An expert as in LEViT; its classifier knows only the classes it has been shown."""

    known_mean_Z: Tensor
    known_deviation_Z: Tensor

    def __init__(self, config: LearnerConfig, *, classes: int, frozen_before: int) -> None:
        """Make the modules.

        Args:
            config: the learner's configuration.
            classes: columns of the classifier, >= 0.
            frozen_before: frozen experts that stand before this one, J >= 0.
        """
        super().__init__()
        network = config.network
        self.features = feature_module(network)
        self.fusion = Fusion(network.fusion if frozen_before else "none", network.width)
        widths = (network.width, *network.mlp)
        layers = [(nn.Linear(a, b), nn.GELU()) for a, b in pairwise(widths)]
        self.mlp = nn.Sequential(*(part for layer in layers for part in layer))
        self.head = Head(widths[-1], classes)
        self.vae = VAE(config.input_shape, config.vae)
        # What its encoder makes of the memory it was frozen with; zeros while active.
        self.register_buffer("known_mean_Z", torch.zeros(config.vae.latent))
        self.register_buffer("known_deviation_Z", torch.zeros(config.vae.latent))

    def forget_memory(self) -> None:
        """Zero what the encoder made of a memory, as it is while an expert is active."""
        self.known_mean_Z.zero_()
        self.known_deviation_Z.zero_()

    def logits(self, own_BD: Tensor, frozen_BJD: Tensor) -> Tensor:
        """Return the scores of the classes this expert has seen, [B, K].

        Args:
            own_BD: this expert's own features, A_k(T).
            frozen_BJD: the features A_j(T) of the J experts before it.
        """
        logits_BK: Tensor = self.head(self.mlp(self.fusion(own_BD, frozen_BJD)))
        return logits_BK


def hollow(make: Callable[[], N]) -> N:
    """Return the network that `make` makes, its parameters without values (meta device)."""
    with torch.device("meta"):
        return make()


@torch.no_grad()
def initialised(make: Callable[[], N], generator: Generator) -> N:
    """Return the network that `make` makes, on the CPU, filled from `generator` in fixed order.

    Weights: uniform within 1 / sqrt(fan-in), PyTorch's own default; biases, gates and buffers zero;
    position embeddings normal with deviation 0.02 (Dosovitskiy et al. 2021).
    """
    network = hollow(make).to_empty(device="cpu")
    for part in network.modules():
        own = [*part.parameters(recurse=False), *part.buffers(recurse=False)]
        for tensor in own:
            if isinstance(part, nn.LayerNorm):
                tensor.fill_(1.0 if tensor is part.weight else 0.0)
            elif isinstance(part, PatchBackbone):
                tensor.normal_(0.0, 0.02, generator=generator)
            elif tensor.dim() >= 2:
                fill_weight_(tensor, generator)
            else:
                tensor.zero_()
    return network


@torch.no_grad()
def fill_weight_(weight: Tensor, generator: Generator) -> None:
    """Fill a matrix or kernel, uniform within 1 / sqrt(values of one row), PyTorch's fan-in."""
    bound = 1.0 / math.sqrt(math.prod(weight.shape[1:]))
    weight.uniform_(-bound, bound, generator=generator)
