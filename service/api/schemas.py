"""What the API's answers look like."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.api.schemas_explain import ExplanationAnswer
from service.engine.protocol import ExpertInfo, Label
from service.store.entry import LabelOutcome

_BATCH_ID = "3f0c9a52d1b84e6f9a7e2c5b8d104f6e"
_POSITION = "1765432100123-0"


class Problem(BaseModel):
    """Every answer from 400 up (RFC 9457); clients match on `code`, people read `detail`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "type": "about:blank",
                    "title": "Unprocessable",
                    "status": 422,
                    "code": "bad_label",
                    "detail": "expected labels of integers >= 0, or null for none, "
                    "got -7 at sample 3",
                }
            ]
        }
    )
    type: str = "about:blank"
    title: str
    status: int
    code: str
    detail: str


_STORED: dict[str, Any] = {
    "batch_id": _BATCH_ID,
    "n": 2,
    "position": _POSITION,
    "backlog": 3,
    "state": "queued",
    "status_url": f"/observations/{_BATCH_ID}",
    "idempotent": True,
    "durability": "always",
}


class Stored(BaseModel):
    """What is on disk, and will be learned or quarantined; the answer of POST /labels."""

    model_config = ConfigDict(json_schema_extra={"examples": [_STORED]})
    batch_id: str
    n: int
    """Samples; of POST /labels labels."""
    position: str | None
    """Id in the log; null where a retry came before it was written down."""
    backlog: int
    """Entries accepted and not yet in a checkpoint."""
    state: Literal["queued", "learned", "quarantined"]
    """`queued`; a retry is told what has become of it meanwhile."""
    status_url: str
    idempotent: bool
    """Whether an Idempotency-Key came along, so that a retry cannot be learned twice."""
    durability: str


class Accepted(Stored):
    """The answer of POST /observe."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [_STORED | {"sample_ids": [None, f"{_BATCH_ID}:1"]}]}
    )
    sample_ids: list[str | None]
    """For labels that come later; null for a sample that has one, empty where all have."""


class LabelCounts(BaseModel):
    """How many late labels had which outcome."""

    joined: int
    """Learned with their samples."""
    late: int
    """For samples that are further back than the window reaches."""
    unknown: int
    """For samples that were never learned, or so long ago that nothing is known of them."""
    doubled: int
    """For samples that had a label already."""


class PurgeCounts(BaseModel):
    """What purging a key has done, in samples."""

    replay: int
    """Dropped from the replay memory."""
    unlearned: int
    """Labelled samples that are counted no more."""
    remaining: int
    """Labelled samples still counted, as nobody has kept them; in preset paper all."""


class BatchState(BaseModel):
    """The answer of GET /observations/{batch_id}."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "batch_id": _BATCH_ID,
                    "state": "learned",
                    "n": 100,
                    "position": _POSITION,
                    "step": 42,
                    "expert": 1,
                    "reason": None,
                    "labels": None,
                    "results": None,
                    "purged": None,
                }
            ]
        }
    )
    batch_id: str
    state: Literal["queued", "learned", "quarantined"]
    n: int
    position: str | None
    step: int | None
    expert: int | None
    reason: str | None
    labels: LabelCounts | None
    """Of a batch of late labels that the worker has come to."""
    results: list[LabelOutcome] | None
    """The outcome of each of these labels in the order they were sent, of the first 1,000."""
    purged: PurgeCounts | None
    """Of a purge that the worker has come to."""


class Predictions(BaseModel):
    """The answer of POST /predict: lists of one row per sample, and which model answered."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "labels": [7],
                    "probabilities": [[0.913, 0.061, 0.026]],
                    "classes": [[7, 9, 1]],
                    "experts": [2],
                    "novelty": [0.108],
                    "model_version": 12,
                    "position": _POSITION,
                }
            ]
        }
    )
    labels: list[Label | None]
    """The most probable class; null where the expert has seen no label yet."""
    probabilities: list[list[float]]
    """Of the most probable classes, descending."""
    classes: list[list[Label]]
    """The classes of `probabilities`."""
    experts: list[int]
    novelty: list[float | None]
    """Negative ELBO per input value under that expert, nats; null where it is not finite."""
    model_version: int
    position: str
    """Id of the newest log entry that this model has learned."""
    sample_ids: list[str] | None = None
    """For labels that come later; only with `keep`."""
    kept: Stored | None = None
    """What is on disk of samples and answers; only with `keep`."""
    explanations: list[ExplanationAnswer] | None = None
    """Why each sample is answered so; only with `explain`."""


class Experts(BaseModel):
    """The answer of GET /experts: what the served model is made of."""

    model_config = ConfigDict(extra="allow")
    model_version: int = 0
    position: str | None = None
    published_at: float | None = None
    """Unix seconds."""
    step: int = 0
    samples_learned: int = 0
    experts: list[ExpertInfo] = Field(default_factory=list)


class Readiness(BaseModel):
    """The answer of GET /readyz."""

    status: Literal["ready", "not_ready"]
    problems: list[str] | None = None
    """Why it is not ready; only for keys with the scope `read`."""


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return FastAPI's `responses` for the refusals a route may answer with."""
    schema = {"$ref": f"#/components/schemas/{Problem.__name__}"}
    content = {"application/problem+json": {"schema": schema}}
    return {status: {"description": _TITLES[status], "content": content} for status in statuses}


_TITLES = {
    400: "The body or a header cannot be read",
    401: "No key, or one that does not count",
    403: "The key has not the scope, or is for other streams",
    404: "There is no such thing, or no longer",
    408: "The body did not come in time",
    409: "Lost a race; repeat with the same Idempotency-Key",
    413: "The body or the batch is too large",
    415: "Of a media type that is not read here, or encoded",
    422: "Read, but not what the stream accepts",
    429: "The key has used up its quota; come back after Retry-After seconds",
    503: "Not now; come back after Retry-After seconds",
}
