"""One stream's way through its log. This file decides when; `learning` does.

It reads the log behind its position, learns entry by entry, and makes checkpoints and snapshots as
often as 5 % of the time allows for each. When is a matter of clocks, so nothing of it may enter
the learner's state. While Redis is away it waits.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import structlog

from service.engine.protocol import Engines
from service.errors import Unavailable
from service.metrics import WorkerMetrics
from service.settings import Settings
from service.store.server import server_url
from service.worker.learning import Learning
from service.worker.orders import Orders

READ_COUNT = 8
"""Entries read at once: at most 64 MiB of the largest bodies, and few enough round trips."""
BLOCK_MS = 100
"""Longest wait for an entry, so also for a signal to be seen."""
CHECK_INTERVAL_S = 10.0
"""Time between looks whether the log is whole, besides those before each checkpoint."""
SHARE = 0.05
"""Share of time that checkpoints, and likewise snapshots, may take."""
LONGEST_BACK_OFF_S = 2.0
"""Longest wait between attempts while Redis or the disk is away."""

PATIENCE_S = 6.0
"""Longest wait for the entry that is being learned when the worker is told to stop."""

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class StepAbandoned(BaseException):
    """The entry that was being learned is given up; a restart begins it again."""


class Pace:
    """When something costly may be done again."""

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._affordable_at = self._ended_at = time.monotonic()

    @property
    def affordable(self) -> bool:
        """Whether doing it now keeps its share of time."""
        return time.monotonic() >= self._affordable_at

    @property
    def due(self) -> bool:
        """Whether it is affordable and its interval has passed."""
        return self.affordable and time.monotonic() >= self._ended_at + self._interval_s

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Take what happens inside as its cost."""
        started_at = time.monotonic()
        yield
        self._ended_at = time.monotonic()
        cost_s = self._ended_at - started_at
        self._affordable_at = self._ended_at + cost_s * (1 / SHARE - 1)


class Worker:
    """The loop around one `Learning`."""

    def __init__(self, settings: Settings, engines: Engines, metrics: WorkerMetrics) -> None:
        self._learning = Learning(settings, engines, server_url(settings), metrics)
        self._orders = Orders(settings, self._learning)
        self._checkpoints = Pace(settings.checkpoint_interval_s)
        self._snapshots = Pace(settings.snapshot_interval_s)
        self._checked_at = time.monotonic()
        self._stopping = False

    def stop(self, _signal: int = 0, _frame: FrameType | None = None) -> None:
        """Ask the loop to end after the current entry; also a signal handler."""
        self._stopping = True

    @property
    def consumed(self) -> int:
        """Entries learned or set aside so far; any thread may read it."""
        return self._learning.progress.consumed

    def hurry(self, _signal: int = 0, _frame: FrameType | None = None) -> None:
        """Give up the entry that is being learned, if one is; also a signal handler.

        Raises:
            StepAbandoned: out of the step, so that nothing since the checkpoint is saved.
        """
        if self._learning.judge.attempts.running:
            raise StepAbandoned

    def run(self) -> None:
        """Learn until `stop`; then everything learned is in a checkpoint, if Redis is there.

        Raises:
            CorruptState: the log or what it must fit is damaged; a human decides.
            SettingsError: a learner setting does not fit the stream or its state.
        """
        self.begin()
        while not self._stopping:
            self.turn(BLOCK_MS)
        self.end()

    def begin(self) -> None:
        """Go on from where the last worker was.

        Raises:
            CorruptState, SettingsError: as `run`.
        """
        self._insist(self._learning.restore)

    def turn(self, block_ms: int | None) -> bool:
        """Learn some entries, saving and publishing when it is time; return whether there were any.

        Args:
            block_ms: longest wait for an entry; None: do not wait.

        Raises:
            CorruptState: as `run`.
        """
        met = False

        def once() -> None:
            """Do it; called again where Redis or the disk was away."""
            nonlocal met
            met = self._turn(block_ms)

        self._insist(once)
        return met

    def end(self) -> None:
        """Save what was learned, if Redis is there; nothing where learning has stopped."""
        try:
            if self._learning.unsaved:
                self._save()
        except (Unavailable, OSError) as error:
            log.warning("stopped_without_checkpoint", reason=str(error))

    def stopped(self, problem: str) -> None:
        """Say where others can read it why nothing is learned."""
        self._insist(lambda: self._learning.stopped(problem))

    def mended(self) -> bool:
        """Follow what administrators ask while learning has stopped; say whether it can go on."""
        mended = False

        def look() -> None:
            """See whether somebody has a command."""
            nonlocal mended
            mended = self._orders.follow(held=True)

        self._insist(look)
        return mended

    def close(self) -> None:
        """Close the connections."""
        self._learning.close()

    def _turn(self, block_ms: int | None) -> bool:
        if self._orders.follow():
            return True
        entries = self._learning.read(count=READ_COUNT, block_ms=block_ms)
        for raw in entries:
            if self._stopping:
                return True
            turn = self._learning.learn(raw)
            if turn == "back":
                return True
            if turn == "save" or self._checkpoints.due:
                self._save()
            elif self._snapshots.due or not self._learning.published:
                self._publish()
        if not entries:
            self._idle()
        return bool(entries)

    def _idle(self) -> None:
        if self._learning.unsaved and self._checkpoints.affordable:
            self._save()
        elif time.monotonic() - self._checked_at > CHECK_INTERVAL_S:
            self._learning.check_log()
            self._checked_at = time.monotonic()

    def _save(self) -> None:
        with self._checkpoints.measured():
            self._learning.save()
        self._checked_at = time.monotonic()

    def _publish(self) -> None:
        with self._snapshots.measured():
            self._learning.publish()

    def _insist(self, action: Callable[[], None]) -> None:
        """Do something, repeating it while Redis or the disk is away."""
        back_off_s = 0.0
        while not self._stopping:
            try:
                action()
            except (Unavailable, OSError) as error:
                if not back_off_s:
                    log.warning("waiting", reason=str(error), cause=str(error.__cause__))
                back_off_s = min(LONGEST_BACK_OFF_S, max(0.05, 2 * back_off_s))
                time.sleep(back_off_s)
            else:
                if back_off_s:
                    log.info("waited_long_enough")
                return
