"""Samples that the density model of an expert makes up, to be looked at. Ours.

Drawn is the mean of p(x|z) of the expert's VAE at z from the prior. In preset `default` the VAE
knows the compact view alone, so that images are drawn as small as that, and vectors and series
larger than the view not at all.
Dimension key: n samples, C channels, H height, W width, V values of the view, Z latent size.
"""

import math

import torch
from torch import Tensor, nn

from learner.adaptive_mixture import AdaptiveMixture
from learner.mixture import Mixture
from learner.vae import VAE
from learner.view import WIDEST, image_grid


@torch.no_grad()
def drawn(mixture: Mixture | AdaptiveMixture, expert: int, n: int) -> Tensor:
    """Return n samples of an expert, always the same ones of the same expert.

    Images [n, C, H, W] in [0, 1], vectors [n, D] and series [n, T, C] as they are observed; none,
    n = 0, where the expert has no density model that can draw.

    Args:
        mixture: of either preset.
        expert: id of one of its experts.
        n: how many, >= 1.
    """
    if isinstance(mixture, Mixture):
        return _of_paper(mixture, expert, n).cpu()
    return _of_default(mixture, expert, n).cpu()


def _of_paper(mixture: Mixture, expert: int, n: int) -> Tensor:
    ids = [life.id for life in mixture.lives]
    x_nV = _means(mixture.ordered[ids.index(expert)].vae, expert, n)
    shape = mixture.config.input_shape
    if len(shape) == 1:
        return mixture.scaler.undone(x_nV)
    return x_nV.clamp(0, 1).reshape(n, *shape)


def _of_default(mixture: AdaptiveMixture, expert: int, n: int) -> Tensor:
    encoder, shape = mixture.encoder, mixture.config.input_shape
    image = len(shape) == 3
    if encoder is None or mixture.config.budget == 0:
        return torch.empty(0)
    if math.prod(shape) > WIDEST and not image:
        return torch.empty(0)
    vae = next(e.vae for e in mixture.experts if e.life.id == expert)
    x_nV = _means(vae, expert, n) / encoder.view.scale_V + encoder.view.mean_V
    if image:
        shape = (shape[0], *image_grid(shape))
        return x_nV.clamp(0, 1).reshape(n, *shape)
    return x_nV if len(shape) == 1 else x_nV.reshape(n, *shape[::-1]).transpose(1, 2)


def _means(vae: VAE, seed: int, n: int) -> Tensor:
    """Return the means of p(x|z), [n, V], z from the prior."""
    layers = [part for part in vae.decoder if isinstance(part, nn.Linear)]
    z_nZ = torch.randn(n, layers[0].in_features, generator=torch.Generator().manual_seed(seed))
    decoded: Tensor = vae.decoder(z_nZ.to(layers[0].weight.device)).flatten(1)
    return decoded.sigmoid() if vae.likelihood == "bernoulli" else decoded
