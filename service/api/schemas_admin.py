"""What administrators are told and say: models of the answers and of the small bodies."""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from starlette.requests import Request

from service.api.body import JSON, media_type_of, read_body
from service.api.json_body import parse_json
from service.engine.protocol import Label
from service.errors import ServiceError, Unprocessable

MAX_BODY_BYTES = 4096
"""Largest body of a command."""


class QuarantinedBatch(BaseModel):
    """One batch that was set aside."""

    batch_id: str
    number: int
    """Ordinal of its entry in the log."""
    position: str
    """Id of its entry in the log."""
    n: int
    reason: str
    bytes: int
    """Of its payload."""


class QuarantinePage(BaseModel):
    """The answer of GET /quarantine: oldest first."""

    quarantined: list[QuarantinedBatch]
    after: str | None
    """What to ask for `after` to see more; null at the end."""


class QuarantinedDetails(QuarantinedBatch):
    """The answer of GET /quarantine/{batch_id}."""

    kind: Literal["observed", "predicted", "labels", "purge"]
    """What the entry is: samples to learn or that were answered, late labels, a purged key."""
    input: str
    """What its samples are."""
    labels: list[Label | None] | None
    """One a sample, or the late ones; null where no sample has one."""


class CheckpointRow(BaseModel):
    """One checkpoint, as it says of itself."""

    seq: int
    number: int
    """Of the last entry it has consumed."""
    position: str
    """Id of that entry in the log."""
    learned: int
    quarantined: int
    experts: int
    bytes: int
    age_s: float | None
    pins: list[str]
    """Names under which it is kept for good."""


class PinRow(BaseModel):
    """One checkpoint that is kept for good, perhaps no longer among the others."""

    name: str
    seq: int
    number: int
    position: str
    bytes: int


class CheckpointList(BaseModel):
    """The answer of GET /checkpoints: checkpoints newest first, pins oldest first."""

    checkpoints: list[CheckpointRow]
    pins: list[PinRow]


class SnapshotRow(BaseModel):
    """One published snapshot, as it says of itself."""

    version: int
    position: str
    step: int
    quarantined: int
    experts: int
    bytes: int
    age_s: float | None


class SnapshotList(BaseModel):
    """The answer of GET /snapshots: newest first."""

    snapshots: list[SnapshotRow]


class Followed(BaseModel):
    """The answer of a command that the worker has followed."""

    detail: str
    """What it has done."""


class Body(BaseModel):
    """The JSON body of a command."""

    model_config = ConfigDict(extra="forbid", strict=True)


def _whole(value: object) -> object:
    """Return 3.0 as 3: JSON has one kind of number, and some clients spell integers so."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


WHOLE = BeforeValidator(_whole)


class Nothing(Body):
    """`{}`: all is said by the path."""


class Rollback(Body):
    """How the learner goes back to a checkpoint."""

    mode: Literal["retrain", "drop"] = "retrain"
    """`retrain` reads the later entries once more, `drop` sets them aside."""


class Pin(Body):
    """Under which name a checkpoint is kept for good."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9-]{1,40}$")]


class Resync(Body):
    """How many entries an administrator gives up for lost."""

    accept_loss: Annotated[int, Field(ge=0, le=2**53), WHOLE]


_T = TypeVar("_T", bound=Body)


async def read_command(request: Request, kind: type[_T], *, most: int = MAX_BODY_BYTES) -> _T:
    """Return the JSON body of a command, which a web page of another origin cannot send.

    Args:
        request: whose body has not been read yet.
        kind: what it is.
        most: bytes.

    Raises:
        ServiceError: 400, 413, 415 or 422, naming what is wrong.
    """
    media_type_of(request, JSON)
    document = parse_json(await read_body(request, most))
    if not isinstance(document, dict):
        raise Unprocessable("bad_body", "expected a JSON object")
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        raise _refusal(error) from None


def _refusal(error: ValidationError) -> ServiceError:
    first = error.errors(include_url=False, include_input=False)[0]
    field = ".".join(str(part) for part in first["loc"])[:80]
    problem = f"{first['msg'][0].lower()}{first['msg'][1:]}"
    match first["type"]:
        case "missing":
            return Unprocessable("missing_field", f"expected the field {field}, got none")
        case "extra_forbidden":
            return Unprocessable("unknown_field", f"expected no field {field!a}")
        case _:
            return Unprocessable("bad_value", f"{field}: {problem}")


def command_body(kind: type[Body]) -> dict[str, Any]:
    """Return what the OpenAPI page says of the body of a command."""
    content = {JSON: {"schema": kind.model_json_schema()}}
    return {"requestBody": {"required": True, "content": content}}
