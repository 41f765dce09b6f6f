"""The two ways to connect to Redis, and the one error that leaves this folder.

redis-py repeats a command up to ten times by default: an XADD whose answer was lost would become
two entries. Here nothing is repeated; whoever calls decides what a lost answer means. Nor is a lost
connection taken for a lost race: redis-py raises WatchError for both, and whoever repeats an EXEC
whose answer was lost appends twice.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import redis
import redis.asyncio
from redis.asyncio.client import Pipeline
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    NoPermissionError,
    OutOfMemoryError,
    RedisError,
    WatchError,
)
from redis.retry import Retry

from service.errors import Unavailable

TIMEOUT_S = 2.0
"""Longest wait for a connection or an answer; blocking reads must stay below it."""
ANSWER_S = 2.5
"""Longest time that one request to the API waits for Redis, however many commands it takes."""
API_CONNECTIONS = 64
"""Most connections of one API process; a request that finds none free waits `TIMEOUT_S`."""


def connect(url: str) -> redis.Redis:
    """Return a synchronous connection (worker side) to a redis:// or unix:// address."""
    return redis.Redis.from_url(
        url,
        protocol=2,
        driver_info=None,  # CLIENT SETINFO is not in Redis 7.0, nor in the rights of our users
        socket_timeout=TIMEOUT_S,
        socket_connect_timeout=TIMEOUT_S,
        retry=Retry(NoBackoff(), 0),
    )


def connect_async(url: str) -> redis.asyncio.Redis:
    """Return an asynchronous client (API side) with a bounded pool of connections."""
    pool = redis.asyncio.BlockingConnectionPool.from_url(
        url,
        protocol=2,
        driver_info=None,  # CLIENT SETINFO is not in Redis 7.0, nor in the rights of our users
        max_connections=API_CONNECTIONS,
        timeout=TIMEOUT_S,
        socket_timeout=TIMEOUT_S,
        socket_connect_timeout=TIMEOUT_S,
        retry=AsyncRetry(NoBackoff(), 0),
    )
    return redis.asyncio.Redis.from_pool(pool)


@contextmanager
def redis_errors() -> Iterator[None]:
    """Turn every error of Redis into `Unavailable`, also those of the connection.

    Raises:
        Unavailable: `backlog_full` or `disk_full`, Redis refused the write and nothing took effect;
            else `redis_unavailable`, and whether a write took effect is not known.
    """
    try:
        yield
    except OutOfMemoryError as error:
        raise Unavailable(
            "backlog_full", "redis has no memory left; nothing was stored", retry_after_s=1
        ) from error
    except (NoPermissionError, AuthenticationError) as error:
        raise Unavailable(
            "redis_unavailable", f"redis refuses this user: {error}", retry_after_s=1
        ) from error
    except (RedisError, OSError) as error:
        if "MISCONF" in str(error):
            raise Unavailable(
                "disk_full", "redis cannot write to its disk; nothing was stored", retry_after_s=1
            ) from error
        raise Unavailable(
            "redis_unavailable",
            "redis did not answer; the outcome is unknown, retry with the same Idempotency-Key",
            retry_after_s=1,
        ) from error


@asynccontextmanager
async def redis_answers() -> AsyncIterator[None]:
    """Do as `redis_errors`, and wait no longer than `ANSWER_S`.

    Raises:
        Unavailable: as `redis_errors`.
    """
    with redis_errors():
        async with asyncio.timeout(ANSWER_S):
            yield


@asynccontextmanager
async def transaction(redis: Any) -> AsyncIterator[Pipeline]:  # noqa: ANN401  redis-py's types are a union over protocols
    """Yield a pipeline for one WATCH, MULTI and EXEC.

    Raises:
        WatchError: the race was lost and nothing happened; never for a lost connection.
    """
    pipe: Pipeline = redis.pipeline(transaction=True)
    try:
        yield pipe
    except WatchError as error:
        raise (lost_connection(error) or error) from None
    finally:
        if pipe.connection is not None and not pipe.connection.is_connected:
            pipe.watching = False  # nothing to UNWATCH; it would connect once more to say so
        await pipe.reset()


def lost_connection(error: WatchError) -> BaseException | None:
    """Return the lost connection behind a WatchError, or None where the race was really lost."""
    cause = error.__context__
    return cause if isinstance(cause, RedisError | OSError) else None
