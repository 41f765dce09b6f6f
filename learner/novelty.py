"""Novelty: how far the replay memory lies from what every frozen expert models.

Follows LEViT (Ye & Bors 2026, equation 6, given in words): compare what arrives with what each
earlier component models in its low-dimensional latent space; no labels. The measure is ours: the
squared 2-Wasserstein distance of diagonal Gaussians, in units of the expert's own spread,

    d_k(M) = mean over z of ((m_kz(M) - m_kz) / s_kz)^2 + ((s_kz(M) - s_kz) / s_kz)^2
    novelty(M) = min over k of d_k(M)

of the posterior means under expert k's encoder: of today's memory M, and of the memory the expert
was frozen with. Without the units the distance is that of one latent space alone: between 0.0001
and 10 for a new class, depending on data and training. With them another memory of the same
distribution gives about 3 / M (2 / M from the means, 1 / M from the deviations, for independent
Gaussian latent values), and a new class tenths or more.
Dimension key: M members of the memory, J frozen experts, Z latent size.
"""

import torch
from torch import Tensor

SMALLEST_DEVIATION = 1e-6  # a latent value that never moves has no unit of its own


def latent_statistics(means_MZ: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of posterior means over the memory, each [Z].

    The deviation is the population's (divided by M), so that one member is enough.
    """
    return means_MZ.mean(0), means_MZ.std(0, correction=0)


def distances(means_MJZ: Tensor, known_mean_JZ: Tensor, known_deviation_JZ: Tensor) -> Tensor:
    """Return d_k(M) for every frozen expert, [J], >= 0, without unit.

    Args:
        means_MJZ: posterior mean of each memory member under each frozen encoder.
        known_mean_JZ: m_k, what each encoder made of the memory its expert was frozen with.
        known_deviation_JZ: s_k, likewise.
    """
    mean_JZ, deviation_JZ = latent_statistics(means_MJZ)
    square_JZ = (mean_JZ - known_mean_JZ).square() + (deviation_JZ - known_deviation_JZ).square()
    return (square_JZ / known_deviation_JZ.clamp(min=SMALLEST_DEVIATION).square()).mean(1)


def novelty(means_MJZ: Tensor, known_mean_JZ: Tensor, known_deviation_JZ: Tensor) -> float:
    """Return min over k of d_k(M), J >= 1; large means that no expert models this memory."""
    nearest: Tensor = torch.min(distances(means_MJZ, known_mean_JZ, known_deviation_JZ))
    return nearest.item()
