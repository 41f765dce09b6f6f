"""The served model: follows the published snapshots, swapped by one assignment.

Everything slow, making predictors and reading a snapshot, happens in a thread of its own; whoever
answers reads `current` once and keeps what it got. A damaged snapshot is logged and never served:
the one before goes on answering. A predictor that is lost is made again.
Dimension key: B batch, K classes listed per sample.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
import structlog
from numpy.typing import NDArray

from service.engine.protocol import Array, EngineState, Label, Prediction, Predictor, Tensors
from service.errors import CorruptState, Unavailable
from service.settings import Settings
from service.store.snapshots import SnapshotInfo, SnapshotReader

FOLLOW_INTERVAL_S = 0.2
"""How often the newest version is asked for; a swap is late by at most this and the loading."""
DECIMALS = 3
"""Of the probabilities that leave the service; more would help to copy the model."""
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What one model says of B samples, cut to the classes that are told; row i is sample i."""

    info: SnapshotInfo
    """The snapshot that answered."""
    known: Sequence[Label]
    """The model's classes, which `top` indexes."""
    top: NDArray[np.int64]
    """[B, K] the most probable classes, descending."""
    probabilities: NDArray[np.float64]
    """[B, K] theirs, rounded."""
    answered: NDArray[np.bool_]
    """[B] False where the expert has seen no label yet."""
    experts: NDArray[np.int64]
    """[B]"""
    novelty: NDArray[np.float64]
    """[B]"""

    @classmethod
    def of(cls, prediction: Prediction, info: SnapshotInfo, *, top_k: int) -> Self:
        """Return `prediction` cut to the `top_k` most probable classes."""
        probabilities = prediction.probabilities.astype(np.float64)
        top = np.argsort(-probabilities, axis=1, kind="stable")[:, :top_k]
        listed = np.take_along_axis(probabilities, top, axis=1)
        total = listed.sum(axis=1)
        return cls(
            info=info,
            known=prediction.classes,
            top=top,
            probabilities=listed.round(DECIMALS),
            answered=np.isfinite(total) & (total > 0),
            experts=prediction.experts,
            novelty=prediction.novelty.astype(np.float64).round(DECIMALS),
        )

    @property
    def labels(self) -> list[Label | None]:
        """The most probable class of each sample; None where none is known."""
        pairs = zip(self.top[:, :1].tolist(), self.answered.tolist(), strict=True)
        return [self.known[row[0]] if known else None for row, known in pairs]

    def rows(self, start: int, stop: int) -> Self:
        """Return the answers for the samples from `start` up to `stop`."""
        part = slice(start, stop)
        return type(self)(
            info=self.info,
            known=self.known,
            top=self.top[part],
            probabilities=self.probabilities[part],
            answered=self.answered[part],
            experts=self.experts[part],
            novelty=self.novelty[part],
        )


@dataclass(frozen=True, slots=True)
class Served:
    """A snapshot's facts, the predictor made from it, and its stream's time line."""

    info: SnapshotInfo
    predictor: Predictor
    timeline: Tensors
    """See `Timeline.dump`."""


class Predictors(Protocol):
    """How predictors come into being; one object, passed in at start."""

    def predictor(self, state: EngineState) -> Predictor:
        """Return a predictor; reads `frozen`, `served` and `values`, the rest may be empty.

        Raises:
            CorruptState: an array is missing or has another shape.
            OSError: none can be made now.
        """


class Follower:
    """Keeps `current` at the newest published snapshot."""

    def __init__(self, settings: Settings, load_predictors: Callable[[], Predictors]) -> None:
        """Prepare; `start` begins to follow.

        Args:
            settings: where the snapshots are, how answers are cut.
            load_predictors: returns what makes predictors; called in the thread.
        """
        self._settings = settings
        self._load_predictors = load_predictors
        self._reader = SnapshotReader(settings.state_dir)
        self._current: Served | None = None
        self._refused_version: int | None = None  # damaged; not read again
        self._complaint = ""  # the same one is logged once
        self.on_swap: Callable[[], object] | None = None
        """Called in the thread that follows, after each swap."""
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="follow", daemon=True)

    @property
    def current(self) -> Served | None:
        """What is served now, None before the first snapshot; read it once per answer."""
        return self._current

    @property
    def facts(self) -> SnapshotInfo | None:
        """The facts of the served snapshot, for metrics."""
        current = self._current
        return None if current is None else current.info

    @property
    def alive(self) -> bool:
        """Whether newer snapshots will still be noticed."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Begin to follow."""
        self._thread.start()

    def stop(self) -> None:
        """Stop following; waits for a snapshot that is being loaded, at most five seconds."""
        self._stopping.set()
        self._thread.join(timeout=5)

    def answer(self, x: Array) -> Answer:
        """Return what the served model says of `x` [B, ...]; one model for all of it.

        Raises:
            Unavailable: `not_ready`, no model has been published yet.
        """
        served = self._current
        if served is None:
            raise not_ready()
        return Answer.of(served.predictor.predict(x), served.info, top_k=self._settings.top_k)

    def _follow(self) -> None:
        predictors = self._load_predictors()
        while not self._stopping.is_set():
            self.follow_once(predictors)
            self._stopping.wait(FOLLOW_INTERVAL_S)

    def follow_once(self, predictors: Predictors) -> None:
        """Serve the newest snapshot, if it is not damaged and not what answers already."""
        version: int | None = None
        try:
            version = self._reader.newest_version()
            if version is None or version in (self._alive_version(), self._refused_version):
                return
            loaded = self._reader.load(version)
            self._current = Served(loaded.info, predictors.predictor(loaded.state), loaded.timeline)
            if (on_swap := self.on_swap) is not None:
                on_swap()
        except (CorruptState, OSError) as error:
            if isinstance(error, CorruptState):
                self._refused_version = version
            if str(error) != self._complaint:
                self._complaint = str(error)
                _log.error("snapshot_refused", version=version, error=self._complaint)

    def _alive_version(self) -> int | None:
        """Return the version that answers, None where none does."""
        served = self._current
        return None if served is None or served.predictor.lost else served.info.version


def not_ready() -> Unavailable:
    """Return the refusal that is right only before the first model is published."""
    return Unavailable(
        "not_ready", "no model is published yet; observe something first", retry_after_s=1
    )
