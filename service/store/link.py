"""The two ways to connect to Redis, and the one error that leaves this folder.

redis-py repeats a command up to ten times by default: an XADD whose answer was lost would become
two entries. Here nothing is repeated; whoever calls decides what a lost answer means.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from service.errors import Unavailable

TIMEOUT_S = 2.0
"""Longest wait for a connection or an answer; blocking reads must stay below it."""
API_CONNECTIONS = 64
"""Most connections of one API process; a request that finds none free waits `TIMEOUT_S`."""


def connect(url: str) -> redis.Redis:
    """Return a synchronous connection (worker side) to a redis:// or unix:// address."""
    return redis.Redis.from_url(
        url,
        protocol=2,
        socket_timeout=TIMEOUT_S,
        socket_connect_timeout=TIMEOUT_S,
        retry=Retry(NoBackoff(), 0),
    )


def connect_async(url: str) -> redis.asyncio.Redis:
    """Return an asynchronous client (API side) with a bounded pool of connections."""
    pool = redis.asyncio.BlockingConnectionPool.from_url(
        url,
        protocol=2,
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
        Unavailable: code `redis_unavailable`; whether a write took effect is not known.
    """
    try:
        yield
    except (RedisError, OSError) as error:
        raise Unavailable(
            "redis_unavailable",
            "redis did not answer; the outcome is unknown, retry with the same Idempotency-Key",
            retry_after_s=1,
        ) from error
