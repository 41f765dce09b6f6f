"""The worker's side of the ingest log: plain XREAD behind a position, one reader, no group.

The position lies in the checkpoint, not in Redis: a consumer group's pending list would be a
second truth beside it. The log is trimmed by MINID behind the oldest kept checkpoint only; MAXLEN
would drop unread entries in silence.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from service.store import names
from service.store.entry import BatchStatus, Entry
from service.store.link import connect, redis_errors

START = "0-0"
"""The position before the first entry."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one entry, as checkpoints remember it until it has been told."""

    number: int
    """Ordinal of the entry in its stream."""
    status: BatchStatus
    idempotency_key: str | None

    @property
    def member(self) -> str:
        """Its member of `names.DONE`: the batch id and, behind a space, the Idempotency-Key."""
        key = self.idempotency_key
        return self.status.batch_id if key is None else f"{self.status.batch_id} {key}"


_NO_STREAM = {"entries-added": 0, "length": 0}

RawEntry = tuple[str, dict[bytes, bytes]]
"""Position and fields as they lie in the stream, unchecked."""


class Log:
    """The stream and its records as the worker sees them; every method may raise `Unavailable`."""

    def __init__(self, url: str) -> None:
        self._redis = connect(url)

    def read(self, after: str, *, count: int, block_ms: int) -> list[RawEntry]:
        """Return up to `count` entries behind a position, waiting up to `block_ms` for one."""
        with redis_errors():
            answer: Any = self._redis.xread({names.LOG: after}, count=count, block=block_ms)
        return [
            (position.decode(), fields) for _, entries in answer for position, fields in entries
        ]

    def trim(self, position: str, trimmed: int, consumed: int) -> int:
        """Drop the entries up to and with `position`; return how many others are missing.

        Redis counts the entries ever added and those present; their difference must now be
        `trimmed`. Anything but 0 is loss: entries behind the position were deleted (positive),
        or the log was deleted and began anew, or its end was lost (negative).

        Args:
            position: up to where nobody needs the entries any more.
            trimmed: number of the entry there.
            consumed: number of the last entry read.
        """
        milliseconds, _, sequence = position.partition("-")
        following = f"{milliseconds}-{int(sequence) + 1}"
        with redis_errors():
            self._redis.xtrim(names.LOG, minid=following, approximate=False)
            exists = self._redis.exists(names.LOG)
            info: Any = self._redis.xinfo_stream(names.LOG) if exists else _NO_STREAM
        added, present = int(info["entries-added"]), int(info["length"])
        return added - present - trimmed or min(0, added - consumed)

    def set_aside(self, entries: Sequence[tuple[Entry, str]]) -> None:
        """Keep quarantined entries, each with its reason, beyond the trimming; idempotent."""
        with redis_errors():
            for entry, reason in entries:
                header = {"batch_id": entry.batch_id, "number": entry.number, "reason": reason}
                value = json.dumps(header).encode() + b"\n" + entry.payload
                self._redis.hset(names.QUARANTINE, entry.position, value)

    def tell(self, position: str, consumed: int, outcomes: Sequence[Outcome]) -> None:
        """Say what became of entries that are now in a checkpoint; idempotent.

        Args:
            position: up to where the checkpoint reaches.
            consumed: number of the entry there.
            outcomes: of the entries since the checkpoint before.
        """
        with redis_errors():
            pipe = self._redis.pipeline()
            pipe.hset(names.PROGRESS, mapping={"position": position, "consumed": consumed})
            for outcome in outcomes:
                status = outcome.status
                pipe.set(names.batch(status.batch_id), status.to_record())
                pipe.zadd(names.DONE, {outcome.member: outcome.number})
            pipe.execute()
            self._forget_old_batches()

    def close(self) -> None:
        """Close the connection."""
        self._redis.close()

    def _forget_old_batches(self) -> None:
        old: Any = self._redis.zrange(names.DONE, 0, -names.BATCH_RECORDS - 1)
        if not old:
            return
        pipe = self._redis.pipeline()
        for member in old:
            batch_id, _, key = member.decode().partition(" ")
            pipe.delete(names.batch(batch_id), *([names.idempotency(key)] if key else []))
        pipe.zrem(names.DONE, *old)
        pipe.execute()
