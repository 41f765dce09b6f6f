"""Networks against independent implementations, and sizes over the whole range of inputs."""

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Independent, Normal, kl_divergence

from learner import ConfigError, LearnerConfig, LEViT, paper
from learner.config import patch_side
from learner.expert import initialised
from learner.fusion import Fusion
from learner.vae import SIGMA, VAE, log_likelihood
from learner.vit import Block
from tests.streams import CONFIGS


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(5)


def test_block_equals_a_pre_norm_transformer_encoder_layer() -> None:
    block = initialised(lambda: Block(20, heads=4, hidden=30), _generator())
    peer = nn.TransformerEncoderLayer(
        20, 4, 30, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    attention = block.attention
    renamed = {
        "self_attn.in_proj_weight": attention.qkv.weight,
        "self_attn.in_proj_bias": attention.qkv.bias,
        "self_attn.out_proj.weight": attention.out.weight,
        "self_attn.out_proj.bias": attention.out.bias,
        "norm1.weight": attention.norm.weight,
        "norm1.bias": attention.norm.bias,
        "norm2.weight": block.feed_forward[0].weight,
        "norm2.bias": block.feed_forward[0].bias,
        "linear1.weight": block.feed_forward[1].weight,
        "linear1.bias": block.feed_forward[1].bias,
        "linear2.weight": block.feed_forward[3].weight,
        "linear2.bias": block.feed_forward[3].bias,
    }
    peer.load_state_dict(renamed)
    t_BND = torch.randn(3, 7, 20, generator=_generator())

    torch.testing.assert_close(block(t_BND), peer(t_BND), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["vit-gated", "colour", "vectors"])
def test_elbo_is_the_textbook_sum(name: str) -> None:
    config = CONFIGS[name]
    vae = initialised(lambda: VAE(config.input_shape, config.vae), _generator())
    x = torch.rand(4, *config.input_shape, generator=_generator())
    noise = torch.randn(4, config.vae.latent, generator=_generator())

    mean, log_variance = vae.encode(x)
    posterior = Normal(mean, (0.5 * log_variance).exp())
    decoded = vae.decoder(mean + noise * posterior.scale).reshape(x.shape)
    likelihoods = {
        "bernoulli": Bernoulli(logits=decoded, validate_args=False),
        "gaussian": Normal(decoded, SIGMA),
        "unit_gaussian": Normal(decoded, 1.0),
    }
    likelihood = likelihoods[config.vae.likelihood]
    kl = kl_divergence(posterior, Normal(torch.zeros_like(mean), 1.0)).sum(1)
    expected = Independent(likelihood, x.dim() - 1).log_prob(x) - kl

    torch.testing.assert_close(vae.elbo(x, noise), expected, atol=1e-3, rtol=1e-5)


def test_score_is_the_elbo_without_noise() -> None:
    config = CONFIGS["vit-gated"]
    vae = initialised(lambda: VAE(config.input_shape, config.vae), _generator())
    x = torch.rand(4, 1, 8, 8, generator=_generator())

    score, mean = vae.score(x)

    assert torch.equal(score, vae.elbo(x, torch.zeros_like(mean)))
    assert torch.equal(mean, vae.encode(x)[0])


def test_likelihoods_prefer_the_truth() -> None:
    x = torch.rand(1, 9, generator=_generator())

    gaussian = log_likelihood(x, x, "gaussian") - log_likelihood(x + 0.1, x, "gaussian")

    torch.testing.assert_close(gaussian, torch.tensor([9 * 0.5]))


def test_first_weights_come_from_the_generator_alone() -> None:
    def weights(seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        block = initialised(lambda: Block(20, heads=4, hidden=30), generator)
        return torch.cat([parameter.detach().flatten() for parameter in block.parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_gate_weighs_the_frozen_expert_that_its_query_matches() -> None:
    fusion = Fusion("gated", 4)
    assert fusion.query_D is not None
    frozen = torch.stack([torch.eye(4)[0], torch.eye(4)[1]])[None] * 10

    with torch.no_grad():
        fusion.query_D.copy_(torch.eye(4)[1] * 10)
        gate = fusion.gate(frozen)

    assert gate[0, 1] > 0.99
    torch.testing.assert_close(gate.sum(1), torch.ones(1))


def test_fixed_fusion_adds_the_mean_and_none_adds_nothing() -> None:
    own, frozen = torch.rand(2, 4), torch.rand(2, 3, 4)

    torch.testing.assert_close(Fusion("fixed", 4)(own, frozen), own + frozen.mean(1))
    assert torch.equal(Fusion("none", 4)(own, frozen), own)


@pytest.mark.parametrize(
    ("height", "width", "side"),
    [
        (28, 28, 7),
        (32, 32, 8),
        (8, 8, 2),
        (128, 128, 32),
        (64, 32, 16),
        (13, 11, 3),
        (127, 127, 32),
    ],
)
def test_patch_side_gives_about_sixteen_tokens(height: int, width: int, side: int) -> None:
    assert patch_side(height, width) == side


@pytest.mark.parametrize(
    "shape",
    [(1, 8, 8), (3, 8, 8), (1, 128, 128), (3, 33, 61), (3, 128, 128), (3,), (2000,)],
    ids=str,
)
def test_every_input_shape_learns_and_answers(shape: tuple[int, ...]) -> None:
    levit = LEViT(paper(shape, capacity=4, per_batch=2))
    x = torch.rand(4, *shape, generator=_generator())

    levit.observe(x, torch.arange(4))
    report = levit.observe(x, torch.arange(4))

    assert report.losses.negative_elbo < float("inf")
    assert len(levit.mixture.experts) == 2
    assert set(levit.predict(x).labels) <= {0, 1, 2, 3}


def test_paper_sizes_are_those_of_the_paper() -> None:
    mnist, cifar = paper((1, 28, 28)), paper((3, 32, 32))

    assert (mnist.network.patch, mnist.network.mlp, mnist.replay.capacity) == (7, (100,), 2000)
    assert (mnist.vae.kind, mnist.vae.hidden, mnist.vae.latent) == ("dense", 200, 50)
    assert (cifar.network.patch, cifar.network.mlp, cifar.replay.capacity) == (8, (500, 200), 1000)
    assert (cifar.vae.kind, cifar.vae.hidden, cifar.vae.latent) == ("convolutional", 1024, 200)
    encoder = VAE(cifar.input_shape, cifar.vae).encoder
    channels = [part.out_channels for part in encoder if isinstance(part, nn.Conv2d)]
    assert channels == [64, 128, 256, 512]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": -1.0}, "threshold must be > 0 and finite, got -1.0"),
        ({"capacity": 1}, "capacity must be >= 2, got 1"),
        ({"per_batch": -1}, "per_batch must be >= 0, got -1"),
        ({"learning_rate": -0.1}, "learning_rate must be > 0 and <= 1, got -0.1"),
        ({"max_experts": 0}, "max_experts must be >= 1, got 0"),
        ({"capacity": 0}, "capacity must be >= 2, got 0"),
        ({"threshold": 0.0}, "threshold must be > 0 and finite, got 0.0"),
        ({"threshold": float("inf")}, "threshold must be > 0 and finite, got inf"),
        ({"learning_rate": float("inf")}, "learning_rate must be > 0 and <= 1, got inf"),
        ({"patch": 0}, "patch must be >= 1, got 0"),
        ({"patch": 9}, "patch must be <= 8, the shorter side, got 9"),
    ],
    ids=str,
)
def test_bad_hyper_parameter_is_named_with_bound_and_value(
    options: dict[str, float], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        paper((1, 8, 8), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(), (1, 8), (1, 0, 8), (0,)], ids=str)
def test_bad_input_shape_is_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="input_shape must be"):
        paper(shape)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_configuration_survives_plain_values(config: LearnerConfig) -> None:
    assert LearnerConfig.from_values(config.to_values()) == config
