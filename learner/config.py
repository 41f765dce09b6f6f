"""Every hyper-parameter, one frozen dataclass a part, and the preset that follows the paper.

"The paper" is Ye & Bors, "Online Task-Free Continual Learning via Expansible Vision Transformer"
(LEViT), Pattern Recognition 2026. A field that is ours says so.
Dimension key: B batch, C channels, H height, W width, N tokens, D model width, Z latent size.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self, TypeVar

from learner.errors import ConfigError

ExpertKind = Literal["vit", "dnn"]
FusionKind = Literal["none", "fixed", "gated"]
Likelihood = Literal["bernoulli", "gaussian", "unit_gaussian"]
Number = TypeVar("Number", int, float)

_DENSE_SIDE = 32  # grey images up to this side get the dense VAE of the paper's MNIST
_TOKENS = 16  # the paper's token count on MNIST (7 x 7 of 28) and CIFAR (8 x 8 of 32)


def _require(ok: bool, field: str, bound: str, value: object) -> None:  # noqa: FBT001  a check
    if not ok:
        raise ConfigError(f"{field} must be {bound}, got {value}")


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkConfig:
    """The classifier half of an expert."""

    kind: ExpertKind = "vit"
    """`vit`: attention over patch tokens; `dnn`: fully connected (the paper's LEViT-DNN)."""
    fusion: FusionKind = "gated"
    """`gated` is LEViT-DKF, `fixed` LEViT-DKF-Fixed, `none` LEViT-No-DKF."""
    patch: int = 7
    """Side of a square patch, pixels; `vit` only."""
    width: int = 100
    """Model width D of a token. Paper: Q = 100."""
    heads: int = 4
    """Attention heads; ours, the public text gives no number."""
    mlp: tuple[int, ...] = (100,)
    """Widths of the MLP before the classifier. Paper: 100 on MNIST, 500-200 on CIFAR."""

    def __post_init__(self) -> None:
        """Check the bounds."""
        _require(self.patch >= 1, "patch", ">= 1", self.patch)
        _require(self.heads >= 1, "heads", ">= 1", self.heads)
        _require(self.width % self.heads == 0, "width", f"a multiple of {self.heads}", self.width)
        _require(len(self.mlp) > 0 and min(self.mlp) > 0, "mlp", "positive widths", self.mlp)


@dataclass(frozen=True, kw_only=True, slots=True)
class VAEConfig:
    """The density half of an expert."""

    kind: Literal["dense", "convolutional"] = "dense"
    """Dense for small grey images and vectors, convolutional for colour."""
    hidden: int = 200
    """Units of the hidden layers. Paper: two layers of 200 (MNIST), one of 1,024 (CIFAR)."""
    latent: int = 50
    """Latent size Z. Paper: 50 (MNIST), 200 (CIFAR)."""
    likelihood: Likelihood = "bernoulli"
    """`bernoulli` for grey images in [0, 1], `gaussian` with sigma 0.1 for colour,
    `unit_gaussian` for standardised vectors."""

    def __post_init__(self) -> None:
        """Check the bounds."""
        _require(self.hidden >= 1, "hidden", ">= 1", self.hidden)
        _require(self.latent >= 1, "latent", ">= 1", self.latent)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingConfig:
    """How the active expert learns."""

    learning_rate: float = 2e-3
    """Step size of Adam. Paper: 1e-4, over many more steps per arriving sample than ours."""
    beta: float = 0.5
    """Weight of the negative ELBO beside the cross-entropy. Paper: 0.5, found insensitive."""
    samples_per_step: int = 64
    """Most samples in one optimiser step; ours."""

    def __post_init__(self) -> None:
        """Check the bounds."""
        rate, samples = self.learning_rate, self.samples_per_step
        _require(0 < rate <= 1, "learning_rate", "> 0 and <= 1", rate)
        _require(0 < self.beta < math.inf, "beta", "> 0 and finite", self.beta)
        _require(samples >= 1, "samples_per_step", ">= 1", samples)


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplayConfig:
    """The replay memory: first in, first out, cleared at expansion."""

    capacity: int = 2000
    """Most samples held. Paper: 2,000 (MNIST), 1,000 (CIFAR10)."""
    per_batch: int = 54
    """Memory samples trained on again for each arriving mini-batch; more than the memory holds
    means several passes, the last one partial."""

    def __post_init__(self) -> None:
        """Check the bounds."""
        _require(self.capacity >= 2, "capacity", ">= 2", self.capacity)
        _require(self.per_batch >= 0, "per_batch", ">= 0", self.per_batch)


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpansionConfig:
    """When a new expert is added."""

    threshold: float = 0.1
    """Novelty at which the mixture expands. Paper: gamma; the value is ours as is the measure: more
    of the same stays near 3 / capacity, a new class passes 0.2 (digits, MNIST, sensor windows)."""
    max_experts: int = 32
    """Most experts; an expansion beyond is refused and counted. Ours."""

    def __post_init__(self) -> None:
        """Check the bounds."""
        finite = 0 < self.threshold < math.inf
        _require(finite, "threshold", "> 0 and finite", self.threshold)
        _require(self.max_experts >= 1, "max_experts", ">= 1", self.max_experts)


@dataclass(frozen=True, kw_only=True, slots=True)
class LearnerConfig:
    """All that, with the log, decides the learner's state."""

    input_shape: tuple[int, ...]
    """One sample: (C, H, W) or (D,)."""
    network: NetworkConfig
    vae: VAEConfig
    training: TrainingConfig
    replay: ReplayConfig
    expansion: ExpansionConfig
    seed: int = 0
    """Seed of the learner's own generator."""

    def __post_init__(self) -> None:
        """Check the shape against the networks."""
        shape, network = self.input_shape, self.network
        image = len(shape) == 3
        _require(
            len(shape) in (1, 3) and min(shape) >= 1, "input_shape", "(C, H, W) or (D,)", shape
        )
        _require(image or network.kind == "dnn", "kind", "dnn for vectors", network.kind)
        _require(image or self.vae.kind == "dense", "vae.kind", "dense for vectors", self.vae.kind)
        side = min(shape[1:]) if image else network.patch
        _require(network.patch <= side, "patch", f"<= {side}, the shorter side", network.patch)

    def to_values(self) -> dict[str, Any]:
        """Return plain values from which `from_values` builds an equal configuration."""
        values = asdict(self)
        values["input_shape"] = list(self.input_shape)
        values["network"]["mlp"] = list(self.network.mlp)
        return values

    @classmethod
    def from_values(cls, values: dict[str, Any]) -> Self:
        """Return the configuration that `to_values` described."""
        network = dict(values["network"])
        network["mlp"] = tuple(network["mlp"])
        return cls(
            input_shape=tuple(values["input_shape"]),
            network=NetworkConfig(**network),
            vae=VAEConfig(**values["vae"]),
            training=TrainingConfig(**values["training"]),
            replay=ReplayConfig(**values["replay"]),
            expansion=ExpansionConfig(**values["expansion"]),
            seed=values["seed"],
        )


def patch_side(height: int, width: int) -> int:
    """Return the patch side for an image: the common divisor that gives nearest to 16 tokens.

    Where the best divisor is off by more than a factor of two (a prime side, say), the side that
    would give 16 tokens on a padded image. Ours; the paper's 7 (28 x 28) and 8 (32 x 32) follow.
    """

    def tokens(side: int) -> int:
        """Return how many patches of this side cover the image."""
        return -(-height // side) * -(-width // side)

    divisors = [p for p in range(1, min(height, width) + 1) if height % p == width % p == 0]
    best = min(divisors, key=lambda p: abs(tokens(p) - _TOKENS))
    if _TOKENS / 2 <= tokens(best) <= _TOKENS * 2:
        return best
    return min(range(1, min(height, width) + 1), key=lambda p: abs(tokens(p) - _TOKENS))


def paper(  # noqa: PLR0913  the settings a user may override, keyword-only
    input_shape: tuple[int, ...],
    *,
    kind: ExpertKind = "vit",
    fusion: FusionKind = "gated",
    patch: int | None = None,
    threshold: float | None = None,
    capacity: int | None = None,
    per_batch: int = 54,
    learning_rate: float | None = None,
    max_experts: int = 32,
    seed: int = 0,
) -> LearnerConfig:
    """Return the preset `paper`: LEViT as published, for samples of `input_shape`.

    None means the preset's own value for this kind of input. Grey images follow the paper's
    MNIST column, colour its CIFAR column; vectors (ours) get the MNIST widths without attention.
    The threshold rises where a small memory makes novelty noisy (ours): 10 / capacity at least.

    Raises:
        ConfigError: naming field, bound and value.
    """
    shaped = len(input_shape) in (1, 3) and min(input_shape) >= 1
    _require(shaped, "input_shape", "(C, H, W) or (D,)", input_shape)
    image = len(input_shape) == 3
    colour = image and input_shape[0] != 1
    convolutional = colour or (image and max(input_shape[1:]) > _DENSE_SIDE)
    likelihood: Likelihood = "gaussian" if colour else "bernoulli" if image else "unit_gaussian"
    latent = 200 if colour else 50 if image else min(50, max(2, input_shape[0]))
    held = _either(capacity, 1000 if colour else 2000)
    return LearnerConfig(
        input_shape=input_shape,
        network=NetworkConfig(
            kind=kind if image else "dnn",
            fusion=fusion,
            patch=_either(patch, patch_side(*input_shape[1:]) if image else 1),
            mlp=(500, 200) if colour else (100,),
        ),
        vae=VAEConfig(
            kind="convolutional" if convolutional else "dense",
            hidden=1024 if convolutional else 200,
            latent=latent,
            likelihood=likelihood,
        ),
        training=TrainingConfig(
            learning_rate=_either(learning_rate, TrainingConfig().learning_rate)
        ),
        replay=ReplayConfig(capacity=held, per_batch=per_batch),
        expansion=ExpansionConfig(
            threshold=_either(threshold, max(ExpansionConfig().threshold, 10 / max(1, held))),
            max_experts=max_experts,
        ),
        seed=seed,
    )


def _either(given: Number | None, preset: Number) -> Number:
    return preset if given is None else given
