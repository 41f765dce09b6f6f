"""Tiny learners of preset `default`, caught at the moments that matter, and all that they are."""

import copy
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import cache, singledispatch
from typing import Any

import torch
from torch import Tensor, nn

from learner.adaptive import AdaptiveLEViT
from learner.adaptive_config import MIB, AdaptiveConfig
from learner.adaptive_mixture import AdaptiveMixture
from learner.adaptive_training import AdaptiveTraining
from learner.analytic import AnalyticMemory
from learner.evaluation import FadedAccuracy
from learner.knowledge import Knowledge
from learner.reservoir import ReplayBuffer
from tests.streams import BATCH, MiniBatch, Shift


def tiny(shape: tuple[int, ...], **options: object) -> AdaptiveConfig:
    """Return a configuration that learns in milliseconds and expands on little evidence."""
    values: dict[str, object] = {
        "budget": 8.0,
        "statistics_bytes": MIB,
        "fit_samples": 60,
        "horizon": 1000,
        "false_expansion_probability": 0.2,
    }
    return AdaptiveConfig.from_values(values | options | {"input_shape": shape})


CONFIGS: dict[str, AdaptiveConfig] = {
    "grey": tiny((1, 8, 8)),
    "colour": tiny((3, 12, 10), fusion="fixed"),
    "series": tiny((24, 3), fusion="none"),
    "vectors": tiny((6,)),
    "no-budget": tiny((1, 8, 8), budget=0.0),
}
"""Every configuration that obeys the laws."""
GROWING = [name for name, config in CONFIGS.items() if config.budget > 0]

HALF = 3  # classes before the change, and after it
CHANGE = 30  # mini-batches before it
STEPS = 42


def changing(config: AdaptiveConfig, *, seed: int = 0) -> Iterator[MiniBatch]:
    """Yield mini-batches of three classes, then of three others.

    Every fifth has no labels, every fourth has half of them.
    """
    source = Shift(config.input_shape, seed)
    for number in range(STEPS):
        k = 0 if number < CHANGE else HALF
        y_B = torch.randint(k, k + HALF, (BATCH,), generator=source.generator)
        x = source.draw(y_B)
        if number % 4 == 3:
            y_B[::2] = -1
        yield MiniBatch(x, None if number % 5 == 4 else y_B)


@cache
def _moments(name: str) -> dict[str, tuple[AdaptiveLEViT, MiniBatch | None]]:
    """Return the learner before it fits, before an ordinary step, before it expands, at the end."""
    levit, found = AdaptiveLEViT(CONFIGS[name]), dict[str, tuple[AdaptiveLEViT, MiniBatch | None]]()
    for number, batch in enumerate(changing(levit.config)):
        before, fitted = copy.deepcopy(levit), levit.mixture.encoder is not None
        if number == CHANGE - 3:
            found["learning"] = before, batch
        report = levit.observe(batch.x, batch.labels)
        if not fitted and levit.mixture.encoder is not None:
            found["fitting"] = before, batch
        if report.expanded:
            found.setdefault("expanding", (before, batch))
    return found | {"end": (levit, None)}


def caught(name: str, moment: str) -> tuple[AdaptiveLEViT, MiniBatch]:
    """Return a learner just before it is `fitting`, `learning` or `expanding`, and with what."""
    levit, batch = copy.deepcopy(_moments(name)[moment])
    assert batch is not None
    return levit, batch


def grown(name: str) -> AdaptiveLEViT:
    """Return a learner that has observed all of `changing`."""
    return copy.deepcopy(_moments(name)["end"][0])


def samples(name: str, n: int = 5) -> Tensor:
    """Return n samples of each class."""
    source = Shift(CONFIGS[name].input_shape)
    return torch.cat([source.of(k, n) for k in range(2 * HALF)])


def facts(thing: object) -> dict[str, str]:
    """Return every tensor, as a hash of its bytes, and every plain value, by where it stands."""
    return dict(_walk(thing, ""))


@singledispatch
def _walk(thing: object, path: str) -> Iterator[tuple[str, str]]:
    if is_dataclass(thing):
        yield from _all({f.name: getattr(thing, f.name) for f in fields(thing)}, path)
    else:
        yield path, repr(thing)


def _all(parts: Mapping[Any, object], path: str) -> Iterator[tuple[str, str]]:
    for name, part in parts.items():
        yield from _walk(part, f"{path}.{name}")


@_walk.register
def _(thing: Tensor, path: str) -> Iterator[tuple[str, str]]:
    values = thing.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    yield path, f"{thing.dtype} {tuple(thing.shape)} {hashlib.sha256(values).hexdigest()}"


@_walk.register(dict)
def _(thing: dict[object, object], path: str) -> Iterator[tuple[str, str]]:
    return _all(thing, path)


@_walk.register(list)
@_walk.register(tuple)
def _(thing: list[object] | tuple[object, ...], path: str) -> Iterator[tuple[str, str]]:
    yield f"{path}.len", str(len(thing))
    yield from _all(dict(enumerate(thing)), path)


@_walk.register(AdaptiveLEViT)
@_walk.register(AdaptiveMixture)
@_walk.register(FadedAccuracy)
def _(thing: object, path: str) -> Iterator[tuple[str, str]]:
    return _all(vars(thing), path)


@_walk.register
def _(thing: Knowledge, path: str) -> Iterator[tuple[str, str]]:
    return _all({"marks": thing.marks, "memory": thing.memory, "own": thing.own}, path)


@_walk.register
def _(thing: torch.Generator, path: str) -> Iterator[tuple[str, str]]:
    return _walk(thing.get_state(), path)


@_walk.register
def _(thing: nn.Module, path: str) -> Iterator[tuple[str, str]]:
    learns = {name: parameter.requires_grad for name, parameter in thing.named_parameters()}
    return _all({"learns": learns} | thing.state_dict(), path)


@_walk.register
def _(thing: AdaptiveTraining, path: str) -> Iterator[tuple[str, str]]:
    for which, optimizer in zip(("network", "density"), thing.optimizers, strict=True):
        learning = list(getattr(thing.mixture.active, _PART[which]).parameters())
        group = optimizer.param_groups[0]["params"]
        yield f"{path}.{which}.live", str([a is b for a, b in zip(group, learning, strict=True)])
        moments = [optimizer.state.get(parameter) or {} for parameter in learning]
        yield from _all({which: moments}, path)


_PART = {"network": "network", "density": "vae"}


@_walk.register
def _(thing: ReplayBuffer, path: str) -> Iterator[tuple[str, str]]:
    M = len(thing)
    columns = {name: column[:M] for name, column in thing.columns.items()}
    own: dict[str, object] = {
        "capacity": thing.capacity,
        "keys": thing._keys_M,
        "slots": thing._slots_M,
    }
    return _all(own | columns | dict(thing.tensors()), path)


@_walk.register
def _(thing: AnalyticMemory, path: str) -> Iterator[tuple[str, str]]:
    return _all(thing.tensors(), path)
