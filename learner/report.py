"""What learners of every preset tell: reports of learning, answers, the life of an expert. Ours.

Dimension key: B samples, K classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from torch import Tensor

from learner.samples import Label, Labels


@dataclass(frozen=True, slots=True)
class Losses:
    """Means over the samples of one `observe`, replayed ones included, nats per sample."""

    cross_entropy: float | None
    """Over the labelled samples; None where there was none."""
    negative_elbo: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ObserveReport:
    """What one `observe` did."""

    step: int
    """Mini-batches learned so far, this one included."""
    expert: int
    """Id of the expert that learned it."""
    labelled: int
    """Samples with a label."""
    correct: int
    """Labelled samples predicted right before they were learned."""
    tested: Sequence[Sequence[int]]
    """Of each labelled sample its class and what was answered before it was learned, as indexes
    into the classes; else `NO_ANSWER` or `OTHER` (see `judged`)."""
    novelty: float | None
    """Of the full memory against the frozen experts when it was last measured; None while the
    memory was not full or nothing is frozen."""
    expanded: bool
    """Whether the mixture expanded after it."""
    losses: Losses
    added: Sequence[int]
    """Indexes into the mini-batch of the samples that are now in the replay memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Purged:
    """What one `purge` took back."""

    replay: int
    """Samples that left the replay memory."""
    unlearned: int
    """Labelled samples taken out of the sums, or that never came into them; 0 without sums."""


class Stored(NamedTuple):
    """A mini-batch that was learned before, as it was."""

    number: int
    """Of its entry; it named the samples in the replay memory."""
    x: Tensor
    labels: Labels


@dataclass(kw_only=True, slots=True)
class Life:
    """The plain facts of one expert; ours, for routing and for those who watch."""

    id: int
    born_step: int
    classes: list[int] = field(default_factory=list)
    """Indexes of the classes it has seen; the columns of its classifier."""
    samples: int = 0
    """Arriving samples it was trained on."""
    frozen_step: int | None = None
    novelty: float | None = None
    """The novelty that caused its birth."""


@dataclass(frozen=True, slots=True)
class Expansion:
    """Why an expert of preset `default` was born."""

    cause: Literal["inputs", "errors", "asked"]
    """`inputs` look different, familiar inputs have other labels (`errors`), or somebody outside
    the learner decided so (`asked`)."""
    novelty: float
    """log10 of the evidence."""
    threshold: float
    """log10 of horizon / alpha."""
    p_value: float | None
    """Of the sample that raised the alarm; None for `errors`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """Answers for B samples; row i is sample i."""

    classes: Sequence[Label]
    """All classes seen so far, in order of first appearance."""
    probabilities_BK: Tensor
    """Over `classes`, on the CPU; a row of zeros where no expert has seen a label."""
    experts_B: Tensor
    """Id of the expert that answers."""
    novelty_B: Tensor
    """Negative ELBO per input value under that expert, nats; large means unfamiliar."""

    @property
    def labels(self) -> list[Label | None]:
        """The most probable class of each sample; None where no expert has seen a label."""
        if not self.classes:
            return [None] * len(self.experts_B)
        best = self.probabilities_BK.max(1)
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return [self.classes[k] if p > 0 else None for k, p in pairs]


HeatKind = Literal["contribution", "attention"]
"""What was measured; see `learner.explanation`."""


@dataclass(frozen=True, slots=True)
class Heat:
    """Where in one image its answer comes from."""

    kind: HeatKind
    cells: Tensor
    """[rows, columns], float32: 0 the cell with least of it in this image, 1 with most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Why B samples are answered as they are; row i is sample i."""

    ids: Sequence[int]
    """The experts in order of birth, the columns of `weights_BE`."""
    weights_BE: Tensor
    """Share that each expert has in the answer; in preset `default` zeros where none had a say."""
    parts: Sequence[Mapping[str, float]]
    """By the name of each part of the answer its share of the trust, summing to 1 for a sample."""
    novelty_B: Tensor
    """As `Prediction` tells it."""
    heat: Sequence[Heat | None]
    """None where samples are no images, or what answers does not know places."""
