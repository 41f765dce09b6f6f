"""What the documents about streams look like."""

from typing import Any, Literal

from pydantic import BaseModel, Field

from service.api.schemas_admin import Body, command_body
from service.settings import STREAM_NAME


class StreamOptions(Body):
    """The settings that a stream has of its own; README says what each means."""

    input: str | None = None
    labels: list[int | str] | None = Field(default=None, min_length=1, max_length=10_000)
    max_classes: int | None = None
    max_backlog: int | None = None
    preset: Literal["default", "paper"] | None = None
    seed: int | None = None
    expert: Literal["vit", "dnn"] | None = None
    fusion: Literal["none", "fixed", "gated"] | None = None
    budget: float | None = None
    statistics_bytes: int | None = None
    replay_bytes: int | None = None
    false_expansion_probability: float | None = None
    false_expansion_horizon: int | None = None
    threshold: float | None = None
    capacity: int | None = None
    replay_per_batch: int | None = None
    learning_rate: float | None = None
    patch: int | None = None
    max_experts: int | None = None
    label_window: int | None = None
    label_window_bytes: int | None = None


class Declaration(StreamOptions):
    """The body of POST /streams."""

    name: str = Field(pattern=STREAM_NAME)


class DeclaredStream(StreamOptions):
    """A stream: its settings, and the model it serves."""

    name: str
    model_version: int
    """0 before the first model."""


class StreamList(BaseModel):
    """The answer of GET /streams; the default stream is first."""

    streams: list[DeclaredStream]


DECLARE_BODY: dict[str, Any] = command_body(Declaration)
