"""The density model of one expert: a variational auto-encoder (Kingma & Welling 2013).

Sizes follow LEViT (Ye & Bors 2026): dense 200-200 with latent 50 on MNIST, 3x3 convolutions
64-128-256-512 and a 1,024 layer with latent 200 on CIFAR, decoder mirrored. Other image sizes
(ours): the convolutions halve the grid until it is at most 2 x 2, which gives the paper's four on
32 x 32.
Dimension key: B batch, C channels, H height, W width, V values in a sample, Z latent size.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from learner.config import Likelihood, VAEConfig

SIGMA = 0.1  # of the Gaussian likelihood for colour images in [0, 1]
_WIDEST = 512


class VAE(nn.Module):
    """Encoder q(z|x) and decoder p(x|z) of one expert (Kingma & Welling 2013)."""

    def __init__(self, input_shape: tuple[int, ...], config: VAEConfig) -> None:
        super().__init__()
        self.likelihood = config.likelihood
        self.input_shape = input_shape
        if config.kind == "dense":
            self.encoder, self.decoder = _dense(input_shape, config)
        else:
            self.encoder, self.decoder = _convolutional(input_shape, config)

    @torch.no_grad()
    def light_decoder_(self) -> None:
        """Set the decoder's hidden biases to one; part of a fresh expert's initialisation, ours.

        Scores are taken at the posterior mean, which is near zero until the encoder has learned
        something, while training shows the decoder z of norm sqrt(Z). With zero biases a young
        decoder lives on that norm, is dark at the mean, and its score says nothing: digits routed
        by it were 22 % right, with lit biases 93 %.
        """
        layers = [part for part in self.decoder if isinstance(part, nn.Linear | nn.ConvTranspose2d)]
        for layer in layers[:-1]:
            if layer.bias is not None:
                layer.bias.fill_(1.0)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log variance of q(z|x), each [B, Z], for samples scaled to the model."""
        mean_BZ, log_variance_BZ = self.encoder(x).chunk(2, dim=1)
        return mean_BZ, log_variance_BZ.clamp(-10.0, 10.0)  # keeps exp finite on wild inputs

    def elbo(self, x: Tensor, noise_BZ: Tensor) -> Tensor:
        """Return the ELBO of each sample at z = mean + noise * deviation, nats, [B].

        Args:
            x: samples [B, ...] scaled to the model.
            noise_BZ: standard normal draws, one per latent value (eq. 10 with one sample).
        """
        mean_BZ, log_variance_BZ = self.encode(x)
        z_BZ = mean_BZ + noise_BZ * (0.5 * log_variance_BZ).exp()
        return self._elbo(x, z_BZ, mean_BZ, log_variance_BZ)

    def score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the ELBO at the posterior mean, nats, [B], and that mean, [B, Z]; no sampling."""
        mean_BZ, log_variance_BZ = self.encode(x)
        return self._elbo(x, mean_BZ, mean_BZ, log_variance_BZ), mean_BZ

    def _elbo(self, x: Tensor, z_BZ: Tensor, mean_BZ: Tensor, log_variance_BZ: Tensor) -> Tensor:
        reconstruction_B = log_likelihood(
            self.decoder(z_BZ).flatten(1), x.flatten(1), self.likelihood
        )
        kl_B = 0.5 * (mean_BZ.square() + log_variance_BZ.exp() - 1 - log_variance_BZ).sum(1)
        return reconstruction_B - kl_B


def log_likelihood(decoded_BV: Tensor, x_BV: Tensor, kind: Likelihood) -> Tensor:
    """Return log p(x|z) of each sample, nats, [B].

    `decoded_BV` are logits for `bernoulli` and means for the Gaussians; the Bernoulli of values
    between 0 and 1 is the usual cross-entropy form.
    """
    if kind == "bernoulli":
        return -F.binary_cross_entropy_with_logits(decoded_BV, x_BV, reduction="none").sum(1)
    sigma = SIGMA if kind == "gaussian" else 1.0
    constant = x_BV.shape[1] * (math.log(sigma) + 0.5 * math.log(2 * math.pi))
    return -0.5 * ((decoded_BV - x_BV) / sigma).square().sum(1) - constant


def _dense(input_shape: tuple[int, ...], config: VAEConfig) -> tuple[nn.Sequential, nn.Sequential]:
    values, hidden = math.prod(input_shape), config.hidden
    encoder = nn.Sequential(
        nn.Flatten(1),
        *(nn.Linear(values, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()),
        nn.Linear(hidden, 2 * config.latent),
    )
    decoder = nn.Sequential(
        *(nn.Linear(config.latent, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()),
        nn.Linear(hidden, values),
    )
    return encoder, decoder


def _convolutional(
    input_shape: tuple[int, ...], config: VAEConfig
) -> tuple[nn.Sequential, nn.Sequential]:
    C, H, W = input_shape
    grids, channels = [(H, W)], [C]
    while max(grids[-1]) > 2:
        grids.append((-(-grids[-1][0] // 2), -(-grids[-1][1] // 2)))
        channels.append(min(64 * 2 ** (len(channels) - 1), _WIDEST))
    down: list[nn.Module] = []
    up: list[nn.Module] = []
    for (h, w), below, above in zip(grids, channels, channels[1:], strict=False):
        down += [nn.Conv2d(below, above, 3, stride=2, padding=1), nn.ReLU()]
        mirrored = nn.ConvTranspose2d(
            *(above, below, 3), stride=2, padding=1, output_padding=(1 - h % 2, 1 - w % 2)
        )
        up = [mirrored, nn.ReLU(), *up]
    flat = channels[-1] * math.prod(grids[-1])
    hidden = min(config.hidden, flat)
    encoder = nn.Sequential(
        *down,
        *(nn.Flatten(1), nn.Linear(flat, hidden), nn.ReLU(), nn.Linear(hidden, 2 * config.latent)),
    )
    decoder = nn.Sequential(
        *(nn.Linear(config.latent, hidden), nn.ReLU(), nn.Linear(hidden, flat), nn.ReLU()),
        nn.Unflatten(1, (channels[-1], *grids[-1])),
        *up[:-1],  # the last layer answers with means or logits, unbounded
    )
    return encoder, decoder
