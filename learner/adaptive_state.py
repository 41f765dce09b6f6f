"""The whole learner of preset `default` as named tensors and plain values, and back. Ours.

Names beside those of `adaptive_served`: `memory.*` and `own.*` (sums), `replay.*`, `pending.*`,
`scorer.*`, `change.*`, `optimizer.{network,density}.{moment}.{parameter}` and `generator`. What can
be made again bit for bit, the tokens of replayed samples, is left out.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from learner.adaptive import AdaptiveLEViT
from learner.adaptive_parts import AdaptiveCounts
from learner.adaptive_served import (
    answering,
    answering_values,
    check,
    filled,
    named,
    restore_for_prediction,
    under,
)
from learner.adaptive_training import AdaptiveTraining
from learner.arrivals import Arrivals
from learner.density import Usual
from learner.detector import ChangeDetector
from learner.encoder import Encoder
from learner.error_detector import ErrorDetector
from learner.errors import StateError
from learner.growth import Growth, Scorer
from learner.knowledge import Knowledge, Marks
from learner.newborn import hollow_vae
from learner.report import Losses
from learner.state import DAMAGE, MOMENTS, LearnerState
from learner.witnesses import Witnesses

_SOMETIMES_READ = ("marks", "optimizer", "pending", "pending_dtype", "replay_dtype")


def dump(levit: AdaptiveLEViT) -> LearnerState:
    """Return the whole state; saving changes nothing."""
    tensors = answering(levit.mixture) | _learning(levit)
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}  # as files want them
    values = answering_values(levit.mixture) | _values(levit, tensors)
    values["shapes"] = {name: [str(t.dtype), *t.shape] for name, t in tensors.items()}
    return LearnerState(tensors, values)


def restore(state: LearnerState, *, device: str = "cpu") -> AdaptiveLEViT:
    """Return the learner that `dump` described; continuing is bit-equal to never having stopped.

    It shares nothing with `state`, which may be restored again.

    Raises:
        StateError: naming what is missing or of another shape.
    """
    check(state, served_only=False)
    for name in _SOMETIMES_READ:
        if name not in state.values:
            raise StateError(f"{name} is missing")
    copies = {n: t.clone(memory_format=torch.contiguous_format) for n, t in state.tensors.items()}
    own = LearnerState(copies, state.values)
    mixture = restore_for_prediction(own, device=device)
    try:
        levit = AdaptiveLEViT(mixture.config, device=device)
        levit.mixture = mixture
        levit.generator.set_state(copies["generator"])
        _restore_counts(levit, state.values)
        _restore_growth(levit, own)
        if mixture.encoder is None:
            _restore_pending(levit, own)
        else:
            _restore_knowledge(levit, mixture.encoder, own)
            _restore_training(levit, own)
    except DAMAGE as error:
        raise StateError(f"the state does not fit its configuration: {error}") from error
    return levit


def _learning(levit: AdaptiveLEViT) -> dict[str, Tensor]:
    """Return the tensors that only the learner itself needs."""
    tensors = {"generator": levit.generator.get_state()}
    tensors |= named("replay", levit.replay.tensors())
    tensors |= named("change", levit.growth.change.tensors())
    if levit.pending:
        held = Arrivals.joined(levit.pending)
        tensors |= named("pending", _held(held))
    if levit.knowledge is not None:
        tensors |= named("memory", levit.knowledge.memory.tensors())
        tensors |= named("own", levit.knowledge.own.tensors())
    if levit.growth.scorer is not None:
        tensors |= named("scorer", levit.growth.scorer.vae.state_dict())
    for which, moments in _moments(levit).items():
        for name, state in moments.items():
            tensors |= {f"optimizer.{which}.{m}.{name}": state[m] for m in MOMENTS}
    return tensors


def _held(held: Arrivals) -> dict[str, Tensor]:
    return {
        "x": held.x,
        "y": held.y_B,
        "ids": held.ids_B2,
        "first": held.first_B,
        "source": held.source_B,
    }


def _values(levit: AdaptiveLEViT, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    growth, known = levit.growth, levit.knowledge
    return {
        "counts": asdict(levit.counts),
        "losses": [levit.losses.cross_entropy, levit.losses.negative_elbo],
        "accuracy": {"overall": levit.accuracy.overall, "by_class": levit.accuracy.by_class},
        "marks": None if known is None else asdict(known.marks),
        "optimizer": {which: list(moments) for which, moments in _moments(levit).items()},
        "change": growth.change.values(),
        "errors": growth.errors.values(),
        "witnesses": growth.witnesses.values(),
        "scorer": None if growth.scorer is None else asdict(growth.scorer.usual),
        "due": growth.due,
        "pending": sum(len(part.y_B) for part in levit.pending),
        "pending_dtype": _dtype(tensors.get("pending.x")),
        "replay_dtype": _dtype(tensors["replay.x"]),
    }


def _restore_counts(levit: AdaptiveLEViT, values: Mapping[str, Any]) -> None:
    levit.counts = AdaptiveCounts(**values["counts"])
    levit.losses = Losses(*values["losses"])
    right, all_ = values["accuracy"]["overall"]
    levit.accuracy.overall = (right, all_)
    levit.accuracy.by_class = [(right, all_) for right, all_ in values["accuracy"]["by_class"]]


def _restore_growth(levit: AdaptiveLEViT, state: LearnerState) -> None:
    values, scorer = state.values, None
    if values["scorer"] is not None:
        vae = filled(hollow_vae(levit.mixture), under(state.tensors, "scorer"))
        scorer = Scorer(vae.requires_grad_(requires_grad=False), Usual(**values["scorer"]))
    levit.growth = Growth(
        change=ChangeDetector.restored(under(state.tensors, "change"), values["change"]),
        errors=ErrorDetector.restored(values["errors"]),
        witnesses=Witnesses.restored(values["witnesses"]),
        scorer=scorer,
        due=values["due"],
    )


def _restore_pending(levit: AdaptiveLEViT, state: LearnerState) -> None:
    if state.values["pending"]:
        held = under(state.tensors, "pending")
        levit.pending = (
            Arrivals(held["x"], held["y"], held["ids"], held["first"], held["source"]),
        )


def _restore_knowledge(levit: AdaptiveLEViT, encoder: Encoder, state: LearnerState) -> None:
    known = Knowledge(encoder.features, encoder.own_features, levit.device)
    known.memory.restore(under(state.tensors, "memory"))
    known.own.restore(under(state.tensors, "own"))
    marks = state.values["marks"]
    known.marks = Marks(**{**marks, "part_accuracy": tuple(marks["part_accuracy"])})
    levit.knowledge = known
    levit.replay = levit.fresh_buffer(encoder)
    levit.replay.restore(under(state.tensors, "replay"))


def _restore_training(levit: AdaptiveLEViT, state: LearnerState) -> None:
    if levit.config.budget == 0:
        return
    levit.training = training = AdaptiveTraining(levit.mixture)
    for which, (optimizer, parameters) in _optimizers(training).items():
        for name in state.values["optimizer"][which]:
            optimizer.state[parameters[name]] = {
                m: state.tensors[f"optimizer.{which}.{m}.{name}"] for m in MOMENTS
            }


def _optimizers(
    training: AdaptiveTraining,
) -> dict[str, tuple[torch.optim.Optimizer, dict[str, nn.Parameter]]]:
    """Return each optimiser with the parameters it moves, by name."""
    active = training.mixture.active
    return {
        "network": (training.network, dict(active.network.named_parameters())),
        "density": (training.density, dict(active.vae.named_parameters())),
    }


def _moments(levit: AdaptiveLEViT) -> dict[str, dict[str, dict[str, Tensor]]]:
    """Return what the optimisers keep, by parameter; nothing before its first gradient."""
    found: dict[str, dict[str, dict[str, Tensor]]] = {"network": {}, "density": {}}
    if levit.training is not None:
        for which, (optimizer, parameters) in _optimizers(levit.training).items():
            states = {name: optimizer.state.get(p) for name, p in parameters.items()}
            found[which] = {name: state for name, state in states.items() if state}
    return found


def _dtype(tensor: Tensor | None) -> str | None:
    return None if tensor is None else str(tensor.dtype).removeprefix("torch.")
