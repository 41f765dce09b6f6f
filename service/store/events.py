"""What happened to a stream, for whoever listens: the newest `MOST_KEPT` events, on disk.

Each is an entry of `names.events`, queued in the transaction that makes it true, so none is lost
or told twice. What the worker tells of entries and decisions it tells with `Log.tell`: a crash or
a lost answer makes it tell the same once more, so beside them lies a `Mark` of what was told.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

from redis.client import Pipeline

from service.store.names import Names
from service.store.stream_ids import order

MOST_KEPT = 10_000
"""Events of one stream; older ones go. At most some 3 KiB each."""
MOST_CHARACTERS = 300
"""Of a text in an event."""

EventKind = Literal[
    "stream_created",
    "expanded",
    "drifted",
    "rolled_back",
    "resynced",
    "quarantined",
    "released",
    "dropped",
    "snapshot",
    "stopped",
    "recovered",
]
Facts = Mapping[str, Any]
"""What an event says, by name; plain values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One event, as it is kept."""

    id: str
    """Its place among the events of its stream, as Redis gave it."""
    kind: str
    facts: Facts

    @property
    def at(self) -> float:
        """When it was written, in Unix seconds of the clock of Redis."""
        return order(self.id)[0] / 1000

    @classmethod
    def from_raw(cls, id_: bytes, fields: Mapping[bytes, bytes]) -> Self:
        """Return the event that `queue_event` wrote."""
        return cls(
            id=id_.decode(), kind=fields[b"kind"].decode(), facts=json.loads(fields[b"facts"])
        )


@dataclass(frozen=True, slots=True, order=True)
class EntryMark:
    """Which entry something was told of last.

    After a rollback other entries have the numbers of those that were given up, or the same are
    learned anew: they are of a later timeline.
    """

    timeline: int = 0
    """Number of the newest decision that began anew before this entry; 0 without one."""
    number: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """How far the worker has told what happened."""

    entry: EntryMark
    decisions: int
    """How many."""
    snapshot: int
    """The version told last."""

    def to_record(self) -> str:
        """Return the JSON that lies beside the progress."""
        return json.dumps(asdict(self))

    @classmethod
    def from_record(cls, record: bytes) -> Self:
        """Return the mark that `to_record` wrote."""
        facts = json.loads(record)
        return cls(**{**facts, "entry": EntryMark(**facts["entry"])})


@dataclass(frozen=True, slots=True, kw_only=True)
class News:
    """What is to be told, and the mark that says it was."""

    mark: Mark
    events: Sequence[tuple[EventKind, Facts]]


def queue_event(names: Names, pipe: Pipeline, kind: EventKind, facts: Facts) -> None:
    """Queue what tells an event to whoever listens to a stream; texts are cut."""
    plain = json.dumps(_plain(facts), separators=(",", ":"))
    pipe.xadd(names.events, {"kind": kind, "facts": plain}, maxlen=MOST_KEPT, approximate=False)


def _plain(value: Any) -> Any:  # noqa: ANN401  any value of JSON
    """Return a value as JSON has it: it knows no NaN and no infinity."""
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value[:MOST_CHARACTERS] if isinstance(value, str) else value
