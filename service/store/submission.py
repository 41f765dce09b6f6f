"""What goes into the log, and what is said when it is there."""

from collections.abc import Sequence
from dataclasses import dataclass

from service.engine.protocol import Label
from service.inputs import InputSchema
from service.scopes import ANONYMOUS_ID
from service.store import entry
from service.store.entry import Kind, State
from service.store.stream_schema import LabelKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """A validated mini-batch, or labels for earlier ones, on its way into the log."""

    schema: InputSchema | None
    """What its samples are; None for labels, which are of whatever the stream's samples are."""
    labels_kind: LabelKind | None
    """None when no sample has a label."""
    n: int
    distinct_labels: Sequence[Label]
    payload: bytes
    """As `entry.encode` makes it, or `entry.encode_given`."""
    kind: Kind = "observed"
    key_id: str = ANONYMOUS_ID
    """Id of the key that sent it."""
    model_version: int | None = None
    """Of the snapshot that answered; None unless `predicted`."""
    traceparent: str | None = None
    """Of the request, where requests are traced."""
    idempotency_key: str | None
    digest: str
    """SHA-256 of the request body, hexadecimal."""

    @property
    def client_key(self) -> str | None:
        """Its Idempotency-Key as the service knows it."""
        return entry.client_key(self.key_id, self.idempotency_key)


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What a 202 says."""

    batch_id: str
    n: int
    position: str | None
    """Id in the stream; None when a replay came before it was written down."""
    backlog: int
    """Entries accepted and not yet in a checkpoint, this one included."""
    idempotent: bool
    """Whether an Idempotency-Key came with it, so that a retry cannot train twice."""
    replayed: bool
    """Whether this batch had been accepted before."""
    state: State
    """`queued`, or what became of a replayed batch meanwhile."""
    durability: str
    """`appendfsync` of the server: `always`, `everysec` or `no`."""
