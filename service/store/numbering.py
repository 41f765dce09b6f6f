"""The count that gives entries of the log their numbers, set anew.

Entries do not carry their number: Redis counts those ever added (`entries-added`) and those
present, so the oldest present has the number added - present + 1. `names.accepted` says the same
as `entries-added`, and both are set at once, while nobody appends.
"""

from collections.abc import Callable
from typing import Any

from redis.client import Pipeline
from redis.exceptions import WatchError

from service.store.fence import Fence
from service.store.link import lost_connection, redis_errors
from service.store.names import Names
from service.store.stream_ids import order

FIRST = "0-1"
"""The lowest id that an entry can have."""


def stream_facts(redis: Any, names: Names) -> tuple[int, int, str]:  # noqa: ANN401  redis-py's types are a union
    """Return entries ever added, entries present and the last id of the log; zeros without one."""
    if not redis.exists(names.log):
        return 0, 0, "0-0"
    info: Any = redis.xinfo_stream(names.log)
    last = info["last-generated-id"].decode()
    return int(info["entries-added"]), int(info["length"]), last


def renumber(
    fence: Fence,
    count: Callable[[int, int], int],
    queue: Callable[[Pipeline], object],
    *,
    above: str,
) -> int:
    """Set how many entries the log has ever had; return that. The log is made if there is none.

    Args:
        fence: of the worker.
        count: takes entries added and present as they are, gives what is to be set; may raise.
        queue: queues what must happen in the same moment, before the count is set.
        above: later entries get ids above this position.

    Raises:
        StateDirectoryBusy: a later worker has started; nothing was written.
        Unavailable: Redis is away; whether it was written is not known.
    """
    names = fence.names
    while True:  # until no batch is accepted between looking and writing
        with redis_errors(), fence.redis.pipeline(transaction=True) as pipe:
            pipe.watch(names.epoch, names.log, names.schema)
            fence.check()
            added, present, last = stream_facts(pipe, names)
            newest = count(added, present)
            pipe.multi()
            if last == "0-0":
                last = FIRST
                pipe.xadd(names.log, {"made": ""}, id=FIRST)
                pipe.xdel(names.log, FIRST)
            queue(pipe)
            last = max(last, above, key=order)
            pipe.execute_command("XSETID", names.log, last, "ENTRIESADDED", newest)
            pipe.set(names.accepted, newest)
            try:
                pipe.execute()
            except WatchError as error:
                if lost := lost_connection(error):
                    raise lost from None
            else:
                return newest
