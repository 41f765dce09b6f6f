"""What an expert knows of its inputs: a small VAE on the compact view, and how usual a score is.

The VAE (Kingma & Welling 2013) of an expert sees each arriving sample once. Its score is the
negative ELBO at the posterior mean, per value; experts are compared by standard scores against what
each of them found usual while it learned (ours: raw ELBOs of different experts do not compare).
Dimension key: B batch, V values of the view, Z latent size.
"""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Generator, Tensor

from learner.config import VAEConfig
from learner.expert import hollow, initialised
from learner.vae import VAE

_FAR = 3.0  # standard score above which a sample is no evidence about what is usual
_KEEP = 0.998  # what a score weighs in the usual mean and deviation: a memory of 500


@dataclass(frozen=True, slots=True)
class Usual:
    """Faded mean and deviation of the scores of one density model, from samples it had not seen."""

    weight: float = 0.0
    total: float = 0.0
    square: float = 0.0

    def learned(self, scores_B: Tensor, standard_B: Tensor) -> Self:
        """Return what is usual after scores of unseen samples, those far outside left out.

        Args:
            scores_B: the scores.
            standard_B: the same in standard deviations, by `standard`.
        """
        if self.weight > 0:
            scores_B = scores_B[standard_B < _FAR]
        return self._joined(scores_B) if len(scores_B) else self

    def _joined(self, scores_B: Tensor) -> Self:
        n = len(scores_B)
        keep = _KEEP**n
        mean, square = scores_B.double().mean().item(), scores_B.double().square().mean().item()
        gain = 1 - keep
        return replace(
            self,
            weight=self.weight * keep + gain,
            total=self.total * keep + gain * mean,
            square=self.square * keep + gain * square,
        )

    def standard(self, scores_B: Tensor) -> Tensor:
        """Return the scores in deviations from their usual mean, [B]."""
        if self.weight == 0:
            return scores_B
        mean = self.total / self.weight
        variance = max(self.square / self.weight - mean * mean, 0.0)
        standard_B: Tensor = (scores_B - mean) / (variance**0.5 + 1e-3 * abs(mean) + 1e-6)
        return standard_B


def density_model(values: int, generator: Generator) -> VAE:
    """Return a fresh VAE for views of V values, its weights drawn from the generator."""
    vae = initialised(lambda: _vae(values), generator)
    vae.light_decoder_()
    return vae


def hollow_density(values: int) -> VAE:
    """Return the same without values, to be filled."""
    return hollow(lambda: _vae(values))


def _vae(values: int) -> VAE:
    latent = max(2, min(32, values // 2))
    config = VAEConfig(kind="dense", hidden=128, latent=latent, likelihood="unit_gaussian")
    return VAE((values,), config)


@torch.no_grad()
def novelty_scores(vae: VAE, view_BV: Tensor) -> Tensor:
    """Return the negative ELBO of each sample per value, nats, [B]; no sampling."""
    elbo_B, _ = vae.score(view_BV)
    score_B: Tensor = -elbo_B / view_BV.shape[1]
    return score_B


def density_loss(vae: VAE, view_BV: Tensor, generator: Generator) -> Tensor:
    """Return the mean negative ELBO per value, nats, with one draw of the latent per sample."""
    latent = vae.encode(view_BV[:1])[0].shape[1]
    noise_BZ = torch.randn(len(view_BV), latent, generator=generator).to(view_BV.device)
    return -vae.elbo(view_BV, noise_BZ).mean() / view_BV.shape[1]
