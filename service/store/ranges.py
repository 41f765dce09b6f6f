"""A range of the log and the number of its first entry, seen at one moment.

Entries do not carry their number. Redis counts those ever added and those present, so it knows the
number of the oldest; read in one transaction, the two cannot be torn apart by a trim.
"""

from typing import Any

import redis

from service.store.link import redis_errors
from service.store.names import Names
from service.store.stream_ids import RawEntry

CHUNK = 8
"""Entries read at once: at most 64 MiB of the largest bodies."""
END = "+"
"""The position behind every entry."""


def read_range(
    connection: redis.Redis, names: Names, after: str, last: str
) -> tuple[int, list[RawEntry]]:
    """Return the number of the oldest entry in the log, and some entries in their order.

    Args:
        connection: to the server of the log.
        names: of its stream.
        after: position; up to `CHUNK` entries behind it are returned.
        last: up to and with this position.

    Raises:
        Unavailable: Redis is away.
    """
    with redis_errors():
        if not connection.exists(names.log):
            return 1, []
        pipe = connection.pipeline(transaction=True)
        pipe.xinfo_stream(names.log)
        pipe.xrange(names.log, f"({after}", last, count=CHUNK)
        info, entries = pipe.execute()
    facts: Any = info
    oldest = int(facts["entries-added"]) - int(facts["length"]) + 1
    return oldest, [(position.decode(), fields) for position, fields in entries]


def newest_number(connection: redis.Redis, names: Names) -> int:
    """Return the number of the newest entry ever added to the log; 0 before the first.

    Raises:
        Unavailable: Redis is away.
    """
    with redis_errors():
        exists = connection.exists(names.log)
        info: Any = connection.xinfo_stream(names.log) if exists else {"entries-added": 0}
    return int(info["entries-added"])
