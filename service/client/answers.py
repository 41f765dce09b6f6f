"""What the service answered, as the client returns it: documents, refusals, rows, events.

Dimension key: B batch, K classes listed per sample.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray

from service.client.models import Answers, ApiError, Event, Observation, Receipt
from service.engine.protocol import Array, Label


def document(answer: httpx.Response) -> dict[str, Any]:
    """Return the JSON document of an answer.

    Raises:
        ApiError: `bad_answer`, it holds none, so that something else than the service answered.
    """
    try:
        found = answer.json()
    except ValueError:
        found = None
    if isinstance(found, dict):
        return found
    raise ApiError(answer.status_code, "bad_answer", f"expected JSON from {answer.request.url}")


def refusal(answer: httpx.Response) -> ApiError:
    """Return the error that a `problem+json` answer (or a proxy's) tells."""
    try:
        said = document(answer)
    except ApiError:
        said = {}
    code, detail = said.get("code", "unknown"), said.get("detail", answer.reason_phrase)
    wait = answer.headers.get("Retry-After", "")
    retry_after_s = float(wait) if wait.isdecimal() else 0.0
    return ApiError(answer.status_code, str(code), str(detail), retry_after_s=retry_after_s)


def unreachable(url: httpx.URL, lost: httpx.TransportError) -> ApiError:
    """Return the error that says that no answer came."""
    return ApiError(0, "unreachable", f"no answer from {url}: {lost}")


def receipt(answer: httpx.Response) -> Receipt:
    """Return what POST /observe answered."""
    said = document(answer)
    replayed = answer.headers.get("Idempotent-Replayed") == "true"
    fields = ("batch_id", "n", "position", "backlog", "durability")
    return Receipt(replayed=replayed, **{name: said[name] for name in fields})


def observation(answer: httpx.Response) -> Observation:
    """Return what GET /observations/{batch_id} answered."""
    said = document(answer)
    known = Observation.__dataclass_fields__.keys() & said.keys()
    return Observation(**{name: said[name] for name in known})


def answers(answer: httpx.Response) -> Answers:
    """Return what POST /predict answered."""
    said = document(answer)
    return Answers(
        labels=_labels(said["labels"]),
        probabilities=_filled(said["probabilities"]),
        classes=_classes(said["classes"]),
        experts=np.array(said["experts"], np.int64),
        novelty=np.array(said["novelty"], np.float64),
        model_version=said["model_version"],
        position=said["position"],
        sample_ids=tuple(said.get("sample_ids") or ()),
        explanations=tuple(said.get("explanations") or ()),
    )


def reached(position: str | None, wanted: str | None) -> bool:
    """Say whether a position of the log is `wanted` or behind it."""
    here, there = ((one or "0-0").split("-") for one in (position, wanted))
    return [int(part) for part in here] >= [int(part) for part in there]


def _labels(labels: Sequence[Label | None]) -> Array:
    """Return an answer's labels as one array of integers or of strings."""
    if any(isinstance(label, str) for label in labels):
        return np.array(["" if label is None else label for label in labels])
    return np.array([-1 if label is None else label for label in labels], np.int64)


def _classes(rows: Sequence[Sequence[Label]]) -> Array:
    """Return the listed classes as one array [B, K]; rows without an answer hold none."""
    width = max(map(len, rows), default=0)
    padded = [[*row, *[None] * (width - len(row))] for row in rows]
    return _labels([label for row in padded for label in row]).reshape(len(rows), width)


def _filled(rows: Sequence[Sequence[float]]) -> NDArray[np.float64]:
    """Return rows of unequal length as one array [B, K], filled up with zeros."""
    width = max(map(len, rows), default=0)
    return np.array([[*row, *[0.0] * (width - len(row))] for row in rows], np.float64)


class EventReader:
    """Puts the lines of an event stream together (server-sent events; comments keep it alive)."""

    def __init__(self) -> None:
        self._fields: dict[str, str] = {}
        self.last_id = ""
        """Id to go on behind; empty before the service named one."""

    def feed(self, line: str) -> Event | None:
        """Take one line without its end; return the event that an empty line completes.

        Raises:
            ValueError: the data of the event are no JSON object.
        """
        if line:
            name, _, value = line.partition(":")
            if name:  # without one it is a comment
                value = value.removeprefix(" ")
                before = self._fields.get(name)
                joined = name == "data" and before is not None
                self._fields[name] = f"{before}\n{value}" if joined else value
            return None
        fields, self._fields = self._fields, {}
        self.last_id = fields.get("id", self.last_id)
        if "data" not in fields:
            return None
        data: Mapping[str, Any] = json.loads(fields["data"])
        return Event(id=self.last_id, kind=fields.get("event", "message"), data=data)
