"""The whole learner as named tensors and plain values, and back; nothing is left out.

Names: `backbone.*`, `experts.{id}.*` (weights and what a frozen encoder knows), `scaler.*`,
`optimizer.{moment}.{parameter}`, `generator`, `memory.*`. Ours.
"""

from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from learner.config import LearnerConfig
from learner.errors import StateError
from learner.expert import Expert, hollow
from learner.levit import Counts, LEViT
from learner.mixture import Life
from learner.scaler import Scaler
from learner.training import Losses

_MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # what Adam keeps of one parameter


@dataclass(frozen=True, slots=True)
class LearnerState:
    """All that a learner is; `tensors` fit a safetensors file, `values` a JSON file."""

    tensors: dict[str, Tensor]
    """Views, valid until the learner changes."""
    values: dict[str, Any]


def dump(levit: LEViT) -> LearnerState:
    """Return the whole state; saving changes nothing."""
    mixture, memory = levit.mixture, levit.memory
    tensors = {f"backbone.{name}": t for name, t in mixture.backbone.state_dict().items()}
    for index, life in enumerate(mixture.lives):
        weights = mixture.expert(index).state_dict()
        tensors |= {f"experts.{life.id}.{name}": tensor for name, tensor in weights.items()}
    tensors |= {"scaler.mean": levit.scaler.mean_V, "scaler.square": levit.scaler.square_V}
    tensors |= _optimizer_tensors(levit)
    tensors["generator"] = levit.generator.get_state()
    n = len(memory)
    tensors |= {
        "memory.x": memory.x[:n],
        "memory.y": memory.y_M[:n],
        "memory.ids": memory.ids_M2[:n],
        "memory.means": memory.means_MJZ[:n],
        "memory.features": memory.features_MJD[:n],
    }
    values = {
        "config": levit.config.to_values(),
        "classes": list(levit.classes),
        "experts": [asdict(life) for life in mixture.lives],
        "counts": asdict(levit.counts),
        "losses": [levit.losses.cross_entropy, levit.losses.negative_elbo],
        "novelty": levit.novelty,
        "accuracy": {"overall": levit.accuracy.overall, "by_class": levit.accuracy.by_class},
        "scaler_count": levit.scaler.count,
        "memory_cursor": memory.cursor,
        "memory_dtype": str(memory.x.dtype).removeprefix("torch."),
    }
    return LearnerState(tensors, values)


def restore(state: LearnerState, *, device: str = "cpu") -> LEViT:
    """Return the learner that `dump` described; continuing is bit-equal to never having stopped.

    Raises:
        StateError: naming the tensor that is missing or of another shape.
    """
    levit = restore_for_prediction(state, device=device)
    try:
        _restore_training(levit, state)
    except (KeyError, RuntimeError, ValueError, TypeError) as error:
        raise StateError(f"the state does not fit its configuration: {error}") from error
    return levit


def restore_for_prediction(state: LearnerState, *, device: str = "cpu") -> LEViT:
    """Return a learner that answers as the dumped one does; its memory and optimiser are fresh.

    Reads `backbone.*`, `experts.*`, `scaler.*` and the values only.

    Raises:
        StateError: naming the tensor that is missing or of another shape.
    """
    values = state.values
    try:
        levit = LEViT(LearnerConfig.from_values(values["config"]), device=device)
        levit.classes = list(values["classes"])
        levit.scaler = Scaler(
            values["scaler_count"],
            state.tensors["scaler.mean"].to(levit.device),
            state.tensors["scaler.square"].to(levit.device),
        )
        _restore_mixture(levit, state)
    except (KeyError, RuntimeError, ValueError, TypeError) as error:
        raise StateError(f"the state does not fit its configuration: {error}") from error
    return levit


def _restore_mixture(levit: LEViT, state: LearnerState) -> None:
    mixture = levit.mixture
    _fill(mixture.backbone, state.tensors, "backbone.", levit.device)
    mixture.lives = [Life(**life) for life in state.values["experts"]]
    mixture.experts = nn.ModuleList()
    for index, life in enumerate(mixture.lives):
        columns = len(life.classes)
        expert = hollow(partial(Expert, levit.config, classes=columns, frozen_before=index))
        _fill(expert, state.tensors, f"experts.{life.id}.", levit.device)
        mixture.experts.append(expert)
    mixture.settle()


def _fill(
    network: nn.Module, tensors: dict[str, Tensor], prefix: str, device: torch.device
) -> None:
    own = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    network.load_state_dict(own, assign=True)
    network.to(device)


def _restore_training(levit: LEViT, state: LearnerState) -> None:
    values, tensors, memory = state.values, state.tensors, levit.memory
    levit.counts = Counts(**values["counts"])
    levit.losses = Losses(*values["losses"])
    levit.novelty = values["novelty"]
    levit.accuracy.overall = tuple(values["accuracy"]["overall"])
    levit.accuracy.by_class = [tuple(counts) for counts in values["accuracy"]["by_class"]]
    levit.trainer.restart()
    _restore_optimizer(levit, tensors)
    memory.clear(frozen=len(levit.mixture.frozen))
    memory.x = memory.x.to(tensors["memory.x"].dtype)
    n = memory.count = len(tensors["memory.x"])
    memory.x[:n] = tensors["memory.x"]
    memory.y_M[:n] = tensors["memory.y"]
    memory.ids_M2[:n] = tensors["memory.ids"]
    memory.means_MJZ[:n] = tensors["memory.means"]
    memory.features_MJD[:n] = tensors["memory.features"]
    memory.cursor = values["memory_cursor"]
    levit.generator.set_state(tensors["generator"])


def _named_learning_parameters(levit: LEViT) -> dict[str, nn.Parameter]:
    mixture, active = levit.mixture, levit.mixture.active
    shared = {} if mixture.frozen else dict(mixture.backbone.named_parameters(prefix="backbone"))
    return shared | dict(active.named_parameters(prefix="expert"))


def _optimizer_tensors(levit: LEViT) -> dict[str, Tensor]:
    state = levit.trainer.optimizer.state
    return {
        f"optimizer.{moment}.{name}": value
        for name, parameter in _named_learning_parameters(levit).items()
        for moment, value in state.get(parameter, {}).items()
    }


def _restore_optimizer(levit: LEViT, tensors: dict[str, Tensor]) -> None:
    optimizer = levit.trainer.optimizer
    for name, parameter in _named_learning_parameters(levit).items():
        names = {moment: f"optimizer.{moment}.{name}" for moment in _MOMENTS}
        if any(saved in tensors for saved in names.values()):  # none before its first gradient
            optimizer.state[parameter] = {
                moment: tensors[saved].clone().to(levit.device) for moment, saved in names.items()
            }
