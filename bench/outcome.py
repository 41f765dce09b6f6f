"""What one pass of one method through one stream gave. Accuracies are 0 to 1."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.methods import Cost


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """What a method was worth after so many samples."""

    samples: int
    accuracy: float
    """On held-out samples of everything that had arrived."""
    by_task: Sequence[float | None]
    """The same per task; None where nothing of it had arrived."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Passing:
    """What was seen while the stream went by."""

    samples: int
    prequential: float
    """Faded."""
    experts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Everything measured in one pass; None where it has no meaning on this stream."""

    samples: int
    accuracy: float | None
    """On all held-out samples of what arrived, at the end."""
    average_accuracy: float | None
    """ACC: mean over the tasks at the end."""
    anytime: float | None
    """Mean over the checkpoints."""
    forgetting: float | None
    backward_transfer: float | None
    accuracy_matrix: Sequence[Sequence[float | None]]
    """R; row i: after task i. Empty: no tasks."""
    prequential: float
    """Share of all arriving samples predicted right before they were learned."""
    prequential_faded: float
    checkpoints: Sequence[Checkpoint]
    passing: Sequence[Passing]
    novelty: Sequence[tuple[int, float]]
    """(samples observed, novelty) of every measurement; empty where the method has none."""
    parts: Mapping[str, float]
    """Accuracy of each part alone: held-out at the end; prequential where nothing is held out."""
    cost: Cost
    """At the end; sample-gradients and operations of the whole stream."""
    seconds: float
    """The whole pass."""
    observe_s: float
    predict_s: float
    """Prequential and held-out answers together."""
    loaded_bytes: int
    """Peak resident memory before the method was made: interpreter, libraries, data set."""
    peak_bytes: int
    """The same at the end."""

    @property
    def samples_per_s(self) -> float:
        """Arriving samples per second of learning."""
        return self.samples / self.observe_s

    @property
    def sample_gradients(self) -> float:
        """Spent per arriving sample."""
        return self.cost.sample_gradients / self.samples

    @property
    def score(self) -> float:
        """What the stream is about: held-out accuracy, or prequential where nothing is held out."""
        return self.prequential if self.accuracy is None else self.accuracy
