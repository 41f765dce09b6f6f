"""The whole learner as named tensors and plain values, and back; nothing is left out.

Names: `backbone.*`, `experts.{id}.*` (weights and what a frozen encoder knows), `scaler.*`,
`optimizer.{moment}.{parameter}`, `generator`, `memory.*`. Ours.
Dimension key: M members of the memory, J frozen experts, D width, Z latent size, V values.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from learner.config import LearnerConfig
from learner.errors import StateError
from learner.expert import Expert, hollow
from learner.levit import LEViT
from learner.levit_parts import Counts
from learner.mixture import Mixture
from learner.report import Life, Losses
from learner.scaler import Scaler

MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""What Adam and AdamW keep of one parameter."""
DAMAGE = (KeyError, RuntimeError, ValueError, TypeError, IndexError, AttributeError)
"""What a state that does not fit may make a constructor raise."""


@dataclass(frozen=True, slots=True)
class LearnerState:
    """All that a learner is; `tensors` fit a safetensors file, `values` a JSON file."""

    tensors: Mapping[str, Tensor]
    """Views, valid until the learner changes."""
    values: Mapping[str, Any]


def dump(levit: LEViT) -> LearnerState:
    """Return the whole state; saving changes nothing."""
    mixture, memory = levit.mixture, levit.memory
    tensors = {f"backbone.{name}": t for name, t in mixture.backbone.state_dict().items()}
    for expert, life in zip(mixture.ordered, mixture.lives, strict=True):
        tensors |= {f"experts.{life.id}.{name}": t for name, t in expert.state_dict().items()}
    tensors |= {"scaler.mean": mixture.scaler.mean_V, "scaler.square": mixture.scaler.square_V}
    moments = _moments(levit)
    for name, state in moments.items():
        tensors |= {f"optimizer.{moment}.{name}": state[moment] for moment in MOMENTS}
    tensors["generator"] = levit.generator.get_state()
    n = len(memory)
    tensors |= {
        "memory.x": memory.x[:n],
        "memory.y": memory.y_M[:n],
        "memory.ids": memory.ids_M2[:n],
        "memory.source": memory.source_M[:n],
        "memory.means": memory.means_MJZ[:n],
        "memory.features": memory.features_MJD[:n],
    }
    values = {
        "config": levit.config.to_values(),
        "classes": list(mixture.classes),
        "experts": [asdict(life) for life in mixture.lives],
        "optimizer": list(moments),
        "counts": asdict(levit.counts),
        "losses": [levit.losses.cross_entropy, levit.losses.negative_elbo],
        "novelty": levit.novelty,
        "accuracy": {"overall": levit.accuracy.overall, "by_class": levit.accuracy.by_class},
        "scaler_count": mixture.scaler.count,
        "memory_cursor": memory.cursor,
        "memory_dtype": str(memory.x.dtype).removeprefix("torch."),
    }
    return LearnerState(tensors, values)


def restore(state: LearnerState, *, device: str = "cpu") -> LEViT:
    """Return the learner that `dump` described; continuing is bit-equal to never having stopped.

    It shares nothing with `state`, which may be restored again.

    Raises:
        StateError: naming what is missing or of another shape.
    """
    copies = {name: tensor.clone() for name, tensor in state.tensors.items()}
    own = LearnerState(copies, state.values)
    mixture = restore_for_prediction(own, device=device)
    try:
        levit = LEViT(mixture.config, device=device, mixture=mixture)
        levit.generator.set_state(_take(copies, "generator", levit.generator.get_state()))
        _restore_counts(levit, state.values)
        _restore_optimizer(levit, own)
        _restore_memory(levit, own)
    except DAMAGE as error:
        raise StateError(f"the state does not fit its configuration: {error}") from error
    return levit


