"""Positions, written to the records of their Idempotency-Keys a moment after the answer.

Only EXEC tells where an entry came to lie, so its record cannot say it yet. A write of its own for
each would cost an fsync each, a third of what one client gets; those of a moment share one. Best
effort: what is lost here is a position that a retry is not told.
"""

import asyncio
from contextlib import suppress
from typing import Any

from service.errors import Unavailable
from service.store.link import redis_answers

INTERVAL_S = 0.05
"""How long positions are collected."""


class Positions:
    """Collects records that tell a position, and writes them together."""

    def __init__(self, redis: Any) -> None:  # noqa: ANN401  redis-py's types are a union over protocols
        self._redis = redis
        self._records: dict[str, str] = {}
        self._writing: asyncio.Task[None] | None = None

    def note(self, name: str, record: str) -> None:
        """Let `record` replace what lies under `name` soon, if anything does by then."""
        self._records[name] = record
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write())

    async def close(self) -> None:
        """Wait until all is written that was noted."""
        if self._writing is not None:
            await self._writing

    async def _write(self) -> None:
        while self._records:
            await asyncio.sleep(INTERVAL_S)
            records, self._records = self._records, {}
            with suppress(Unavailable):
                async with redis_answers(), self._redis.pipeline(transaction=False) as pipe:
                    for name, record in records.items():
                        pipe.set(name, record, xx=True, keepttl=True)
                    await pipe.execute()
