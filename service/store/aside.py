"""An entry that was set aside: its record in Redis, and its way back into the log.

The record is a line of JSON {batch_id, number, reason, fields} and the payload; `fields` are those
of the stream entry but the payload. Released or dropped, it leaves an empty record behind, so that
a worker that meets the entry again (after a crash or a rollback) does not set it aside once more.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from redis.client import Pipeline

from service.errors import CorruptState
from service.store.entry import BatchStatus, Entry
from service.store.events import Facts, queue_event
from service.store.names import Names

GONE = b""
"""Record of an entry that was released or dropped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SetAside:
    """One quarantined entry, with all that it takes to append it again."""

    position: str
    """Where it was in the log."""
    number: int
    batch_id: str
    reason: str
    fields: Mapping[str, str | int]
    """Of its stream entry, the payload left out."""
    payload: bytes

    @classmethod
    def of(cls, one: Entry, reason: str) -> Self:
        """Return the record of an entry that is set aside now."""
        fields = one.to_fields(one.payload)
        plain = {name: value for name, value in fields.items() if not isinstance(value, bytes)}
        return cls(
            position=one.position,
            number=one.number,
            batch_id=one.batch_id,
            reason=reason,
            fields=plain,
            payload=one.payload,
        )

    @property
    def facts(self) -> Facts:
        """What events say of it."""
        return {"batch_id": self.batch_id, "number": self.number, "n": int(self.fields["n"])}

    def to_record(self) -> bytes:
        """Return the bytes that lie under its position."""
        header = {
            "batch_id": self.batch_id,
            "number": self.number,
            "reason": self.reason,
            "fields": dict(self.fields),
        }
        return json.dumps(header).encode() + b"\n" + self.payload

    @classmethod
    def from_record(cls, position: str, record: bytes) -> Self:
        """Return what `to_record` wrote.

        Raises:
            CorruptState: the record cannot be read.
        """
        head, _, payload = record.partition(b"\n")
        try:
            return cls(position=position, payload=payload, **json.loads(head))
        except (ValueError, TypeError) as error:
            raise CorruptState(f"set aside entry {position} cannot be read: {error}") from None


def queue_again(names: Names, one: SetAside, pipe: Pipeline) -> None:
    """Queue what appends an entry to the log again, under its old id, and empties its record."""
    fields: dict[Any, Any] = {**one.fields, "payload": one.payload}
    pipe.incr(names.accepted)
    pipe.xadd(names.log, fields)
    status = BatchStatus(batch_id=one.batch_id, state="queued", n=int(one.fields["n"]))
    pipe.set(names.batch(one.batch_id), status.to_record())
    pipe.hset(names.quarantine, one.position, GONE)
    queue_event(names, pipe, "released", one.facts)
