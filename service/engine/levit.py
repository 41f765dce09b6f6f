"""LEViT behind the seam: arrays become tensors here, and settings the learner's configuration.

With its neighbours in this folder the only file of the service that knows torch and the learner.
Dimension key: B batch, M replay members.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import learner
from service.engine import arrays, configs, summaries
from service.engine.arrays import LAYOUTS, sample_shape
from service.engine.explanation import Explanation, Heat
from service.engine.protocol import (
    Array,
    EngineState,
    EntryRefused,
    Labels,
    Members,
    ObserveReport,
    Origin,
    Prediction,
    Purged,
    Stored,
    Summary,
)
from service.errors import CorruptState
from service.inputs import InputSchema
from service.settings import Settings


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
        config, device = configs.configured(settings, schema), configs.device(settings)
        if isinstance(config, learner.AdaptiveConfig):
            return LevitEngine(learner.AdaptiveLEViT(config, device=device), schema)
        return LevitEngine(learner.LEViT(config, device=device), schema)

    def restore(self, settings: Settings, state: EngineState, members: Members) -> "LevitEngine":
        """Return the engine that `dump` described, bit-equal to never having stopped.

        Raises:
            SettingsError: a learner setting differs from the one the state was made with.
            CorruptState: an array is missing or has another shape.
        """
        try:
            schema = InputSchema.parse(state.values["schema"])
            configs.require_same(state.values["config"], configs.configured(settings, schema))
            tensors = arrays.with_members(state, members, sample_shape(schema, settings.preset))
            whole = learner.LearnerState(tensors, state.values)
            levit = learner.restore(whole, device=configs.device(settings))
            return LevitEngine(levit, schema)
        except (KeyError, ValueError) as error:
            raise CorruptState(f"the checkpoint cannot be restored: {error}") from error

    def predictor(self, state: EngineState) -> "LevitPredictor":
        """Return a predictor on the CPU.

        Raises:
            CorruptState: an array is missing or has another shape.
        """
        try:
            schema = InputSchema.parse(state.values["schema"])
            whole = learner.LearnerState(arrays.state_tensors(state), state.values)
            return LevitPredictor(learner.restore_for_prediction(whole), schema)
        except (KeyError, ValueError) as error:
            raise CorruptState(f"the snapshot cannot be served: {error}") from error


class LevitEngine:
    """A `service.engine.protocol.Engine` around one learner of either preset."""

    def __init__(self, levit: learner.LEViT | learner.AdaptiveLEViT, schema: InputSchema) -> None:
        """Take over a learner; nobody else may touch it."""
        self._levit = levit
        self._schema = schema
        adaptive = isinstance(levit, learner.AdaptiveLEViT)
        self._layout = LAYOUTS["default" if adaptive else "paper"]

    def observe(self, origin: Origin, x: Array, labels: Labels | None) -> ObserveReport:
        """Learn once from one mini-batch; see the protocol."""
        number, source = origin
        y = torch.from_numpy(labels) if isinstance(labels, np.ndarray) else labels
        try:
            report = self._levit.observe(self._samples(x), y, entry_number=number, source=source)
        except learner.LearnerError as error:
            raise EntryRefused(str(error)) from error
        return self._report(report)

    def label(
        self, origin: Origin, x: Array, labels: Labels, right: Sequence[bool | None]
    ) -> ObserveReport:
        """Learn the labels of samples that were observed before; see the protocol."""
        number, source = origin
        try:
            report = self._levit.label(
                self._samples(x), _as_tensor(labels), right, entry_number=number, source=source
            )
        except learner.LearnerError as error:
            raise EntryRefused(str(error)) from error
        return self._report(report)

    def purge(self, writer: int, stored: Iterable[Stored]) -> Purged:
        """Take back what a writer has sent; see the protocol."""
        tensors = (
            learner.Stored(one.number, self._samples(one.x), _as_tensor(one.labels))
            for one in stored
        )
        told = learner.purge(self._levit, writer, tensors)
        return Purged(replay=told.replay, unlearned=told.unlearned)

    def expand(self) -> bool:
        """Grow by one expert now; return whether it could."""
        return self._levit.expand()

    def recall(self, x: Array) -> Prediction:
        """Return what the learner knows of the past for samples [B, *schema.shape]."""
        return _prediction(self._levit.recall(self._samples(x)))

    def dump(self) -> EngineState:
        """Return the whole state but the replay payloads; the arrays are views."""
        state, layout = learner.dump(self._levit), self._layout
        ids = arrays.expert_ids(state.tensors)
        active = [f"experts.{id_}." for id_ in ids[-1:]]
        frozen: dict[int, dict[str, Array]] = {id_: {} for id_ in ids[:-1]}
        served: dict[str, Array] = {}
        training: dict[str, Array] = {}
        for name, tensor in state.tensors.items():
            array = tensor.detach().cpu().numpy()
            if name.startswith((*active, *layout.served)):
                served[name] = array
            elif name.startswith("experts."):
                frozen[int(name.split(".")[1])][name] = array
            elif not arrays.is_member(name, layout):
                training[name] = array
        return EngineState(
            frozen=frozen,
            served=served,
            training=training,
            members=arrays.member_ids(state.tensors, layout).numpy(),
            values={**state.values, "schema": str(self._schema)},
        )

    def summary(self) -> Summary:
        """Return what can be watched."""
        return summaries.summary(self._levit)

    def _report(self, report: learner.ObserveReport) -> ObserveReport:
        return ObserveReport(
            step=report.step,
            expert=report.expert,
            labelled=report.labelled,
            correct=report.correct,
            tested=report.tested,
            novelty=report.novelty,
            expanded=report.expanded,
            loss=summaries.losses(self._levit),
            added=report.added,
        )

    def _samples(self, x: Array) -> Tensor:
        return arrays.samples(x, self._levit.config.input_shape)


class LevitPredictor:
    """A `service.engine.protocol.Predictor` around one mixture that never learns again."""

    def __init__(
        self, mixture: learner.Mixture | learner.AdaptiveMixture, schema: InputSchema
    ) -> None:
        """Take over a mixture that nobody changes any more."""
        self._mixture = mixture
        self._schema = schema

    @property
    def lost(self) -> bool:
        """Never: it lives in this process."""
        return False

    @property
    def schema(self) -> InputSchema:
        """What a sample is."""
        return self._schema

    def predict(self, x: Array) -> Prediction:
        """Return the answers for samples [B, *schema.shape], uint8 or float32."""
        return _prediction(self._mixture.predict(self._samples(x)))

    def explain(self, x: Array) -> Explanation:
        """Return why the samples [B, *schema.shape] are answered as they are."""
        told = learner.explain(self._mixture, self._samples(x))
        return Explanation(
            ids=told.ids,
            weights=told.weights_BE.numpy(),
            parts=told.parts,
            novelty=told.novelty_B.numpy(),
            heat=[None if h is None else Heat(h.kind, h.cells.numpy()) for h in told.heat],
        )

    def features(self, x: Array) -> NDArray[np.float32]:
        """Return what samples [B, *schema.shape] are to the learner, [B, D]."""
        features_BD: NDArray[np.float32] = learner.features(self._mixture, self._samples(x)).numpy()
        return features_BD

    def draw(self, expert: int, n: int) -> Array:
        """Return n samples of an expert's density model; see the protocol."""
        x = learner.drawn(self._mixture, expert, n)
        if self._schema.kind == "image" and len(x):
            pixels: Array = (x * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
            return pixels
        return x.numpy().reshape(len(x), *self._schema.shape)

    def _samples(self, x: Array) -> Tensor:
        return arrays.samples(x, self._mixture.config.input_shape)


def _as_tensor(labels: Labels) -> Tensor | Sequence[str]:
    return torch.from_numpy(labels) if isinstance(labels, np.ndarray) else labels


def _prediction(answer: learner.Prediction) -> Prediction:
    return Prediction(
        classes=answer.classes,
        probabilities=answer.probabilities_BK.numpy(),
        experts=answer.experts_B.numpy(),
        novelty=answer.novelty_B.numpy(),
    )
