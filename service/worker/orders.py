"""What administrators may ask of the worker, and how it follows.

Each command is followed once: a rollback carries the command's id in its decision, so that one
whose answer was lost in a crash is answered again and not followed again.
"""

import structlog

from service.errors import CorruptState, SettingsError
from service.settings import Settings
from service.store.commands import Answer, Command, Commands
from service.store.decisions import Decision
from service.worker.learning import Learning

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class Refused(Exception):
    """A command that cannot be followed; the message says why."""


class Orders:
    """Follows commands, between two entries."""

    def __init__(self, settings: Settings, learning: Learning) -> None:
        self._settings = settings
        self._learning = learning
        self._commands = Commands(learning.fence)

    def follow(self) -> bool:
        """Follow and answer what waits; return whether the worker must read anew.

        Raises:
            Unavailable: Redis is away; may be called again.
            OSError: the disk is full or refuses; may be called again.
        """
        waiting = self._commands.take()
        for command in waiting:
            try:
                answer = Answer(ok=True, detail=self._follow(command))
            except (Refused, CorruptState, SettingsError) as problem:
                answer = Answer(ok=False, detail=str(problem))
            log.warning("command", kind=command.kind, ok=answer.ok, detail=answer.detail)
            self._commands.done(command, answer)
        return bool(waiting)

    def _follow(self, command: Command) -> str:
        match command.kind:
            case "rollback":
                return self._roll_back(command)
            case other:
                raise Refused(f"expected a command this worker knows, got {other}")

    def _roll_back(self, command: Command) -> str:
        learning, seq = self._learning, int(command.arguments["checkpoint"])
        drop = command.arguments["mode"] == "drop"
        if not learning.judge.has_followed(command.id):
            mark = learning.checkpoints.kept(seq)
            if mark is None:
                raise Refused(f"expected the number of a kept checkpoint, got {seq}")
            until = learning.progress.consumed if drop else mark.consumed
            learning.go_back(
                Decision(
                    kind="skip",
                    after=mark.consumed,
                    until=until,
                    reason=f"rolled_back: to checkpoint {seq}",
                    checkpoint=seq,
                    command=command.id,
                )
            )
        fate = "later entries are set aside" if drop else "later entries are learned again"
        return f"went back to checkpoint {seq}; {fate}"
