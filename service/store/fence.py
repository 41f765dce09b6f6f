"""The one writer of a stream: a worker writes to Redis only while no later worker has started.

The directory's lock keeps two workers of one machine apart; this keeps one out that slept, or whose
lock was taken away, and that wakes up with an old epoch. The resource refuses it, so no clock and
no time to live is trusted (Kleppmann 2016).
"""

from collections.abc import Callable
from typing import Any

import redis
from redis.client import Pipeline
from redis.exceptions import WatchError

from service.errors import CorruptState, StateDirectoryBusy
from service.store.link import connect, lost_connection, redis_errors
from service.store.names import DEFAULT, Names


class Fence:
    """The worker's connection to Redis; every write goes through `write`."""

    def __init__(self, url: str, names: Names = DEFAULT) -> None:
        """Connect to the server at `url`; nothing may be written before `claim`."""
        self.redis: redis.Redis = connect(url)
        self.names = names
        """Of the stream that is written."""
        self.epoch = 0
        """Of this worker; 0 before `claim`."""

    def claim(self, above: int) -> None:
        """Become the only writer: from now on every earlier worker's writes are refused.

        Args:
            above: the highest epoch that the state directory knows.

        Raises:
            Unavailable: Redis is away; may be called again.
        """
        with redis_errors():
            epoch: Any = self.redis.incr(self.names.epoch)
            if epoch <= above:  # this Redis is younger than the state directory
                epoch = self.redis.incrby(self.names.epoch, above + 1 - epoch)
        self.epoch = int(epoch)

    def check(self) -> None:
        """See that this worker is still the newest, before it writes to the state directory.

        Raises:
            StateDirectoryBusy: a later worker has started.
            CorruptState: the epoch is gone, so everything else is, too.
            Unavailable: Redis is away.
        """
        with redis_errors():
            self._insist_on(self.redis.get(self.names.epoch))

    def write(self, queue: Callable[[Pipeline], object]) -> list[Any]:
        """Return the answers to the commands that `queue` queues; all of them happen, or none.

        Raises:
            StateDirectoryBusy: a later worker has started; nothing was written.
            CorruptState: the epoch is gone, so everything else is, too; nothing was written.
            Unavailable: Redis is away; whether it was written is not known.
        """
        with redis_errors(), self.redis.pipeline(transaction=True) as pipe:
            pipe.watch(self.names.epoch)
            self._insist_on(pipe.get(self.names.epoch))
            pipe.multi()
            queue(pipe)
            try:
                return list(pipe.execute())
            except WatchError as error:
                if lost := lost_connection(error):
                    raise lost from None
                raise StateDirectoryBusy("a later worker has just started on this log") from None

    def close(self) -> None:
        """Close the connection."""
        self.redis.close()

    def _insist_on(self, found: Any) -> None:  # noqa: ANN401  redis-py's types are a union
        if found is None:
            raise CorruptState("redis has lost the epoch of its worker, and so its log")
        if int(found) != self.epoch:
            raise StateDirectoryBusy(
                f"a later worker writes to this log: its epoch is {int(found)}, "
                f"this one's {self.epoch}"
            )