def restore_for_prediction(state: LearnerState, *, device: str = "cpu") -> Mixture:
    """Return the mixture that answers as the dumped learner does; it may share the tensors.

    Reads `backbone.*`, `experts.*`, `scaler.*` and the values only.

    Raises:
        StateError: naming what is missing or of another shape.
    """
    values, tensors = state.values, state.tensors
    try:
        mixture = Mixture(LearnerConfig.from_values(values["config"]), torch.device(device))
        mixture.classes = list(values["classes"])
        fresh = mixture.scaler
        mixture.scaler = Scaler(
            values["scaler_count"],
            _take(tensors, "scaler.mean", fresh.mean_V).to(mixture.device),
            _take(tensors, "scaler.square", fresh.square_V).to(mixture.device),
        )
        _fill(mixture.backbone, tensors, "backbone.")
        for index, life in enumerate(values["experts"]):
            mixture.lives.append(Life(**{**life, "classes": list(life["classes"])}))
            columns = len(life["classes"])
            make = partial(Expert, mixture.config, classes=columns, frozen_before=index)
            mixture.experts.append(_fill(hollow(make), tensors, f"experts.{life['id']}."))
        mixture.settle()
        return mixture.to(mixture.device)
    except DAMAGE as error:
        raise StateError(f"the state does not fit its configuration: {error}") from error


def _fill(network: nn.Module, tensors: Mapping[str, Tensor], prefix: str) -> nn.Module:
    """Give a network without values those under `prefix`, each of its shape and type."""
    own = {
        name: _take(tensors, prefix + name, empty) for name, empty in network.state_dict().items()
    }
    network.load_state_dict(own, assign=True)
    return network


def _take(tensors: Mapping[str, Tensor], name: str, like: Tensor) -> Tensor:
    """Return a tensor if it is there and like another in shape and type.

    Raises:
        StateError: naming it.
    """
    if name not in tensors:
        raise StateError(f"{name} is missing")
    found = tensors[name]
    if (found.shape, found.dtype) != (like.shape, like.dtype):
        raise StateError(
            f"expected {name} as {like.dtype} {tuple(like.shape)}, "
            f"got {found.dtype} {tuple(found.shape)}"
        )
    return found


def _restore_counts(levit: LEViT, values: Mapping[str, Any]) -> None:
    levit.counts = Counts(**values["counts"])
    levit.losses = Losses(*values["losses"])
    levit.novelty = values["novelty"]
    right, all_ = values["accuracy"]["overall"]
    levit.accuracy.overall = (right, all_)
    levit.accuracy.by_class = [(right, all_) for right, all_ in values["accuracy"]["by_class"]]


def _restore_memory(levit: LEViT, state: LearnerState) -> None:
    memory, tensors = levit.memory, state.tensors
    memory.clear(frozen=len(levit.mixture.frozen))
    memory.x = memory.x.to(getattr(torch, state.values["memory_dtype"]))
    n = memory.count = len(tensors["memory.y"])
    memory.x[:n] = _take(tensors, "memory.x", memory.x[:n])
    memory.y_M[:n] = _take(tensors, "memory.y", memory.y_M[:n])
    memory.ids_M2[:n] = _take(tensors, "memory.ids", memory.ids_M2[:n])
    memory.source_M[:n] = _take(tensors, "memory.source", memory.source_M[:n])
    memory.means_MJZ[:n] = _take(tensors, "memory.means", memory.means_MJZ[:n])
    memory.features_MJD[:n] = _take(tensors, "memory.features", memory.features_MJD[:n])
    memory.cursor = state.values["memory_cursor"]


def _named_learning_parameters(levit: LEViT) -> dict[str, nn.Parameter]:
    mixture = levit.mixture
    shared = {} if mixture.frozen else dict(mixture.backbone.named_parameters(prefix="backbone"))
    return shared | dict(mixture.active.named_parameters(prefix="expert"))


def _moments(levit: LEViT) -> dict[str, dict[str, Tensor]]:
    """Return what the optimiser keeps, by parameter; nothing before its first gradient."""
    state = levit.trainer.optimizer.state
    named = _named_learning_parameters(levit).items()
    return {name: state[parameter] for name, parameter in named if state.get(parameter)}


def _restore_optimizer(levit: LEViT, state: LearnerState) -> None:
    named = _named_learning_parameters(levit)
    for name in state.values["optimizer"]:
        parameter = named[name]
        likes = {"step": torch.zeros(()), "exp_avg": parameter, "exp_avg_sq": parameter}
        levit.trainer.optimizer.state[parameter] = {
            moment: _take(state.tensors, f"optimizer.{moment}.{name}", like).to(levit.device)
            for moment, like in likes.items()
        }
