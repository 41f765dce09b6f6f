"""The API's side of the ingest log: an accepted mini-batch is on disk before it is acknowledged.

One WATCH/MULTI/EXEC a batch and no Lua: the idempotency record, the entry, its status record and,
with the first batches, the schema come into being together or not at all. With
`appendfsync always` Redis answers EXEC after its fsync, so an answer means durable. A lost answer
means unknown, and only the same Idempotency-Key makes a retry safe.
"""

import json
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

from redis.asyncio import Redis
from redis.asyncio.client import Pipeline
from redis.exceptions import WatchError

from service.engine.protocol import Label
from service.errors import Conflict, Unavailable, Unprocessable
from service.inputs import InputSchema
from service.settings import Settings
from service.store import entry, names
from service.store.durability import ServerFacts, read_server
from service.store.entry import BatchStatus
from service.store.link import connect_async, redis_errors

LabelKind = Literal["int", "string"]
ATTEMPTS = 5
"""How often a transaction that lost a race is tried before the client is told to retry."""
ADMISSION_SHARE = 0.8
"""Share of Redis' `maxmemory` that accepted batches may fill; the rest is the worker's, which
must be able to write replay members before it can trim anything."""
CHECK_INTERVAL_S = 1.0
"""How long an answer about memory and durability is believed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """A validated mini-batch on its way into the log."""

    schema: InputSchema
    labels_kind: LabelKind | None
    """None when no sample has a label."""
    n: int
    distinct_labels: Sequence[Label]
    payload: bytes
    """As `entry.encode` makes it."""
    idempotency_key: str | None
    digest: str
    """SHA-256 of the request body, hexadecimal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What a 202 says."""

    batch_id: str
    n: int
    position: str | None
    """Id in the stream; None when a replayed batch is still queued."""
    backlog: int
    """Entries accepted and not yet in a checkpoint, this one included."""
    idempotent: bool
    """Whether an Idempotency-Key came with it, so that a retry cannot train twice."""
    replayed: bool
    """Whether this batch had been accepted before."""
    durability: str
    """`appendfsync` of the server: `always`, `everysec` or `no`."""


@dataclass(frozen=True, slots=True)
class StreamSchema:
    """What the stream has settled so far."""

    input: InputSchema
    labels: LabelKind | None
    """None until the first labelled batch."""

    def with_batch(self, submission: Submission) -> "StreamSchema":
        """Return the schema once `submission` is part of the stream.

        Raises:
            Unprocessable: it does not fit what earlier batches, or LEVIT_INPUT, fixed.
        """
        if submission.schema != self.input:
            raise Unprocessable(
                "schema_mismatch", f"expected samples of {self.input}, got {submission.schema}"
            )
        if submission.labels_kind is None:
            return self
        if self.labels not in (None, submission.labels_kind):
            raise Unprocessable(
                "label_kind_mismatch",
                f"expected {self.labels} labels, got {submission.labels_kind} labels",
            )
        return StreamSchema(self.input, submission.labels_kind)

    def to_record(self) -> str:
        """Return the JSON that lies under `names.SCHEMA`."""
        return json.dumps({"input": str(self.input), "labels": self.labels})

    @classmethod
    def from_record(cls, record: bytes) -> Self:
        """Return the schema that `to_record` wrote."""
        fields = json.loads(record)
        return cls(InputSchema.parse(fields["input"]), fields["labels"])


class Appender:
    """Appends mini-batches to the log and tells what became of them."""

    def __init__(self, url: str, settings: Settings) -> None:
        self._redis: Any = connect_async(url)  # its types are a union over protocols
        self._settings = settings
        self._complete_schema: StreamSchema | None = None  # it never changes again
        self._known_labels: set[str] = set()
        self._server: ServerFacts | None = None

    async def append(self, submission: Submission) -> Receipt:
        """Return the receipt of a batch that is now in the log, or was already.

        Raises:
            Unprocessable: `schema_mismatch`, `label_kind_mismatch`, `too_many_classes`,
                `idempotency_key_reused`; nothing was stored.
            Unavailable: `backlog_full`, nothing was stored; `redis_unavailable`, the outcome is
                unknown.
            Conflict: `conflict`, lost a race five times; nothing was stored.
        """
        with redis_errors():
            for _ in range(ATTEMPTS):
                try:
                    return await self._try(submission)
                except WatchError:
                    continue
        raise Conflict("conflict", f"lost the race for the log {ATTEMPTS} times; retry")

    async def status(self, batch_id: str) -> BatchStatus | None:
        """Return what became of a batch, or None if no record of it is kept.

        Raises:
            Unavailable: `redis_unavailable`.
        """
        with redis_errors():
            record = await self._redis.get(names.batch(batch_id))
        return None if record is None else BatchStatus.from_record(record)

    async def stream_schema(self) -> StreamSchema | None:
        """Return what is settled about inputs and labels, or None before the first batch.

        Raises:
            Unavailable: `redis_unavailable`.
        """
        if self._complete_schema is None:
            with redis_errors():
                schema = self._schema_from(await self._redis.get(names.SCHEMA))
            if schema is None or schema.labels is None:
                return schema
            self._complete_schema = schema
        return self._complete_schema

    async def backlog(self) -> int:
        """Return the number of entries accepted and not yet in a checkpoint.

        Raises:
            Unavailable: `redis_unavailable`.
        """
        with redis_errors():
            accepted = await self._redis.get(names.ACCEPTED)
            return int(accepted or 0) - await _consumed(self._redis)

    async def problems(self) -> list[str]:
        """Return why the server does not keep what a 202 promises; empty when it does.

        Raises:
            Unavailable: `redis_unavailable`.
        """
        with redis_errors():
            return (await self._read_server()).problems

    async def close(self) -> None:
        """Close every connection."""
        await self._redis.aclose()

    async def _try(self, submission: Submission) -> Receipt:
        key = submission.idempotency_key
        server = await self._read_server()
        async with self._redis.pipeline(transaction=True) as pipe:
            watched = [names.SCHEMA] if key is None else [names.SCHEMA, names.idempotency(key)]
            await pipe.watch(*watched)
            record, accepted, *earlier = await pipe.mget(names.SCHEMA, names.ACCEPTED, *watched[1:])
            if earlier and earlier[0] is not None:
                return await self._replay(submission, json.loads(earlier[0]), server)
            stored = self._schema_from(record)
            schema = (stored or StreamSchema(submission.schema, None)).with_batch(submission)
            labels = await self._new_labels(pipe, submission)
            self._check_room(int(accepted or 0) - await _consumed(pipe), server)
            pipe.multi()
            batch_id = _queue(pipe, submission)
            if record is None or schema != stored:
                pipe.set(names.SCHEMA, schema.to_record())
            if labels:
                pipe.sadd(names.CLASSES, *labels)
            number, position, consumed, *_ = await pipe.execute()
        self._known_labels |= labels
        return Receipt(
            batch_id=batch_id,
            n=submission.n,
            position=position.decode(),
            backlog=number - int(consumed or 0),
            idempotent=key is not None,
            replayed=False,
            durability=server.durability,
        )

    async def _replay(
        self, submission: Submission, earlier: dict[str, Any], server: ServerFacts
    ) -> Receipt:
        if earlier["digest"] != submission.digest:
            raise Unprocessable(
                "idempotency_key_reused",
                f"Idempotency-Key {submission.idempotency_key} came with another body before",
            )
        status = await self.status(earlier["batch_id"])
        return Receipt(
            batch_id=earlier["batch_id"],
            n=earlier["n"],
            position=None if status is None else status.position,
            backlog=await self.backlog(),
            idempotent=True,
            replayed=True,
            durability=server.durability,
        )

    async def _new_labels(self, pipe: Pipeline, submission: Submission) -> set[str]:
        """Return the labels the stream has not seen, watching the set of those it has."""
        labels = {str(label) for label in submission.distinct_labels}
        if labels <= self._known_labels:
            return set()
        await pipe.watch(names.CLASSES)
        members: Any = await pipe.smembers(names.CLASSES)
        self._known_labels = {label.decode() for label in members}
        classes = len(self._known_labels | labels)
        if classes > self._settings.max_classes:
            raise Unprocessable(
                "too_many_classes",
                f"expected at most {self._settings.max_classes} classes in a stream, got {classes}",
            )
        return labels - self._known_labels

    def _check_room(self, backlog: int, server: ServerFacts) -> None:
        most, share = self._settings.max_backlog, server.memory_share
        if backlog >= most:
            problem = f"expected a backlog under {most} entries, got {backlog}"
        elif share >= ADMISSION_SHARE:
            problem = f"expected redis under {ADMISSION_SHARE:.0%} of maxmemory, got {share:.0%}"
        else:
            return
        raise Unavailable("backlog_full", problem, retry_after_s=1)

    def _schema_from(self, record: bytes | None) -> StreamSchema | None:
        if record is not None:
            return StreamSchema.from_record(record)
        declared = self._settings.schema_from_settings
        return None if declared is None else StreamSchema(declared, None)

    async def _read_server(self) -> ServerFacts:
        """Return how the server is configured and filled, at most `CHECK_INTERVAL_S` ago."""
        if self._server is None or time.monotonic() - self._server.read_at > CHECK_INTERVAL_S:
            self._server = await read_server(self._redis)
        return self._server


def _queue(pipe: Pipeline, submission: Submission) -> str:
    """Queue the commands that every accepted batch takes; return its new id."""
    batch_id, key = uuid.uuid4().hex, submission.idempotency_key
    fields: dict[Any, Any] = entry.to_fields(
        batch_id=batch_id,
        schema=submission.schema,
        n=submission.n,
        payload=submission.payload,
        idempotency_key=key,
    )
    pipe.incr(names.ACCEPTED)
    pipe.xadd(names.LOG, fields)
    pipe.hget(names.PROGRESS, "consumed")
    status = BatchStatus(batch_id=batch_id, state="queued", n=submission.n)
    pipe.set(names.batch(batch_id), status.to_record())
    if key is not None:
        record = {"batch_id": batch_id, "n": submission.n, "digest": submission.digest}
        lifetime_s = names.IDEMPOTENCY_LIFETIME_S
        pipe.set(names.idempotency(key), json.dumps(record), ex=lifetime_s)
    return batch_id


async def _consumed(redis: Redis | Pipeline) -> int:
    return int(await redis.hget(names.PROGRESS, "consumed") or 0)
