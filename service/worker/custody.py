"""The log is the one that was learned from, it is whole, and what leaves it goes to the archive."""

import uuid
from functools import partial

from service.errors import CorruptState
from service.metrics import WorkerMetrics
from service.settings import Settings
from service.store.archive import START, Archive, Mark, archive_until
from service.store.fence import Fence
from service.store.ranges import read_range
from service.store.read import Log
from service.worker.step import Progress


class Custody:
    """Watches one log and trims it."""

    def __init__(self, settings: Settings, fence: Fence, metrics: WorkerMetrics) -> None:
        kept = settings.log_archive
        self._archive = Archive(settings.state_dir, settings.log_archive_bytes) if kept else None
        self._fence = fence
        self._log = Log(fence)
        self._metrics = metrics
        self.identity = ""
        """Of the log; empty before `know`."""

    def know(self, identity: str) -> None:
        """See that the log is the one that was learned from; give a fresh one its name.

        Args:
            identity: of the log that was learned from; empty if there is none.

        Raises:
            CorruptState: this is another one.
        """
        found = self._log.identity()
        if identity and found != identity:
            problem = "no log" if found is None else f"log {found}"
            raise CorruptState(f"redis holds {problem}, the checkpoints are of log {identity}")
        if found is None:
            found = uuid.uuid4().hex
            self._log.identify(found)
        self.identity = found

    def check(self, oldest: Progress, reached: Progress) -> None:
        """Archive and trim what no checkpoint needs, and see that nothing else is missing.

        Args:
            oldest: up to where the log may be trimmed.
            reached: the last entry read.

        Raises:
            CorruptState: it is another log, or entries are missing; naming how many.
            OSError: the archive's disk is full or refuses; nothing was trimmed.
        """
        if self._log.identity() != self.identity:
            raise CorruptState("redis holds another log than the one that was learned from")
        if self._archive is not None:
            self._put_away(self._archive, oldest)
        self._log.trim(oldest.position)
        gap = self._log.gap(oldest.consumed, reached.consumed)
        self._metrics.gap.set(gap)
        if gap:
            raise CorruptState(
                f"the log lacks {gap} entries: {reached.consumed} were consumed, "
                f"{oldest.consumed} of them trimmed, up to position {oldest.position}"
            )

    def _put_away(self, archive: Archive, oldest: Progress) -> None:
        read = partial(read_range, self._fence.redis)
        try:
            archive_until(archive, read, oldest.consumed, oldest.position)
        except CorruptState:
            last = archive.last or Mark(0, START)
            left = self._log.count(last.position, oldest.position)
            self._metrics.gap.set(oldest.consumed - last.number - left)
            raise
