"""The learner's configuration and device, made of settings and of what a sample is."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

import learner
from service.engine.arrays import sample_shape
from service.errors import SettingsError
from service.inputs import InputSchema
from service.settings import Settings

Config = learner.LearnerConfig | learner.AdaptiveConfig
VALUE_BYTES, MEMBER_BYTES = 4, 1024
"""Of one value of a replay member, and of what a member costs beside its values: label, hash and id
in Redis, and its place in the books of worker and checkpoints."""


def configured(settings: Settings, schema: InputSchema) -> Config:
    """Return the configuration of the preset that the settings name.

    Raises:
        SettingsError: a learner setting does not fit.
    """
    make = _default if settings.preset == "default" else _paper
    try:
        return make(settings, schema)
    except learner.ConfigError as error:
        raise SettingsError(f"the learner's settings: {error}") from error


def require_same(made_with: Mapping[str, Any], now: Config) -> None:
    """Refuse to go on with other hyper-parameters than a state was made with.

    Raises:
        SettingsError: naming the first that differs.
    """
    values = {"preset": "paper", **now.to_values()}
    _require_equal({"preset": "paper", **made_with}, values, "learner")


def device(settings: Settings) -> str:
    """Return where the worker's learner computes, `cpu` or `cuda`.

    Raises:
        SettingsError: CUDA was asked for, and is absent or not for this preset.
    """
    wish, present = settings.device, torch.cuda.is_available()
    if settings.preset == "default":
        if wish == "cuda":
            raise SettingsError(
                "LEVIT_DEVICE: preset default computes on the CPU; use auto or cpu, "
                "or LEVIT_PRESET=paper"
            )
        return "cpu"
    if wish == "cuda" and not present:
        raise SettingsError("LEVIT_DEVICE: expected a CUDA device, found none; use auto or cpu")
    return "cuda" if present and wish != "cpu" else "cpu"


def _default(settings: Settings, schema: InputSchema) -> learner.AdaptiveConfig:
    """Return preset `default`, with no more members than their bytes allow in Redis too."""
    held = settings.replay_bytes // (VALUE_BYTES * schema.values + MEMBER_BYTES)
    config = learner.AdaptiveConfig(
        input_shape=sample_shape(schema, "default"),
        budget=settings.budget,
        statistics_bytes=settings.statistics_bytes,
        capacity=min(held, settings.capacity or held),
        replay_bytes=settings.replay_bytes,
        source_share=settings.key_replay_share,
        false_expansion_probability=settings.false_expansion_probability,
        horizon=settings.false_expansion_horizon,
        max_experts=settings.max_experts,
        fusion=settings.fusion,
        seed=settings.seed,
    )
    if settings.learning_rate is None:
        return config
    return replace(config, learning_rate=settings.learning_rate)


def _paper(settings: Settings, schema: InputSchema) -> learner.LearnerConfig:
    return learner.paper(
        sample_shape(schema, "paper"),
        kind=settings.expert,
        fusion=settings.fusion,
        patch=settings.patch,
        threshold=settings.threshold,
        capacity=settings.capacity,
        per_batch=settings.replay_per_batch,
        learning_rate=settings.learning_rate,
        max_experts=settings.max_experts,
        seed=settings.seed,
    )


def _require_equal(made_with: Mapping[str, Any], now: Mapping[str, Any], part: str) -> None:
    for name, value in now.items():
        before = made_with.get(name)
        if isinstance(value, dict) and isinstance(before, dict):
            _require_equal(before, value, name)
        elif before != value:
            raise SettingsError(
                f"{part} {name}: the state directory was made with {before}, the settings say "
                f"{value}; restore the setting or start with another LEVIT_STATE_DIR"
            )
