"""The API's side of the ingest log: an accepted mini-batch is on disk before it is acknowledged.

One WATCH/MULTI/EXEC a batch and no Lua: the idempotency record, the entry, its status record and,
with the first batches, the schema come into being together or not at all. With
`appendfsync always` Redis answers EXEC after its fsync, so an answer means durable. A lost answer
means unknown, and only the same Idempotency-Key makes a retry safe.
"""

import hashlib
import json
import uuid
from collections.abc import Sequence
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.client import Pipeline
from redis.exceptions import WatchError

from service.errors import Conflict, Unprocessable
from service.inputs import InputSchema
from service.settings import Settings
from service.store.admission import Admission, Facts
from service.store.entry import BatchStatus, Header
from service.store.link import connect_async, redis_answers, transaction
from service.store.names import RECORD_LIFETIME_S, Names
from service.store.positions import Positions
from service.store.stream_schema import StreamSchema, check_declared
from service.store.submission import Receipt, Submission

ATTEMPTS = 5
"""How often a transaction that lost a race is tried before the client is told to retry."""


class Appender:
    """Appends mini-batches to the log and tells what became of them."""

    def __init__(self, url: str, settings: Settings) -> None:
        self._redis: Any = connect_async(url)  # its types are a union over protocols
        self._settings = settings
        self._names = Names(settings.stream)
        self._admission = Admission(self._redis, settings)
        self._complete_schema: StreamSchema | None = None  # it never changes again
        self._known_labels: set[str] = set()
        self._positions = Positions(self._redis)

    async def append(self, submission: Submission) -> Receipt:
        """Return the receipt of a batch that is now in the log, or was already.

        Raises:
            Unprocessable: `schema_mismatch`, `label_kind_mismatch`, `unknown_label`,
                `too_many_classes`, `idempotency_key_reused`, `nothing_to_label`; nothing was
                stored.
            Unavailable: `backlog_full`, `disk_full`; `redis_unavailable`, the outcome is unknown.
            Conflict: `conflict`, lost a race five times; nothing was stored.
        """
        async with redis_answers():
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
        async with redis_answers():
            record = await self._redis.get(self._names.batch(batch_id))
        return None if record is None else BatchStatus.from_record(record)

    async def stream_schema(self) -> StreamSchema | None:
        """Return what is settled about inputs and labels, or None before the first batch.

        Raises:
            Unavailable: `redis_unavailable`.
        """
        if self._complete_schema is None:
            async with redis_answers():
                schema = self._schema_from(await self._redis.get(self._names.schema))
            if schema is None or schema.labels is None:
                return schema
            self._complete_schema = schema
        return self._complete_schema

    async def backlog(self) -> int:
        """Return the number of entries accepted and not yet in a checkpoint.

        Raises:
            Unavailable: `redis_unavailable`.
        """
        async with redis_answers():
            accepted = await self._redis.get(self._names.accepted)
            return int(accepted or 0) - await _consumed(self._redis, self._names)

    async def problems(self) -> list[str]:
        """Return why the server does not keep what a 202 promises; empty when it does.

        Raises:
            Unavailable: `redis_unavailable`.
        """
        async with redis_answers():
            return await self._admission.problems()

    async def facts(self) -> Facts:
        """Return what was found of server, worker and disk a moment ago.

        Raises:
            Unavailable: `redis_unavailable`.
        """
        async with redis_answers():
            return await self._admission.facts()

    async def close(self) -> None:
        """Close every connection."""
        await self._positions.close()
        await self._redis.aclose()

    async def _try(self, submission: Submission) -> Receipt:
        key = submission.client_key
        batch_id = batch_id_of(key)
        records = [] if key is None else [self._names.idempotency(key), self._names.batch(batch_id)]
        facts = await self._admission.facts()
        async with transaction(self._redis) as pipe:
            await pipe.watch(self._names.schema, *records)
            found: Any = await pipe.mget(self._names.schema, self._names.accepted, *records)
            schema, accepted, *earlier = found
            backlog = int(accepted or 0) - await _consumed(pipe, self._names)
            if any(earlier):
                return _replayed(submission, batch_id, earlier, backlog, facts)
            settled = self._settled(schema, submission)
            labels = await self._new_labels(pipe, submission)
            self._admission.check_room(facts, backlog, len(submission.payload))
            pipe.multi()
            _queue(self._names, pipe, submission, batch_id, settled.input)
            if (record := settled.to_record().encode()) != schema:
                pipe.set(self._names.schema, record)
            if labels:
                pipe.sadd(self._names.classes, *labels)
            number, position, consumed, *_ = await pipe.execute()
        self._known_labels |= labels
        if key is not None:
            told = _idempotency_record(submission, position.decode())
            self._positions.note(self._names.idempotency(key), told)
        return Receipt(
            batch_id=batch_id,
            n=submission.n,
            position=position.decode(),
            backlog=number - int(consumed or 0),
            idempotent=key is not None,
            replayed=False,
            state="queued",
            durability=facts.server.durability,
        )

    def _settled(self, record: bytes | None, submission: Submission) -> StreamSchema:
        """Return what is settled once the batch is part of the stream."""
        stored = self._schema_from(record)
        found = submission.schema or (None if stored is None else stored.input)
        if found is None:
            raise Unprocessable("nothing_to_label", "expected samples before labels, got none yet")
        stored = stored or StreamSchema(found, None)
        return stored.with_batch(found, submission.labels_kind)

    async def _new_labels(self, pipe: Pipeline, submission: Submission) -> set[str]:
        """Return the labels the stream has not seen, watching the set of those it has."""
        labels = {str(label) for label in submission.distinct_labels}
        check_declared(labels, self._settings.labels)
        if labels <= self._known_labels:
            return set()
        await pipe.watch(self._names.classes)
        members: Any = await pipe.smembers(self._names.classes)
        self._known_labels = {label.decode() for label in members}
        classes = len(self._known_labels | labels)
        if classes > self._settings.max_classes:
            raise Unprocessable(
                "too_many_classes",
                f"expected at most {self._settings.max_classes} classes in a stream, got {classes}",
            )
        return labels - self._known_labels

    def _schema_from(self, record: bytes | None) -> StreamSchema | None:
        if record is not None:
            return StreamSchema.from_record(record)
        declared = self._settings.schema_from_settings
        return None if declared is None else StreamSchema(declared, None)


