"""All that an answer of preset `default` needs, as named tensors and plain values, and back. Ours.

Names: `mixture.*`, `encoder.*`, `read_out.*`, `pools.*`, `recent.*` and `experts.{id}.{network,
vae,own}.*`. A frozen expert's never change.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from learner.adaptive_config import AdaptiveConfig
from learner.adaptive_mixture import AdaptiveExpert, AdaptiveMixture
from learner.blend import Pool
from learner.density import Usual
from learner.encoder import Encoder
from learner.errors import StateError
from learner.newborn import hollow_network, hollow_vae
from learner.readout import ReadOut
from learner.recent import Recent
from learner.report import Expansion, Life
from learner.state import DAMAGE, LearnerState

SERVED = ("mixture.", "encoder.", "read_out.", "pools.", "recent.", "experts.")
"""Beginnings of the names that `restore_for_prediction` reads."""

N = TypeVar("N", bound=nn.Module)
Tensors = Mapping[str, Tensor]


def restore_for_prediction(state: LearnerState, *, device: str = "cpu") -> AdaptiveMixture:
    """Return the mixture that answers as the dumped learner does; it may share the tensors.

    Reads the tensors whose names begin as in `SERVED`, and the values only.

    Raises:
        StateError: naming what is missing or of another shape.
    """
    check(state, served_only=True)
    try:
        return _restored_mixture(state.tensors, state.values, torch.device(device))
    except DAMAGE as error:
        raise StateError(f"the state does not fit its configuration: {error}") from error


def answering(mixture: AdaptiveMixture) -> dict[str, Tensor]:
    """Return all tensors that an answer needs."""
    tensors = {"mixture.counts": mixture.counts_K, "mixture.first": mixture.first_KV}
    if mixture.encoder is not None:
        tensors |= named("encoder", mixture.encoder.tensors())
    if mixture.read_out is not None:
        tensors |= named("read_out", _read_out_tensors(mixture.read_out))
    if mixture.recent is not None:
        tensors |= named("recent", mixture.recent.tensors())
    tensors |= {f"pools.{id_}": pool.weight_M for id_, pool in mixture.pools.items()}
    for expert in mixture.experts:
        prefix = f"experts.{expert.life.id}"
        tensors |= named(f"{prefix}.network", expert.network.state_dict())
        tensors |= named(f"{prefix}.vae", expert.vae.state_dict())
        if expert.own is not None:
            tensors |= named(f"{prefix}.own", _read_out_tensors(expert.own))
    return tensors


def answering_values(mixture: AdaptiveMixture) -> dict[str, Any]:
    """Return all plain values that an answer needs."""
    return {
        "config": mixture.config.to_values(),
        "classes": list(mixture.classes),
        "experts": [_expert_values(expert) for expert in mixture.experts],
        "encoder": None if mixture.encoder is None else mixture.encoder.values(),
        "read_out": mixture.read_out is not None,
        "pools": list(mixture.pools),
        "recent": None if mixture.recent is None else mixture.recent.values(),
        "overruled": mixture.overruled,
    }


def _expert_values(expert: AdaptiveExpert) -> dict[str, Any]:
    return {
        "life": asdict(expert.life),
        "usual": asdict(expert.usual),
        "columns": len(expert.network.head.bias_K),
        "own": expert.own is not None,
        "reads": expert.reads,
        "expansion": None if expert.expansion is None else asdict(expert.expansion),
    }


def check(state: LearnerState, *, served_only: bool) -> None:
    """Refuse a state that lacks a tensor, or has one of another type or shape.

    Raises:
        StateError: naming it.
    """
    for name, (dtype, *shape) in state.values.get("shapes", {"shapes": [""]}).items():
        if served_only and not name.startswith(SERVED):
            continue
        if name not in state.tensors:
            raise StateError(f"{name} is missing")
        found = state.tensors[name]
        if (str(found.dtype), list(found.shape)) != (dtype, shape):
            raise StateError(
                f"expected {name} as {dtype} {tuple(shape)}, got {found.dtype} {tuple(found.shape)}"
            )


def _restored_mixture(
    tensors: Tensors, values: Mapping[str, Any], device: torch.device
) -> AdaptiveMixture:
    mixture = AdaptiveMixture(AdaptiveConfig.from_values(values["config"]), device)
    mixture.classes = list(values["classes"])
    mixture.counts_K, mixture.first_KV = tensors["mixture.counts"], tensors["mixture.first"]
    mixture.overruled = values["overruled"]
    if values["encoder"] is not None:
        shape = mixture.config.input_shape
        mixture.encoder = Encoder.restored(shape, under(tensors, "encoder"), values["encoder"])
    if values["read_out"]:
        mixture.read_out = _restored_read_out(under(tensors, "read_out"))
    mixture.pools = {id_: Pool(tensors[f"pools.{id_}"]) for id_ in values["pools"]}
    if values["recent"] is not None:
        mixture.recent = Recent.restored(under(tensors, "recent"), values["recent"])
    for facts in values["experts"]:
        mixture.experts.append(_restored_expert(mixture, tensors, facts))
    for frozen in mixture.experts[:-1]:
        frozen.network.requires_grad_(requires_grad=False)
        frozen.vae.requires_grad_(requires_grad=False)
    return mixture


def _restored_expert(
    mixture: AdaptiveMixture, tensors: Tensors, facts: Mapping[str, Any]
) -> AdaptiveExpert:
    life = Life(**{**facts["life"], "classes": list(facts["life"]["classes"])})
    own = under(tensors, f"experts.{life.id}")
    network = hollow_network(mixture, classes=facts["columns"], reads=facts["reads"] is not None)
    return AdaptiveExpert(
        life=life,
        network=filled(network, under(own, "network")),
        vae=filled(hollow_vae(mixture), under(own, "vae")),
        usual=Usual(**facts["usual"]),
        own=_restored_read_out(under(own, "own")) if facts["own"] else None,
        reads=facts["reads"],
        expansion=None if facts["expansion"] is None else Expansion(**facts["expansion"]),
    )


def filled(network: N, tensors: Tensors) -> N:
    """Give a network without values these, each of its shape."""
    network.load_state_dict(dict(tensors), assign=True)
    return network


def _read_out_tensors(read_out: ReadOut) -> dict[str, Tensor]:
    return {
        "weight": read_out.weight_DK,
        "bias": read_out.bias_K,
        "log_frequency": read_out.log_frequency_K,
    }


def _restored_read_out(tensors: Tensors) -> ReadOut:
    return ReadOut(tensors["weight"], tensors["bias"], tensors["log_frequency"])


def named(prefix: str, tensors: Tensors) -> dict[str, Tensor]:
    """Return the tensors of one part, by their names in the whole."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def under(tensors: Tensors, prefix: str) -> dict[str, Tensor]:
    """Return the tensors of one part, by its own names."""
    start = f"{prefix}."
    return {n.removeprefix(start): t for n, t in tensors.items() if n.startswith(start)}
