"""What the documents about streams look like."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from service.api.schemas_admin import WHOLE, Body, command_body
from service.settings import OF_A_STREAM, STREAM_NAME, Settings

MAX_DECLARATION_BYTES = 2**20
"""Largest body of a declaration, most of which are labels."""


Whole = Annotated[int, WHOLE]
"""An integer in JSON."""


class StreamOptions(Body):
    """The settings that a stream has of its own; README says what each means."""

    input: str | None = None
    labels: list[int | str] | None = Field(default=None, min_length=1, max_length=10_000)
    max_classes: Whole | None = None
    max_backlog: Whole | None = None
    preset: Literal["default", "paper"] | None = None
    seed: Whole | None = None
    expert: Literal["vit", "dnn"] | None = None
    fusion: Literal["none", "fixed", "gated"] | None = None
    budget: float | None = None
    statistics_bytes: Whole | None = None
    replay_bytes: Whole | None = None
    key_replay_share: float | None = None
    false_expansion_probability: float | None = None
    false_expansion_horizon: Whole | None = None
    threshold: float | None = None
    capacity: Whole | None = None
    replay_per_batch: Whole | None = None
    learning_rate: float | None = None
    patch: Whole | None = None
    max_experts: Whole | None = None
    label_window: Whole | None = None
    label_window_bytes: Whole | None = None


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


def _declare_body() -> dict[str, Any]:
    """Return what the OpenAPI page says of a declaration: each option as the setting is bound."""
    body = command_body(Declaration)
    [content] = body["requestBody"]["content"].values()
    settings = Settings.model_json_schema()["properties"]
    for name in OF_A_STREAM:
        option = content["schema"]["properties"][name]
        said = {key: one for key, one in settings[name].items() if key not in {"default", "title"}}
        option["description"] = said.pop("description")
        if "type" in said:
            option["anyOf"] = [said, {"type": "null"}]
    return body


DECLARE_BODY: dict[str, Any] = _declare_body()
