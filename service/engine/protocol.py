"""The learner as the service sees it: numpy arrays and plain values, never a tensor.

`Engine` learns (worker), `Predictor` answers (API); `service.engine.levit` implements both with
torch, the tests' toy engine without. An engine does not know Redis, files or clocks.
Dimension key: B batch, M members of the replay memory; a sample has the shape of its InputSchema.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from service.engine.explanation import Explanation
from service.inputs import InputSchema
from service.settings import Settings

Array = NDArray[Any]
Tensors = Mapping[str, Array]
"""Named arrays, as a safetensors file holds them."""
Label = int | str
Labels = NDArray[np.int64] | Sequence[str]
"""One per sample: integers >= 0 with -1 for none, or strings with "" for none."""
MemberId = tuple[int, int]
"""A sample of the log: (entry number, index in its batch)."""
NO_ANSWER = -1
"""In place of the class that was answered, where no class was known."""
OTHER = -2
"""In its place where the answer was wrong, and only that is known of it."""
Origin = tuple[int, int]
"""Where a batch comes from: (entry number in its stream, counted from 1, number of its writer)."""


class EntryRefused(Exception):
    """This entry cannot be learned (non-finite loss); the engine is as it was before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObserveReport:
    """What one `observe` did."""

    step: int
    """Entries learned so far, this one included."""
    expert: int
    """Id of the expert that was active while this entry was learned."""
    labelled: int
    """Samples of the batch with a label."""
    correct: int
    """Labelled samples predicted right before they were learned (test-then-train)."""
    tested: Sequence[Sequence[int]]
    """Of each labelled sample its class and the one answered before it was learned, as indexes
    into `Summary.classes`; else `NO_ANSWER` or `OTHER`."""
    novelty: float | None
    """log10 of the evidence for change in preset `default`; in `paper` the memory's novelty when it
    was last measured. None while there is nothing to compare with."""
    expanded: bool
    """Whether the mixture expanded after this entry."""
    loss: Mapping[str, float]
    """Mean of the loss terms over the entry's training samples, in nats: `negative_elbo`, and
    `cross_entropy` over those with a label, absent where there was none."""
    added: Sequence[int]
    """Indexes into the batch of the samples that are now in the replay memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Purged:
    """What one `purge` took back."""

    replay: int
    """Samples that left the replay memory."""
    unlearned: int
    """Labelled samples that count no more, but in networks; 0 where only networks count them."""


class Stored(NamedTuple):
    """Samples that were learned, and that somebody has kept."""

    number: int
    """Of their entry; with their indexes here they were named in the replay memory."""
    x: Array
    labels: Labels


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertInfo:
    """One expert, as GET /experts shows it."""

    id: int
    state: str
    """`active` or `frozen`."""
    born_step: int
    frozen_step: int | None
    novelty: float | None
    """The novelty that caused this expert's birth; None for the first, in `paper` the first two."""
    cause: str | None = None
    """Why it was born, in preset `default`: `inputs` were new, `errors` more frequent, or it was
    `asked` for, after a drift that a rollback did not end."""
    threshold: float | None = None
    """What the novelty had reached."""
    p_value: float | None = None
    """Of the sample that raised the alarm, where `inputs` were the cause."""
    samples: int
    """Arriving samples it was trained on."""
    classes: Sequence[Label]
    """Classes it has seen, in order of first appearance."""
    parameters: int
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """All that can be watched of a learner; plain values, JSON-able by `dataclasses.asdict`."""

    step: int = 0
    samples_learned: int = 0
    samples_labelled: int = 0
    samples_correct: int = 0
    """Labelled samples predicted right before they were learned, since the start."""
    classes: Sequence[Label] = ()
    experts: Sequence[ExpertInfo] = ()
    expansions: int = 0
    expansions_refused: Mapping[str, int] = field(default_factory=dict)
    """By reason: `max_experts`, in preset `default` also `one_source` (`learner.witnesses`)."""
    novelty: float | None = None
    threshold: float = 0.0
    prequential_accuracy: float | None = None
    """Faded over about the last 1,000 labelled samples, 0 to 1."""
    prequential_by_class: Sequence[float | None] = ()
    """The same per class, aligned with `classes`."""
    replay_capacity: int = 0
    replay_by_class: Sequence[int] = ()
    """Members of the replay memory per class, aligned with `classes`."""
    replay_unlabelled: int = 0
    loss: Mapping[str, float] = field(default_factory=dict)
    parameters: int = 0
    state_bytes: int = 0
    """Bytes of the whole state: experts, optimiser, replay memory, bookkeeping."""
    sample_gradients: float | None = None
    """Spent since the start; a forward of one sample is 1, a backward 2. None where not counted."""
    part_weight: Mapping[str, float] = field(default_factory=dict)
    """How much each part of the answer is trusted, >= 0."""
    part_accuracy: Mapping[str, float] = field(default_factory=dict)
    """Of each part alone on the held-out samples when they last decided, 0 to 1."""
    held_out_samples: int | None = None
    """How many decided then."""
    overruled: bool | None = None
    """Whether read-outs that forget answer in place of the past."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineState:
    """Everything an engine is, but the replay payloads (those lie in Redis, by member id)."""

    frozen: Mapping[int, Tensors]
    """Per frozen expert id its arrays; their bytes never change while the expert exists."""
    served: Tensors
    """With `frozen`, all arrays that a Predictor needs."""
    training: Tensors
    """The remaining arrays: optimiser, generator, replay bookkeeping."""
    members: NDArray[np.int64]
    """Ids of the replay memory's samples, [M, 2] (entry number, index), in memory order."""
    values: Mapping[str, Any]
    """The plain values, JSON-able; a Predictor and an Engine both read them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Members:
    """Replay payloads for `EngineState.members`, in the same order."""

    x: Sequence[Array]
    """Each sample as it arrived, shape of the schema, uint8 or float32."""
    labels: Sequence[Label | None]


class Engine(Protocol):
    """The learner that learns; only the worker's main thread touches it."""

    def observe(self, origin: Origin, x: Array, labels: Labels | None) -> ObserveReport:
        """Learn once from one mini-batch; wholly or not at all.

        Args:
            origin: of the entry.
            x: samples [B, *schema.shape] (`InputSchema.canonical`), uint8 or float32.
            labels: one per sample, or None when there are none at all.

        Raises:
            EntryRefused: the loss or a gradient was not finite; the state is unchanged.
        """

    def label(
        self, origin: Origin, x: Array, labels: Labels, right: Sequence[bool | None]
    ) -> ObserveReport:
        """Learn the labels of samples that were observed before without; wholly or not at all.

        They are no arrivals: no evidence for an expansion, no density and no budget counts them
        again.

        Args:
            origin: of the entry that brings the labels; with its number and their indexes here the
                samples are named in the replay memory, and its writer's they are now.
            x: the samples, as `observe` takes them.
            labels: one per sample.
            right: whether each was answered right when a client asked; None: the learner answers
                now, before it learns.

        Raises:
            EntryRefused: the loss or a gradient was not finite; the state is unchanged.
        """

    def purge(self, writer: int, stored: Iterable[Stored]) -> Purged:
        """Take back what a writer has sent; after an exception the engine is no whole state.

        Args:
            writer: its number, as in `Origin`.
            stored: its labelled samples that are kept outside, as they were learned.
        """

    def expand(self) -> bool:
        """Grow by one expert now; return whether it could."""

    def recall(self, x: Array) -> "Prediction":
        """Return what it knows of the past, not of the present alone, of [B, *schema.shape]."""

    def dump(self) -> EngineState:
        """Return the whole state; the arrays are views, valid until the next `observe`."""

    def summary(self) -> Summary:
        """Return what can be watched."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """Answers for B samples; row i is sample i."""

    classes: Sequence[Label]
    """All classes the learner knows; the columns of `probabilities`."""
    probabilities: NDArray[np.float32]
    """[B, K] over `classes`; a row of zeros where no expert has seen a label yet."""
    experts: NDArray[np.int64]
    """[B] id of the expert that answers."""
    novelty: NDArray[np.float32]
    """[B] negative ELBO per input value under that expert, nats."""


class Predictor(Protocol):
    """A learner that only answers; never changes, so any thread may use it."""

    @property
    def lost(self) -> bool:
        """Whether it can answer no more, so that another is to be made of the same state."""

    @property
    def schema(self) -> InputSchema:
        """What a sample is; lets the API check a request while Redis is away."""

    def predict(self, x: Array) -> Prediction:
        """Return the answers for samples [B, *schema.shape], uint8 or float32."""

    def explain(self, x: Array) -> Explanation:
        """Return why the samples [B, *schema.shape] are answered as they are."""

    def features(self, x: Array) -> NDArray[np.float32]:
        """Return what samples [B, *schema.shape] are to the learner, [B, D]: like ones are near."""

    def draw(self, expert: int, n: int) -> Array:
        """Return n samples that an expert makes up, always the same, images uint8; or none."""


class Engines(Protocol):
    """How engines and predictors come into being; one object, passed in at start."""

    def create(self, settings: Settings, schema: InputSchema) -> Engine:
        """Return a fresh engine for samples of `schema`.

        Raises:
            SettingsError: a learner setting does not fit the schema.
        """

    def restore(self, settings: Settings, state: EngineState, members: Members) -> Engine:
        """Return the engine that `dump` described, bit-equal to never having stopped.

        Raises:
            SettingsError: a learner setting differs from the one the state was made with.
            CorruptState: an array is missing or has another shape.
        """

    def predictor(self, state: EngineState) -> Predictor:
        """Return a predictor; reads `frozen`, `served` and `values`, the rest may be empty."""
