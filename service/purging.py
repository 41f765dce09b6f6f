"""Purging a key: an order in the log of each stream that it could write to.

The order stands in the log like a batch, so the worker follows it once, wherever it is in its work,
and a replay follows it again. Where the worker is away it waits there.
"""

import asyncio
import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from service.settings import Settings
from service.store.append import Appender
from service.store.declared import Registry
from service.store.entry import BatchStatus
from service.store.keys import Key
from service.store.server import server_url
from service.store.submission import Submission

IDEMPOTENCY_KEY: Final = "purge"
"""One order for each key and stream; too short to be the key of any client's request."""
POLL_S: Final = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Purge:
    """What became of the order in one stream."""

    stream: str
    status: BatchStatus | None
    """None where nothing was ever written."""

    @property
    def told(self) -> str:
        """A line for people."""
        return f"stream {self.stream}: {self._fate}"

    @property
    def _fate(self) -> str:
        status = self.status
        if status is None:
            return "nothing was ever written"
        if status.purged is not None:
            return (
                "{replay} samples left the replay memory, {unlearned} labelled ones were "
                "unlearned, {remaining} remain counted".format(**status.purged)
            )
        waits = f"waits for the worker; GET /observations/{status.batch_id} will tell"
        aside = f"set aside as batch {status.batch_id}: {status.reason}"
        return {"queued": waits, "quarantined": aside, "learned": "purged before"}[status.state]


def purge(settings: Settings, key: Key, *, wait_s: float) -> Sequence[Purge]:
    """Order every stream of a key to forget what it has written; return what became of it.

    Ordering again changes nothing.

    Args:
        settings: of the process.
        key: a revoked one.
        wait_s: longest wait for the worker, in all.

    Raises:
        Unavailable: Redis is away or the log is full; some streams may have their order.
    """
    return asyncio.run(_purge(settings, key, time.monotonic() + wait_s))


async def _purge(settings: Settings, key: Key, deadline: float) -> list[Purge]:
    registry = Registry(settings)
    try:
        known = [settings, *await registry.all()]
    finally:
        await registry.close()
    theirs = [one for one in known if key.streams is None or one.stream in key.streams]
    return [await _purged(one, key, deadline) for one in theirs]


async def _purged(settings: Settings, key: Key, deadline: float) -> Purge:
    appender = Appender(server_url(settings), settings)
    try:
        if await appender.stream_schema() is None:
            return Purge(stream=settings.stream, status=None)
        batch_id = (await appender.append(_order(key))).batch_id
        status = await appender.status(batch_id)
        while status is not None and status.state == "queued" and time.monotonic() < deadline:
            await asyncio.sleep(POLL_S)
            status = await appender.status(batch_id)
    finally:
        await appender.close()
    return Purge(stream=settings.stream, status=status)


def _order(key: Key) -> Submission:
    return Submission(
        schema=None,
        labels_kind=None,
        n=0,
        distinct_labels=(),
        payload=b"",
        kind="purge",
        key_id=key.id,
        idempotency_key=IDEMPOTENCY_KEY,
        digest=hashlib.sha256(b"").hexdigest(),
    )
