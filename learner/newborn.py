"""How an expert of preset `default` comes into being: the first from nothing, later ones as heirs.

An heir begins as a copy of the expert that is frozen, which from then on never changes; what it
reads from, scaled by a number that starts at zero, is the frozen expert to which the newest samples
look most familiar (dynamic knowledge fusion, LEViT). Ours: that an heir inherits weights.
Dimension key: K classes.
"""

import copy

import torch
from torch import Generator

from learner.adaptive_config import AdaptiveConfig
from learner.adaptive_mixture import AdaptiveExpert, AdaptiveMixture
from learner.density import density_model, hollow_density
from learner.encoder import Encoder
from learner.expert import hollow, initialised
from learner.report import Expansion, Life
from learner.token_network import TokenNetwork
from learner.vae import VAE


def first_expert(
    encoder: Encoder, config: AdaptiveConfig, generator: Generator, step: int
) -> AdaptiveExpert:
    """Return the first expert, its weights drawn from the generator."""
    network = initialised(lambda: _network(encoder, config, classes=0, reads=False), generator)
    return AdaptiveExpert(
        life=Life(id=0, born_step=step),
        network=network,
        vae=density_model(encoder.view.values, generator),
    )


def heir(
    mixture: AdaptiveMixture, nearest: AdaptiveExpert, expansion: Expansion, step: int
) -> AdaptiveExpert:
    """Freeze the active expert and return its heir, not yet in the mixture.

    Args:
        mixture: whose active expert it is.
        nearest: the expert from which the heir reads.
        expansion: why.
        step: entries learned so far.
    """
    frozen = mixture.active
    frozen.life.frozen_step = step
    for part in (frozen.network, frozen.vae):
        part.requires_grad_(requires_grad=False).zero_grad()
    classes = len(frozen.network.head.bias_K)
    reads = mixture.config.fusion != "none"
    network = hollow_network(mixture, classes=classes, reads=reads).to_empty(device=mixture.device)
    _inherit(network, frozen.network)
    vae = copy.deepcopy(frozen.vae).requires_grad_(requires_grad=True)
    return AdaptiveExpert(
        life=Life(id=frozen.life.id + 1, born_step=step, novelty=expansion.novelty),
        network=network,
        vae=vae,
        reads=nearest.life.id if reads else None,
        expansion=expansion,
    )


def hollow_network(mixture: AdaptiveMixture, *, classes: int, reads: bool) -> TokenNetwork:
    """Return the ViT of an expert without values, to be filled."""
    if mixture.encoder is None:
        raise ValueError("expected a fitted encoder")
    encoder, config = mixture.encoder, mixture.config
    return hollow(lambda: _network(encoder, config, classes=classes, reads=reads))


def hollow_vae(mixture: AdaptiveMixture) -> VAE:
    """Return the density model of an expert without values, to be filled."""
    return hollow_density(mixture.encoder.view.values if mixture.encoder else 1)


def _network(
    encoder: Encoder, config: AdaptiveConfig, *, classes: int, reads: bool
) -> TokenNetwork:
    _, tokens, width = encoder.token_shape
    fusion = config.fusion if reads else "none"
    width = max(1, width)  # where no tokens are made, with budget 0, nobody asks the network
    return TokenNetwork((tokens, width), encoder.token_grid, classes=classes, fusion=fusion)


@torch.no_grad()
def _inherit(network: TokenNetwork, parent: TokenNetwork) -> None:
    """Fill a network with its parent's values; what the parent lacks starts at zero."""
    values = parent.state_dict()
    for name, tensor in network.state_dict().items():
        if name in values and not name.startswith("fusion"):
            tensor.copy_(values[name])
        else:
            tensor.zero_()
