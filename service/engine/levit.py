"""LEViT behind the seam: arrays become tensors here, and settings the learner's configuration.

The only file of the service that knows torch and the learner.
Dimension key: B batch, C channels, H height, W width, M replay members.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

import learner
from service.engine.protocol import (
    Array,
    EngineState,
    EntryRefused,
    ExpertInfo,
    Labels,
    Members,
    ObserveReport,
    Prediction,
    Summary,
)
from service.errors import CorruptState, SettingsError
from service.inputs import InputSchema
from service.settings import Settings

_SERVED = ("backbone.", "scaler.")
_PAYLOAD = "memory.x"


class LevitEngines:
    """Makes and restores engines and predictors."""

    def __init__(self, *, threads: int) -> None:
        """Fix the number of CPU threads, before the first tensor; the bits depend on it."""
        torch.set_num_threads(threads)
        torch.backends.cudnn.allow_tf32 = False  # scores of GPU and CPU must route alike

    def create(self, settings: Settings, schema: InputSchema) -> "LevitEngine":
        """Return a fresh engine for samples of `schema`.

        Raises:
            SettingsError: a learner setting does not fit, or CUDA was asked for and is absent.
        """
        config = _config(settings, schema)
        return LevitEngine(learner.LEViT(config, device=_device(settings.device)), schema)

    def restore(self, settings: Settings, state: EngineState, members: Members) -> "LevitEngine":
        """Return the engine that `dump` described, bit-equal to never having stopped.

        Raises:
            SettingsError: a learner setting differs from the one the state was made with.
            CorruptState: an array is missing or has another shape.
        """
        try:
            schema = InputSchema.parse(state.values["schema"])
            _require_equal(state.values["config"], _config(settings, schema).to_values())
            tensors = _tensors(state)
            tensors["memory.ids"] = torch.from_numpy(state.members)
            tensors[_PAYLOAD] = _payloads(members, schema, state.values["memory_dtype"])
            whole = learner.LearnerState(tensors, state.values)
            return LevitEngine(learner.restore(whole, device=_device(settings.device)), schema)
        except (KeyError, ValueError) as error:
            raise CorruptState(f"the checkpoint cannot be restored: {error}") from error

    def predictor(self, state: EngineState) -> "LevitPredictor":
        """Return a predictor on the CPU.

        Raises:
            CorruptState: an array is missing or has another shape.
        """
        try:
            schema = InputSchema.parse(state.values["schema"])
            whole = learner.LearnerState(_tensors(state), state.values)
            return LevitPredictor(learner.restore_for_prediction(whole), schema)
        except (KeyError, ValueError) as error:
            raise CorruptState(f"the snapshot cannot be served: {error}") from error


class LevitEngine:
    """A `service.engine.protocol.Engine` around one LEViT."""

    def __init__(self, levit: learner.LEViT, schema: InputSchema) -> None:
        """Take over a learner; nobody else may touch it."""
        self._levit = levit
        self._schema = schema

    def observe(self, entry_number: int, x: Array, labels: Labels | None) -> ObserveReport:
        """Learn once from one mini-batch; see the protocol."""
        y = torch.from_numpy(labels) if isinstance(labels, np.ndarray) else labels
        try:
            report = self._levit.observe(_tensor(x), y, entry_number=entry_number)
        except learner.LearnerError as error:
            raise EntryRefused(str(error)) from error
        return ObserveReport(
            step=report.step,
            expert=report.expert,
            labelled=report.labelled,
            correct=report.correct,
            novelty=report.novelty,
            expanded=report.expanded,
            loss=_losses(self._levit),
            added=report.added,
        )

    def dump(self) -> EngineState:
        """Return the whole state but the replay payloads; the arrays are views."""
        state = learner.dump(self._levit)
        lives = state.values["experts"]
        active = f"experts.{lives[-1]['id']}."
        frozen: dict[int, dict[str, Array]] = {life["id"]: {} for life in lives[:-1]}
        served: dict[str, Array] = {}
        training: dict[str, Array] = {}
        for name, tensor in state.tensors.items():
            array = tensor.detach().cpu().numpy()
            if name.startswith((active, *_SERVED)):
                served[name] = array
            elif name.startswith("experts."):
                frozen[int(name.split(".")[1])][name] = array
            elif name not in (_PAYLOAD, "memory.ids"):
                training[name] = array
        return EngineState(
            frozen=frozen,
            served=served,
            training=training,
            members=state.tensors["memory.ids"].numpy(),
            values={**state.values, "schema": str(self._schema)},
        )

    def summary(self) -> Summary:
        """Return what can be watched."""
        levit = self._levit
        counts, memory = levit.counts, levit.memory
        known = levit.mixture.classes
        held = torch.bincount(memory.y_M[: len(memory)] + 1, minlength=len(known) + 1)
        experts = _expert_infos(levit)
        shared = sum(p.numel() for p in levit.mixture.backbone.parameters())
        return Summary(
            step=counts.step,
            samples_learned=counts.samples,
            samples_labelled=counts.labelled,
            samples_correct=counts.correct,
            classes=tuple(known),
            experts=experts,
            expansions=counts.expansions,
            expansions_refused={"max_experts": counts.refused_max_experts},
            novelty=levit.novelty,
            threshold=levit.config.expansion.threshold,
            prequential_accuracy=levit.accuracy.accuracy,
            prequential_by_class=tuple(levit.accuracy.class_accuracy),
            replay_capacity=memory.capacity,
            replay_by_class=tuple(held[1:].tolist()),
            replay_unlabelled=int(held[0]),
            loss=_losses(levit),
            parameters=shared + sum(expert.parameters for expert in experts),
            state_bytes=sum(t.nbytes for t in learner.dump(levit).tensors.values()),
        )


class LevitPredictor:
    """A `service.engine.protocol.Predictor` around one mixture that never learns again."""

    def __init__(self, mixture: learner.Mixture, schema: InputSchema) -> None:
        """Take over a mixture that nobody changes any more."""
        self._mixture = mixture
        self._schema = schema

    @property
    def schema(self) -> InputSchema:
        """What a sample is."""
        return self._schema

    def predict(self, x: Array) -> Prediction:
        """Return the answers for samples [B, *schema.shape], uint8 or float32."""
        answer = self._mixture.predict(_tensor(x))
        return Prediction(
            classes=answer.classes,
            probabilities=answer.probabilities_BK.numpy(),
            experts=answer.experts_B.numpy(),
            novelty=answer.novelty_B.numpy(),
        )


def _config(settings: Settings, schema: InputSchema) -> learner.LearnerConfig:
    try:
        return learner.paper(
            _learner_shape(schema),
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
    except learner.ConfigError as error:
        raise SettingsError(f"the learner's settings: {error}") from error


def _require_equal(
    made_with: Mapping[str, Any], now: Mapping[str, Any], part: str = "learner"
) -> None:
    """Refuse to go on with other hyper-parameters than the state was made with."""
    for name, value in now.items():
        before = made_with.get(name)
        if isinstance(value, dict) and isinstance(before, dict):
            _require_equal(before, value, name)
        elif before != value:
            raise SettingsError(
                f"{part} {name}: the state directory was made with {before}, the settings say "
                f"{value}; restore the setting or start with another LEVIT_STATE_DIR"
            )


def _device(wish: Literal["auto", "cpu", "cuda"]) -> str:
    present = torch.cuda.is_available()
    if wish == "cuda" and not present:
        raise SettingsError("LEVIT_DEVICE: expected a CUDA device, found none; use auto or cpu")
    return "cuda" if present and wish != "cpu" else "cpu"


def _learner_shape(schema: InputSchema) -> tuple[int, ...]:
    """Return (C, H, W) for images; (values,) for vectors and, flattened, series."""
    if schema.kind == "image":
        height, width, channels = schema.shape
        return channels, height, width
    return (schema.values,)


def _tensor(x: Array) -> Tensor:
    """Return canonical samples as the learner takes them: [B, C, H, W] or [B, values], no copy."""
    tensor = torch.from_numpy(x)
    return tensor.permute(0, 3, 1, 2) if tensor.dim() == 4 else tensor.flatten(1)  # noqa: PLR2004


def _payloads(members: Members, schema: InputSchema, dtype: str) -> Tensor:
    """Return the replay payloads as the memory held them: `uint8`, or `float32` once one came."""
    if not members.x:
        return torch.empty(0, *_learner_shape(schema), dtype=getattr(torch, dtype))
    if dtype == "uint8":
        return _tensor(np.stack(members.x))
    return torch.cat([learner.unit(_tensor(x[None])) for x in members.x])


def _tensors(state: EngineState) -> dict[str, Tensor]:
    groups = (*state.frozen.values(), state.served, state.training)
    return {name: torch.from_numpy(array) for group in groups for name, array in group.items()}


def _losses(levit: learner.LEViT) -> dict[str, float]:
    terms = asdict(levit.losses)
    return {name: value for name, value in terms.items() if value is not None}


def _expert_infos(levit: learner.LEViT) -> tuple[ExpertInfo, ...]:
    infos = []
    for index, life in enumerate(levit.mixture.lives):
        weights = list(levit.mixture.ordered[index].parameters())
        infos.append(
            ExpertInfo(
                id=life.id,
                state="active" if life.frozen_step is None else "frozen",
                born_step=life.born_step,
                frozen_step=life.frozen_step,
                novelty=life.novelty,
                samples=life.samples,
                classes=tuple(levit.mixture.classes[k] for k in life.classes),
                parameters=sum(p.numel() for p in weights),
                bytes=sum(p.nbytes for p in weights),
            )
        )
    return tuple(infos)
