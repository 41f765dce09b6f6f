"""What the benchmark asks of every method, ours or a peer's, and where each is found.

A method is told mini-batches and nothing else: no task, no boundary, no test sample. It is made by
a factory, `factory(facts, **options) -> Method`, whose keyword-only parameters are its options.
Factories are imported when asked for, so a library that is absent hurts only who wants it.

Samples are tensors as the service would hand them to a learner: images uint8 or float32
[B, C, H, W], vectors float32 [B, D], series float32 [B, T, C].
Dimension key: B batch, C channels, H height, W width, D vector width, T time steps.
"""

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from torch import Tensor

from service.errors import SettingsError

Option = int | float | str | bool | None
Options = Mapping[str, Option]
Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a method may know before the stream begins."""

    kind: Literal["image", "vector", "series"]
    shape: Shape
    """One sample: (C, H, W), (D,) or (T, C)."""
    classes: int
    """Labels are 0 to classes - 1; only for networks with a fixed head."""
    seed: int
    """Seed of everything the method draws."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a method is and has spent so far."""

    state_bytes: int
    """Everything it keeps between two mini-batches: weights, optimiser, replay, statistics."""
    parameters: int
    """Numbers that it learned or drew and needs for a prediction."""
    sample_gradients: float
    """Spent by all `observe` so far: one forward of one sample through one network is 1, its
    backward 2; a closed-form update is 1."""
    experts: int = 1
    expansions: int = 0
    flops: float | None = None
    """Floating-point operations of all `observe` so far; None where nobody counted."""


class Method(Protocol):
    """A learner under test."""

    def observe(self, x: Tensor, y: Tensor) -> None:
        """Learn once from one mini-batch; y is int64 [B], -1 for no label."""
        ...

    def predict(self, x: Tensor) -> Tensor:
        """Return a label for each sample by itself, int64 [B], or -1; learns nothing."""
        ...

    def cost(self) -> Cost:
        """Return what it keeps and what it has spent."""
        ...


@runtime_checkable
class WithParts(Protocol):
    """A method that answers through several parts, each of which could answer alone."""

    def parts(self, x: Tensor) -> Mapping[str, Tensor]:
        """Return the labels that each part alone would give, int64 [B] by name."""
        ...


@runtime_checkable
class WithNovelty(Protocol):
    """A method that measures how new the stream is to it."""

    def novelty_trace(self) -> Sequence[tuple[int, float]]:
        """Return (samples observed, novelty) for every measurement so far."""
        ...


Factory = Callable[..., Method]

METHODS: Mapping[str, str] = {
    "default": "bench.adaptive:default",
    "paper": "bench.presets:paper",
    "finetune": "bench.replay_nets:finetune",
    "er": "bench.replay_nets:er",
    "ncm": "bench.closed_form:ncm",
    "slda": "bench.closed_form:slda",
    "randumb": "bench.closed_form:randumb",
    "previous_label": "bench.closed_form:previous_label",
    "majority": "bench.closed_form:majority",
    "avalanche-er": "bench.peers.avalanche:er",
    "avalanche-mir": "bench.peers.avalanche:mir",
    "avalanche-er-ace": "bench.peers.avalanche:er_ace",
    "avalanche-scr": "bench.peers.avalanche:scr",
    "avalanche-cope": "bench.peers.avalanche:cope",
    "avalanche-der": "bench.peers.avalanche:der",
    "avalanche-gdumb": "bench.peers.avalanche:gdumb",
    "avalanche-slda": "bench.peers.avalanche:slda",
    "river-arf": "bench.peers.river:arf",
    "river-hat": "bench.peers.river:hat",
}
"""Module and factory of every method."""


def factory(name: str) -> Factory:
    """Return the factory of the method called `name`.

    Raises:
        SettingsError: there is no such method, or the library it needs is not installed.
    """
    if name not in METHODS:
        raise SettingsError(f"expected a method of {', '.join(METHODS)}, got {name}")
    module, function = METHODS[name].split(":")
    try:
        found: Factory = getattr(importlib.import_module(module), function)
    except ModuleNotFoundError as absent:
        raise SettingsError(
            f"method {name} needs {absent.name}; bench/peers/README.md says how to install it"
        ) from None
    return found


def options_of(name: str) -> Mapping[str, Option]:
    """Return the options of a method with their defaults."""
    parameters = inspect.signature(factory(name)).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def make(name: str, facts: Facts, options: Options) -> Method:
    """Return a fresh method.

    Raises:
        SettingsError: no such method or option.
    """
    known = options_of(name)
    if unknown := sorted(set(options) - set(known)):
        raise SettingsError(f"{name} has no option {unknown[0]}; it has {', '.join(known) or '-'}")
    return factory(name)(facts, **options)
