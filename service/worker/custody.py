"""The log is the one that was learned from, it is whole, and what leaves it goes to the archive."""

import uuid
from functools import partial

from service.errors import CorruptState
from service.metrics import LearningMetrics
from service.settings import Settings
from service.store.archive import Archive, Mark, archive_until
from service.store.fence import Fence
from service.store.ranges import read_range
from service.store.read import Log
from service.store.resync import Loss, check_joined, survey
from service.worker.state import WorkerState
from service.worker.step import Progress


class Custody:
    """Watches one log and trims it."""

    def __init__(self, settings: Settings, fence: Fence, metrics: LearningMetrics) -> None:
        kept = settings.log_archive
        self._archive = Archive(settings.state_dir, settings.log_archive_bytes) if kept else None
        self._fence = fence
        self._log = Log(fence)
        self._metrics = metrics
        self._stream = {"preset": settings.preset, "input": settings.input}
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
            self._log.identify(found, self._stream)
        self.identity = found

    def check(self, oldest: Progress, state: WorkerState) -> None:
        """Archive and trim what no checkpoint needs, and see that nothing else is missing.

        Args:
            oldest: up to where the log may be trimmed.
            state: of the worker; everything up to its progress was read.

        Raises:
            CorruptState: it is another log, or entries are missing; naming how many.
            OSError: the archive's disk is full or refuses; nothing was trimmed.
        """
        if self._log.identity() != self.identity:
            raise CorruptState("redis holds another log than the one that was learned from")
        try:
            self._trim(oldest, state.progress)
        except CorruptState as problem:
            missing = self.loss(oldest, state).total
            self._metrics.gap.set(missing)
            way_out = f"; `levit resync --accept-loss {missing}` goes on without {missing} entries"
            raise CorruptState(f"{problem}{way_out if missing else ''}") from None
        self._metrics.gap.set(0)

    def loss(self, oldest: Progress, state: WorkerState) -> Loss:
        """Return what the log really lacks; reads it all and changes nothing.

        Args:
            oldest: as for `check`.
            state: of the worker, as its newest checkpoint has it.
        """

        def learned(batch_id: str) -> bool:
            """Say whether a batch is among those learned last."""
            return state.memory.recent.step_of(batch_id) is not None

        archived = None if self._archive is None else self._archive.last
        gone = min(_mark(oldest), archived or _mark(oldest), key=lambda mark: mark.number)
        return survey(self._fence, gone, _mark(state.progress), learned)

    def begin_archive_anew(self) -> None:
        """Put the archive aside: what follows does not join it."""
        if self._archive is not None:
            self._archive.begin_anew()

    def _trim(self, oldest: Progress, reached: Progress) -> None:
        check_joined(self._fence, _mark(oldest), _mark(reached))
        if self._archive is not None:
            read = partial(read_range, self._fence.redis, self._fence.names)
            archive_until(self._archive, read, oldest.consumed, oldest.position)
        self._log.trim(oldest.position)
        gap = self._log.gap(oldest.consumed, reached.consumed)
        if gap:
            raise CorruptState(
                f"the log lacks entries: counted {gap} too few behind the {oldest.consumed} "
                f"trimmed, up to position {oldest.position}"
            )


def _mark(progress: Progress) -> Mark:
    return Mark(progress.consumed, progress.position)
