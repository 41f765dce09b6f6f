"""What is kept of batches that are finished: a day, and never more than a quarter of Redis.

A finished batch has two records, its status and that of its Idempotency-Key, which expire by
themselves. `names.done` knows them by age, so that the oldest can go earlier where they would take
more room than they may. One that is set aside keeps its status until it is released or dropped.
What is gone here is no batch learned twice: the checkpoint remembers the ids learned last.
"""

import time
from collections.abc import Iterable
from typing import Any

from redis.client import Pipeline

from service.store.entry import BatchStatus
from service.store.fence import Fence
from service.store.link import redis_errors
from service.store.names import RECORD_LIFETIME_S, Names

SHARE = 0.25
"""Share of Redis' `maxmemory` that the records may take."""
RECORD_BYTES = 1024
"""Of one batch with a key of 64 characters; measured: 814 bytes with one of 32."""
AT_ONCE = 10_000
"""Most batches whose records are removed in one transaction."""


def queue_record(names: Names, pipe: Pipeline, status: BatchStatus, member: str) -> None:
    """Queue what tells the outcome of a batch, for as long as it is kept.

    Args:
        names: of the stream.
        pipe: a transaction.
        status: the outcome.
        member: batch id and, behind a space, Idempotency-Key; see `names.done`.
    """
    name, record = names.batch(status.batch_id), status.to_record()
    if status.state == "quarantined":
        pipe.set(name, record)
        return
    pipe.set(name, record, ex=RECORD_LIFETIME_S)
    pipe.zadd(names.done, {member: time.time()})


def forget_old(fence: Fence) -> None:
    """Remove the records of the oldest batches where all of them take more than their share.

    Raises:
        Unavailable: Redis is away; may be called again.
        StateDirectoryBusy: a later worker has started.
    """
    redis: Any = fence.redis
    names = fence.names
    with redis_errors():
        expired = redis.zcount(names.done, 0, _expired_before())
        kept = redis.zcard(names.done) - expired
        excess = min(AT_ONCE, max(0, kept - _most(redis.info("memory")["maxmemory"])))
        oldest = redis.zrange(names.done, expired, expired + excess - 1) if excess else []
    if expired or oldest:
        fence.write(lambda pipe: _queue_removal(names, pipe, oldest))


def _most(maxmemory: int) -> float:
    """Return the batches whose records may be kept; without a limit, all of a day."""
    return int(maxmemory * SHARE / RECORD_BYTES) if maxmemory else float("inf")


def _expired_before() -> float:
    return time.time() - RECORD_LIFETIME_S


def _queue_removal(names: Names, pipe: Pipeline, members: Iterable[bytes]) -> None:
    pipe.zremrangebyscore(names.done, 0, _expired_before())
    for member in members:
        batch_id, _, key = member.decode().partition(" ")
        pipe.delete(names.batch(batch_id), *([names.idempotency(key)] if key else []))
        pipe.zrem(names.done, member)
