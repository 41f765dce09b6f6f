"""Which checkpoint the learner goes on from, and what is loaded of it."""

import structlog

from service.engine.protocol import Engines
from service.errors import CorruptState
from service.settings import Settings
from service.store.decisions import Decisions
from service.store.read import Log
from service.worker.checkpoints import Checkpoints, sequence
from service.worker.members import ReplayMembers
from service.worker.state import WorkerState

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class WayBack:
    """The checkpoints of a learner, with all it takes to go on from one."""

    def __init__(
        self, checkpoints: Checkpoints, decisions: Decisions, log_: Log, members: ReplayMembers
    ) -> None:
        self._checkpoints = checkpoints
        self._decisions = decisions
        self._log = log_
        self._members = members

    def newest(self, settings: Settings, engines: Engines) -> tuple[WorkerState, bool]:
        """Return the state of the newest whole checkpoint that no decision has given up.

        And whether a rollback was still to be followed: this state has followed it.

        Raises:
            CorruptState: there are checkpoints, and none can be restored.
            SettingsError: a learner setting differs from those of the checkpoint.
            Unavailable: Redis is away.
        """
        paths = list(self._checkpoints.newest_first())
        for path in paths:
            try:
                checkpoint = self._checkpoints.read(path)
                rollbacks = self._decisions.rollbacks(since=checkpoint.decisions)
                if _was_given_up(sequence(path), [seq for seq, _ in rollbacks]):
                    continue
                members = self._members.of(checkpoint.state)
                engine = engines.restore(settings, checkpoint.state, members)
            except CorruptState as error:
                log.critical("checkpoint_damaged", path=str(path), reason=str(error))
                self._checkpoints.give_up(path)
                continue
            state = WorkerState.of(checkpoint, engine, settings)
            if self._log.told() >= sequence(path):
                state.books.outcomes.clear()
            if rollbacks and (last := rollbacks[-1][1]).command is None:
                state.health.went_back(last.after, last.until)
            return state, bool(rollbacks)
        # Never begin anew over a state that was learned, however much of the log is there.
        if paths:
            raise CorruptState(f"none of {len(paths)} checkpoints can be restored")
        return WorkerState.fresh(settings), False

    def is_open(self, seq: int) -> bool:
        """Return whether a kept checkpoint can be gone back to; to be asked before deciding.

        Raises:
            Unavailable: Redis is away.
        """
        try:
            self._members.of(self._checkpoints.look(seq).state)
        except CorruptState as error:
            log.critical("checkpoint_damaged", seq=seq, reason=str(error))
            return False
        return True


def _was_given_up(seq: int, targets: list[int]) -> bool:
    """Return whether going back to these, in turn, gave up a checkpoint that was there before.

    Not where the last went to that very one: it had been kept, as an equal of the one gone back to.
    """
    return any(target < seq for target in targets) and targets[-1] != seq
