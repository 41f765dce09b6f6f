"""An engine without torch whose bytes tell whether an entry was lost, doubled or reordered.

It answers with the nearest class mean. Besides it keeps what a real learner has: a generator that
moves with every draw, a FIFO memory it learns from again, frozen experts, and a chain of hashes
over everything it saw. Expansions come about every sixteenth entry, decided by the chain.
A batch whose first value is the type's largest (255, or 1.0) is refused.
Dimension key: B batch, D values of a sample, K classes, M members.
"""

import hashlib
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from service.engine.explanation import Explanation
from service.engine.protocol import (
    NO_ANSWER,
    OTHER,
    Array,
    EngineState,
    EntryRefused,
    ExpertInfo,
    Label,
    Labels,
    MemberId,
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

CAPACITY = 24
"""Members of the memory."""
KEPT = 0.98
"""Share of a class' past that each sample of it leaves: a burst of wrong labels does harm."""
EXPANSION_ODDS = 16
"""One in so many entries expands."""
MOST_FROZEN = 32
"""Frozen experts beyond which nothing expands: a long stream's checkpoints stay small."""


def scaled(x: Array) -> Array:
    """Return samples as float64 [B, D]; uint8 is brought to [0, 1]."""
    flat = x.reshape(len(x), -1).astype(np.float64)
    return flat / 255 if x.dtype == np.uint8 else flat


def known(labels: Labels | None, n: int) -> list[Label | None]:
    """Return one label per sample, None where there is none."""
    if labels is None:
        return [None] * n
    if isinstance(labels, np.ndarray):
        return [None if label < 0 else int(label) for label in labels]
    return [label or None for label in labels]


@dataclass
class ToyEngine:
    """See the module; the state is in the fields."""

    schema: InputSchema
    generator: np.random.Generator
    step_s: float
    step: int = 0
    samples: int = 0
    labelled: int = 0
    correct: int = 0
    chain: bytes = bytes(32)
    classes: list[Label] = field(default_factory=list)
    sums_KD: Array = field(default_factory=lambda: np.zeros((0, 0)))
    counts_K: Array = field(default_factory=lambda: np.zeros(0))
    frozen: dict[int, dict[str, Array]] = field(default_factory=dict)
    memory: list[tuple[MemberId, Array, Label | None]] = field(default_factory=list)
    writers: dict[int, int] = field(default_factory=dict)
    """Who wrote the entries of the members, by number."""

    def observe(self, origin: Origin, x: Array, labels: Labels | None) -> ObserveReport:
        listed = known(labels, len(x))
        report = self._take(origin, x, listed, [None] * len(x))
        self.samples += len(x)
        expanded = self.chain[0] % EXPANSION_ODDS == 0 and self.expand()
        return replace(report, expanded=expanded, added=[] if expanded else report.added)

    def label(
        self, origin: Origin, x: Array, labels: Labels, right: Sequence[bool | None]
    ) -> ObserveReport:
        return self._take(origin, x, known(labels, len(x)), right)

    def _take(
        self,
        origin: Origin,
        x: Array,
        listed: Sequence[Label | None],
        right: Sequence[bool | None],
    ) -> ObserveReport:
        if x.flat[0] == (255 if x.dtype == np.uint8 else 1.0):
            raise EntryRefused("loss is not finite: nan")
        time.sleep(self.step_s)
        guesses = [self._guess(sample) for sample in scaled(x)]
        correct = sum(
            guess == label if said is None else said
            for guess, label, said in zip(guesses, listed, right, strict=True)
            if label is not None
        )
        self._learn(x, listed)
        tested = [
            (self.classes.index(label), self._answered(guess, label, said))
            for guess, label, said in zip(guesses, listed, right, strict=True)
            if label is not None
        ]
        for _ in range(min(4, len(self.memory))):
            _, sample, label = self.memory[self.generator.integers(len(self.memory))]
            self._learn(sample[np.newaxis], [label])
        entry_number, writer = origin
        arrived = [((entry_number, i), x[i].copy(), listed[i]) for i in range(len(x))]
        self.memory = (self.memory + arrived)[-CAPACITY:]
        self.writers[entry_number] = writer
        self._keep_writers()
        self.chain = hashlib.sha256(
            self.chain + str((entry_number, listed)).encode() + x.tobytes()
        ).digest()
        self.step += 1
        self.labelled += sum(label is not None for label in listed)
        self.correct += correct
        return ObserveReport(
            step=self.step,
            expert=len(self.frozen),
            labelled=sum(label is not None for label in listed),
            correct=correct,
            tested=tested,
            novelty=None,
            expanded=False,
            loss={"cross_entropy": 0.0, "negative_elbo": 0.0},
            added=list(range(max(0, len(x) - CAPACITY), len(x))),
        )

    def purge(self, writer: int, stored: Iterable[Stored]) -> Purged:
        """Drop members; that samples were unlearned shows in the chain alone."""
        before, unlearned = len(self.memory), 0
        self.memory = [one for one in self.memory if self.writers[one[0][0]] != writer]
        self._keep_writers()
        for one in stored:
            unlearned += sum(label is not None for label in known(one.labels, len(one.x)))
            self.chain = hashlib.sha256(self.chain + str(one.number).encode()).digest()
        return Purged(replay=before - len(self.memory), unlearned=unlearned)

    def _keep_writers(self) -> None:
        numbers = {number for (number, _), _, _ in self.memory}
        self.writers = {number: w for number, w in self.writers.items() if number in numbers}

    def expand(self) -> bool:
        if len(self.frozen) == MOST_FROZEN:
            return False
        self.frozen[len(self.frozen)] = {
            "sums": self.sums_KD.copy(),
            "chain": self._chain_array(),
        }
        self.memory = []
        self.writers = {}
        return True

    def recall(self, x: Array) -> Prediction:
        return ToyPredictor.of(self.dump()).predict(x)

    def dump(self) -> EngineState:
        served = {"sums": self.sums_KD, "counts": self.counts_K}
        ids = [id_ for id_, _, _ in self.memory]
        return EngineState(
            frozen=self.frozen,
            served=served,
            training={"chain": self._chain_array()},
            members=np.array(ids, np.int64).reshape(-1, 2),
            values={
                "schema": str(self.schema),
                "step": self.step,
                "samples": self.samples,
                "labelled": self.labelled,
                "correct": self.correct,
                "classes": list(self.classes),
                "generator": self.generator.bit_generator.state,
                "writers": list(self.writers.items()),
            },
        )

    def summary(self) -> Summary:
        accuracy = self.correct / self.labelled if self.labelled else None
        labels = [label for _, _, label in self.memory]
        return Summary(
            step=self.step,
            samples_learned=self.samples,
            samples_labelled=self.labelled,
            samples_correct=self.correct,
            classes=list(self.classes),
            experts=[self._expert(id_) for id_ in range(len(self.frozen) + 1)],
            expansions=len(self.frozen),
            threshold=1.0,
            prequential_accuracy=accuracy,
            prequential_by_class=[accuracy] * len(self.classes),
            replay_capacity=CAPACITY,
            replay_by_class=[labels.count(label) for label in self.classes],
            replay_unlabelled=labels.count(None),
            loss={"cross_entropy": 0.0, "negative_elbo": 0.0},
            parameters=self.sums_KD.size,
            state_bytes=self.sums_KD.nbytes,
        )

    def _expert(self, id_: int) -> ExpertInfo:
        active = id_ == len(self.frozen)
        return ExpertInfo(
            id=id_,
            state="active" if active else "frozen",
            born_step=0,
            frozen_step=None if active else 0,
            novelty=None,
            samples=self.samples if active else 0,
            classes=list(self.classes) if active else [],
            parameters=self.sums_KD.size,
            bytes=self.sums_KD.nbytes,
        )

    def _answered(self, guess: Label | None, label: Label, said: bool | None) -> int:
        if said is not None:
            return self.classes.index(label) if said else OTHER
        return NO_ANSWER if guess is None else self.classes.index(guess)

    def _guess(self, sample_D: Array) -> Label | None:
        if not self.classes:
            return None
        means_KD = self.sums_KD / np.maximum(1e-9, self.counts_K)[:, np.newaxis]
        return self.classes[int(np.argmin(((means_KD - sample_D) ** 2).sum(1)))]

    def _learn(self, x: Array, listed: Sequence[Label | None]) -> None:
        for sample_D, label in zip(scaled(x), listed, strict=True):
            if label is None:
                continue
            if label not in self.classes:
                self.classes.append(label)
                width = len(sample_D)
                self.sums_KD = np.vstack([self.sums_KD.reshape(-1, width), np.zeros(width)])
                self.counts_K = np.append(self.counts_K, 0)
            k = self.classes.index(label)
            self.sums_KD[k] = KEPT * self.sums_KD[k] + sample_D
            self.counts_K[k] = KEPT * self.counts_K[k] + 1

    def _chain_array(self) -> Array:
        return np.frombuffer(self.chain, np.uint8).copy()


@dataclass(frozen=True)
class ToyPredictor:
    """Answers with the softmax of minus the distance to each class mean."""

    schema: InputSchema
    classes: Sequence[Label]
    means_KD: Array
    expert: int
    lost = False

    @classmethod
    def of(cls, state: EngineState) -> "ToyPredictor":
        counts_K = np.maximum(1e-9, state.served["counts"])
        return cls(
            schema=InputSchema.parse(state.values["schema"]),
            classes=state.values["classes"],
            means_KD=state.served["sums"] / counts_K[:, np.newaxis],
            expert=len(state.frozen),
        )

    def predict(self, x: Array) -> Prediction:
        flat_BD = scaled(x)
        if self.classes:
            distance_BK = ((flat_BD[:, np.newaxis] - self.means_KD) ** 2).sum(2)
            odds_BK = np.exp(distance_BK.min(1, keepdims=True) - distance_BK)
            probabilities_BK = odds_BK / odds_BK.sum(1, keepdims=True)
        else:
            probabilities_BK = np.zeros((len(x), 0))
        return Prediction(
            classes=list(self.classes),
            probabilities=probabilities_BK.astype(np.float32),
            experts=np.full(len(x), self.expert, np.int64),
            novelty=np.zeros(len(x), np.float32),
        )

    def explain(self, x: Array) -> Explanation:
        ids = range(self.expert + 1)
        return Explanation(
            ids=ids,
            weights=np.tile((np.arange(len(ids)) == self.expert).astype(np.float32), (len(x), 1)),
            parts=[{"means": 1.0}] * len(x),
            novelty=np.zeros(len(x), np.float32),
            heat=[None] * len(x),
        )

    def features(self, x: Array) -> NDArray[np.float32]:
        return scaled(x).astype(np.float32)

    def draw(self, expert: int, n: int) -> Array:
        return np.zeros((0, *self.schema.shape), np.float32)


@dataclass(frozen=True)
class ToyEngines:
    """How toy engines come into being."""

    step_s: float = 0.0
    """Time one entry takes."""

    def create(self, settings: Settings, schema: InputSchema) -> ToyEngine:
        return ToyEngine(schema, np.random.default_rng(settings.seed), self.step_s)

    def restore(self, settings: Settings, state: EngineState, members: Members) -> ToyEngine:
        values = state.values
        generator = np.random.default_rng()
        generator.bit_generator.state = values["generator"]
        ids = [(number, index) for number, index in state.members.tolist()]
        try:
            chain = state.training["chain"].tobytes()
            sums_KD, counts_K = state.served["sums"].copy(), state.served["counts"].copy()
        except KeyError as error:
            raise CorruptState(f"an array is missing: {error}") from None
        return ToyEngine(
            schema=InputSchema.parse(values["schema"]),
            generator=generator,
            step_s=self.step_s,
            step=values["step"],
            samples=values["samples"],
            labelled=values["labelled"],
            correct=values["correct"],
            chain=chain,
            classes=list(values["classes"]),
            sums_KD=sums_KD,
            counts_K=counts_K,
            frozen={id_: dict(tensors) for id_, tensors in state.frozen.items()},
            memory=list(zip(ids, members.x, members.labels, strict=True)),
            writers=dict(values["writers"]),
        )

    def predictor(self, state: EngineState) -> ToyPredictor:
        return ToyPredictor.of(state)
