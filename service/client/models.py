"""What the client returns and raises, as plain values.

Dimension key: B batch, K classes listed per sample.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.engine.protocol import Array

RETRIED_STATUSES = (409, 429, 503)
"""A lost race, too many requests, not now: the same request may succeed later."""


class ApiError(Exception):
    """The service refused a request (`status` >= 400) or could not be reached (0)."""

    def __init__(self, status: int, code: str, message: str, *, retry_after_s: float = 0) -> None:
        super().__init__(f"{message} ({code})")
        self.status = status
        self.code = code
        self.message = message
        self.retry_after_s = retry_after_s
        """The wait that the service asks for; 0 where it does not."""

    @property
    def may_pass(self) -> bool:
        """Whether the same request may succeed later."""
        if self.status == HTTPStatus.CONFLICT:
            return self.code == "conflict"  # a lost race; the other codes are decisions
        return self.status == 0 or self.status in RETRIED_STATUSES


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What the service said when it accepted a batch, or labels; from then on it is durable."""

    batch_id: str
    n: int
    position: str | None
    """Id in the log; None where a retry came before it was written down."""
    backlog: int
    """Entries accepted and not yet in a checkpoint."""
    replayed: bool
    """Whether the service had accepted this batch before."""
    durability: str
    """`always`: on disk before the answer; `everysec`: up to a second later; `no`: some time."""

    @property
    def sample_ids(self) -> list[str]:
        """The id of each sample, by which `label` tells its label later."""
        return [f"{self.batch_id}:{index}" for index in range(self.n)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """How far `observe_all` has come."""

    run: str
    """Names what is sent: the same run goes on where it was stopped."""
    batches: int
    """Batches of the run that are accepted; the `first_batch` to go on with."""
    samples: int
    """Samples of the run that are accepted."""
    total: int
    """Samples of the whole run."""
    replayed: int
    """Those of `samples` that the service had accepted before."""
    receipt: Receipt
    """Of the newest batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What became of a batch."""

    batch_id: str
    state: str
    """`queued`, `learned` or `quarantined`."""
    n: int
    position: str | None
    step: int | None
    expert: int | None
    reason: str | None
    labels: Mapping[str, int] | None = None
    """Of late labels: how many were `joined`, `late`, `unknown` or `doubled`."""
    results: Sequence[str] | None = None
    """The same of each of the first 1,000, in the order they were told."""
    purged: Mapping[str, int] | None = None
    """Of a purge: samples that left the `replay` memory, were `unlearned`, or are `remaining`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """The answers for B samples; row i is sample i.

    Labels are int64 with -1 for none, or strings with "" for none.
    """

    labels: Array
    """[B] the most probable class."""
    probabilities: NDArray[np.float64]
    """[B, K] of the most probable classes, descending; zeros fill up."""
    classes: Array
    """[B, K] the classes of `probabilities`."""
    experts: NDArray[np.int64]
    """[B] id of the expert that answered."""
    novelty: NDArray[np.float64]
    """[B] negative ELBO per input value, nats; NaN where it is not finite."""
    model_version: int
    position: str
    """Id of the newest log entry that this model has learned."""
    sample_ids: Sequence[str] = ()
    """[B] by which `label` tells a label later; empty unless the samples were kept."""
    explanations: Sequence[Mapping[str, Any]] = ()
    """[B] why, each as POST /predict?explain=true tells it; empty unless they were asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened in the service."""

    id: str
    """Its place among all events."""
    kind: str
    """Such as `expansion`, `snapshot`, `rollback` or `quarantine`."""
    data: Mapping[str, Any]
    """What is told of it."""
