"""The ViT on tokens: its shapes, what fusion adds at birth, and its asymmetric loss."""

import math

import pytest
import torch
from torch import Generator, Tensor

from learner.config import FusionKind
from learner.expert import initialised
from learner.token_network import WIDTH, TokenNetwork, er_ace


def _network(*, classes: int = 4, fusion: FusionKind = "gated") -> TokenNetwork:
    def make() -> TokenNetwork:
        return TokenNetwork((6, 10), (2, 3), classes=classes, fusion=fusion)

    return initialised(make, Generator().manual_seed(0))


def _tokens(n: int = 5) -> Tensor:
    return torch.randn(n, 6, 10, generator=Generator().manual_seed(1))


@pytest.mark.parametrize("classes", [0, 1, 4])
def test_features_and_scores_have_a_row_per_sample(classes: int) -> None:
    network = _network(classes=classes)

    feature = network.features(_tokens())

    assert feature.shape == (5, WIDTH)
    assert network.scores(feature, None).shape == (5, classes)


def test_place_of_a_token_matters() -> None:
    network, tokens = _network(), _tokens()

    moved = network.features(tokens.roll(1, dims=1))

    assert (moved - network.features(tokens)).abs().max() > 1e-3


def test_features_depend_on_their_own_sample_only() -> None:
    network, tokens = _network(), _tokens()

    alone = torch.cat([network.features(one[None]) for one in tokens])

    torch.testing.assert_close(network.features(tokens), alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("fusion", ["gated", "fixed"])
def test_frozen_features_add_nothing_until_their_scale_has_moved(fusion: FusionKind) -> None:
    network, own = _network(fusion=fusion), torch.randn(5, WIDTH)
    assert network.fusion_scale is not None
    frozen = torch.randn(5, 1, WIDTH)

    at_birth = network.scores(own, frozen)
    with torch.no_grad():
        network.fusion_scale.fill_(0.5)

    assert torch.equal(at_birth, network.scores(own, None))
    moved = network.scores(own, frozen)
    torch.testing.assert_close(moved, network.head(own + 0.5 * frozen[:, 0]))


def test_arriving_samples_compete_among_their_own_classes_and_replayed_ones_among_all_seen() -> (
    None
):
    """By hand: ln 3 and ln 5 among two classes, ln 2 among three; the fourth was never seen."""
    logits = torch.tensor([[1.0, 2, 90, 7], [4.0, 1, 90, 7], [1.0, 1, 2, 7]]).log()
    y, seen = torch.tensor([0, 1, 2]), torch.tensor([True, True, True, False])

    loss = er_ace(logits, y, 2, seen)

    assert loss.item() == pytest.approx((math.log(3) + math.log(5) + math.log(2)) / 3, rel=1e-5)


def test_what_arrives_does_not_push_absent_classes_away() -> None:
    logits = torch.randn(6, 5, generator=Generator().manual_seed(0)).requires_grad_()
    y, seen = torch.tensor([0, 1, 0, 1, 0, 1]), torch.ones(5, dtype=torch.bool)

    (arriving,) = torch.autograd.grad(er_ace(logits, y, 6, seen), logits)
    (replayed,) = torch.autograd.grad(er_ace(logits, y, 0, seen), logits)

    assert (arriving[:, 2:] == 0).all()
    assert (replayed[:, 2:] > 0).all()  # plain cross-entropy does


def test_single_class_that_arrives_alone_teaches_nothing() -> None:
    logits = torch.randn(3, 4, generator=Generator().manual_seed(0))

    loss = er_ace(logits, torch.full((3,), 2), 3, torch.ones(4, dtype=torch.bool))

    assert loss.item() == 0
