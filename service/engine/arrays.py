"""Arrays of the service as the learner's tensors, and back.

Dimension key: B batch, C channels, H height, W width, M replay members.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

import learner
from service.engine.protocol import Array, EngineState, Members
from service.inputs import InputSchema


@dataclass(frozen=True, slots=True)
class Layout:
    """Where a preset keeps what, by the beginnings of its tensors' names."""

    served: tuple[str, ...]
    """What a predictor needs, beside the experts."""
    held: tuple[str, ...]
    """What has members: samples `x`, `y` and `ids`; `x` lies in Redis, by id."""


LAYOUTS: Mapping[str, Layout] = {
    "default": Layout(
        served=("mixture.", "encoder.", "read_out.", "pools.", "recent."),
        held=("pending", "replay"),
    ),
    "paper": Layout(served=("backbone.", "scaler."), held=("memory",)),
}


def sample_shape(schema: InputSchema, preset: str) -> tuple[int, ...]:
    """Return (C, H, W) for images; (D,) for vectors; (T, C) for series, flattened in `paper`."""
    if schema.kind == "image":
        height, width, channels = schema.shape
        return channels, height, width
    return (schema.values,) if preset == "paper" else schema.shape


def samples(x: Array, shape: tuple[int, ...]) -> Tensor:
    """Return canonical samples as the learner takes them, [B, *shape]; no copy."""
    tensor = torch.from_numpy(x)
    if tensor.dim() == 4:  # noqa: PLR2004  images: channels first
        return tensor.permute(0, 3, 1, 2)
    return tensor.reshape(len(tensor), *shape)


def payloads(x: Sequence[Array], shape: tuple[int, ...], dtype: str) -> Tensor:
    """Return replay payloads as they were held: `uint8`, or `float32` once one came."""
    if not x:
        return torch.empty(0, *shape, dtype=getattr(torch, dtype))
    if dtype == "uint8":
        return samples(np.stack(x), shape)
    return torch.cat([learner.unit(samples(one[None], shape)) for one in x])


def state_tensors(state: EngineState) -> dict[str, Tensor]:
    """Return all arrays of a state by name, without the members'."""
    groups = (*state.frozen.values(), state.served, state.training)
    return {name: torch.from_numpy(array) for group in groups for name, array in group.items()}


def with_members(state: EngineState, members: Members, shape: tuple[int, ...]) -> dict[str, Tensor]:
    """Return all tensors of a state, the members' taken from where they lie.

    Args:
        state: of either preset.
        members: the payloads of `state.members`.
        shape: of one sample, as the learner takes it.
    """
    tensors, start = state_tensors(state), 0
    preset = state.values["config"].get("preset", "paper")
    for part in LAYOUTS[preset].held:
        if f"{part}.y" not in tensors:
            continue
        rows = slice(start, start + len(tensors[f"{part}.y"]))
        tensors[f"{part}.ids"] = torch.from_numpy(state.members[rows])
        dtype = state.values[f"{part}_dtype"]
        tensors[f"{part}.x"] = payloads(members.x[rows], shape, dtype)
        start = rows.stop
    return tensors


def expert_ids(tensors: Iterable[str]) -> list[int]:
    """Return the ids of the experts that have tensors, ascending; the last one is active."""
    return sorted({int(name.split(".")[1]) for name in tensors if name.startswith("experts.")})


def member_ids(tensors: Mapping[str, Tensor], layout: Layout) -> Tensor:
    """Return the ids of all members, [M, 2]."""
    ids = [tensors[f"{part}.ids"] for part in layout.held if f"{part}.ids" in tensors]
    return torch.cat(ids)


def is_member(name: str, layout: Layout) -> bool:
    """Say whether a tensor lies elsewhere: in `EngineState.members` or in Redis."""
    part, _, leaf = name.partition(".")
    return part in layout.held and leaf in {"x", "ids"}
