"""Preset `default` as a method, with its single parts beside the pooled answer.

Dimension key: B batch.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import learner
from bench.methods import Cost, Facts
from bench.presets import TRAINED, labels


class Default:
    """The learner of preset `default`; see `learner.AdaptiveLEViT`."""

    def __init__(self, config: learner.AdaptiveConfig) -> None:
        """Make a fresh learner of `config`."""
        self._learner = learner.AdaptiveLEViT(config)
        self._trace: list[tuple[int, float]] = []

    def observe(self, x: Tensor, y: Tensor) -> None:
        """Learn once from one mini-batch."""
        report = self._learner.observe(x, y)
        if report.novelty is not None:
            self._trace.append((self._learner.counts.samples, report.novelty))

    def predict(self, x: Tensor) -> Tensor:
        """Return the most probable label of each sample; -1 where none is known."""
        answer = self._learner.predict(x)
        return labels(answer.classes, answer.probabilities_BK)

    def parts(self, x: Tensor) -> dict[str, Tensor]:
        """Return the label that each part alone would give; -1 where it has no opinion."""
        mixture = self._learner.mixture
        if not mixture.classes:
            return {}
        named_K = torch.tensor([int(label) for label in mixture.classes])
        found = mixture.parts(x)
        return {n: torch.where(k >= 0, named_K[k.clamp_min(0)], -1) for n, k in found.items()}

    def cost(self) -> Cost:
        """Return the bytes of the whole state, the cache of tokens included."""
        own = self._learner
        networks = [n for e in own.mixture.experts for n in (e.network, e.vae)]
        return Cost(
            state_bytes=own.state_bytes,
            parameters=sum(p.numel() for n in networks for p in n.parameters()),
            sample_gradients=own.counts.spent,
            experts=len(own.mixture.experts),
            expansions=own.counts.expansions,
            flops=self._flops(),
        )

    @torch.no_grad()
    def _flops(self) -> float | None:
        """Return the floating-point operations of encoding and of all sample-gradients so far.

        Counted on one sample and multiplied; a backward pass counts as two forwards, closed forms
        are left out.
        """
        own, mixture = self._learner, self._learner.mixture
        if mixture.encoder is None:
            return None
        encoder, active = mixture.encoder, mixture.active
        x = torch.zeros(1, *own.config.input_shape)
        encoded = encoder(x)
        tokens_1NE = encoded.tokens_BRNE[:, 0].float()
        views = own.counts.samples if own.config.budget > 0 else 0
        in_vit = max(0.0, own.counts.spent - TRAINED * views)
        each = (
            (own.counts.samples, lambda: encoder(x)),
            (TRAINED * views, lambda: active.vae.score(encoded.view_BV)),
            (in_vit, lambda: mixture.logits(active, tokens_1NE)),
        )
        return sum(times * _counted(work) for times, work in each if times)

    def novelty_trace(self) -> list[tuple[int, float]]:
        """Return (samples observed, log10 of the evidence for change) after every mini-batch."""
        return self._trace


def _counted(work: Callable[[], object]) -> int:
    """Return the floating-point operations of one call."""
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def default(  # noqa: PLR0913  the options of the preset, keyword-only
    facts: Facts,
    *,
    budget: float = 20.0,
    capacity: int | None = None,
    statistics_mib: int = 64,
    alpha: float = 0.01,
    fusion: str = "gated",
    expansion: bool = True,
    max_experts: int = 32,
) -> Default:
    """Return the preset `default`; a capacity of None is the preset's byte budget."""
    return Default(
        learner.AdaptiveConfig(
            input_shape=tuple(facts.shape),
            budget=budget,
            capacity=capacity,
            statistics_bytes=statistics_mib * 2**20,
            false_expansion_probability=alpha,
            fusion=fusion,  # type: ignore[arg-type]  # checked by the configuration
            expansion=expansion,
            max_experts=max_experts,
            seed=facts.seed,
        )
    )