def batch_id_of(key: str | None) -> str:
    """Return the id of the batch of a client's Idempotency-Key; a new one without.

    One key, one id: with every record of it gone, the checkpoint's learned ids still tell a retry.
    """
    if key is None:
        return uuid.uuid4().hex
    return hashlib.sha256(key.encode()).hexdigest()[:32]


def _replayed(
    submission: Submission,
    batch_id: str,
    earlier: Sequence[bytes | None],
    backlog: int,
    facts: Facts,
) -> Receipt:
    """Return the receipt of a batch of which at least one of the two records is there.

    Raises:
        Unprocessable: `idempotency_key_reused`.
    """
    record, status_record = earlier
    status = None if status_record is None else BatchStatus.from_record(status_record)
    known = {} if record is None else json.loads(record)
    if known.get("digest", submission.digest) != submission.digest:
        raise Unprocessable(
            "idempotency_key_reused",
            f"Idempotency-Key {submission.idempotency_key} came with another body before",
        )
    return Receipt(
        batch_id=batch_id,
        n=submission.n,
        position=known.get("position") or (None if status is None else status.position),
        backlog=backlog,
        idempotent=True,
        replayed=True,
        state="queued" if status is None else status.state,
        durability=facts.server.durability,
    )


def _queue(
    names: Names, pipe: Pipeline, submission: Submission, batch_id: str, schema: InputSchema
) -> None:
    """Queue the commands that every accepted batch takes."""
    header = Header(
        batch_id=batch_id,
        schema=schema,
        n=submission.n,
        kind=submission.kind,
        key_id=submission.key_id,
        idempotency_key=submission.idempotency_key,
        model_version=submission.model_version,
        traceparent=submission.traceparent,
    )
    fields: dict[Any, Any] = header.to_fields(submission.payload)
    pipe.incr(names.accepted)
    pipe.xadd(names.log, fields)
    pipe.hget(names.progress, "consumed")
    status = BatchStatus(batch_id=batch_id, state="queued", n=submission.n)
    pipe.set(names.batch(batch_id), status.to_record())
    if (key := submission.client_key) is not None:
        record, lifetime_s = _idempotency_record(submission, None), RECORD_LIFETIME_S
        pipe.set(names.idempotency(key), record, ex=lifetime_s)


def _idempotency_record(submission: Submission, position: str | None) -> str:
    return json.dumps({"digest": submission.digest, "position": position})


async def _consumed(redis: Redis | Pipeline, names: Names) -> int:
    return int(await redis.hget(names.progress, "consumed") or 0)
