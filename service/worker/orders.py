"""What administrators may ask of the worker, and how it follows.

Each command is followed once: a rollback carries the command's id in its decision, so that one
whose answer was lost in a crash is answered again and not followed again.
"""

from typing import assert_never

import structlog

from service.errors import CorruptState, Misused, SettingsError
from service.settings import Settings
from service.store.commands import Answer, Command, Commands
from service.store.decisions import Decision
from service.store.pins import pin
from service.store.resync import settle
from service.worker.learning import Learning

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class Orders:
    """Follows commands, between two entries."""

    def __init__(self, settings: Settings, learning: Learning) -> None:
        self._settings = settings
        self._learning = learning
        self._commands = Commands(learning.fence)

    def follow(self, *, held: bool = False) -> bool:
        """Follow and answer what waits; return whether something was followed.

        Args:
            held: whether learning has stopped because the log is not whole.

        Raises:
            Unavailable: Redis is away; may be called again.
            OSError: the disk is full or refuses; may be called again.
        """
        followed = False
        for command in self._commands.take():
            try:
                answer = Answer(ok=True, detail=self._follow(command, held=held))
            except (Misused, CorruptState, SettingsError) as problem:
                answer = Answer(ok=False, detail=str(problem))
            followed |= answer.ok
            log.warning("command", kind=command.kind, ok=answer.ok, detail=answer.detail)
            self._commands.done(command, answer)
        return followed

    def _follow(self, command: Command, *, held: bool) -> str:
        match command.kind:
            case "rollback":
                if held:
                    raise Misused("learning has stopped; /readyz says why, and resync goes on")
                return self._roll_back(command)
            case "pin":
                return self._pin(command)
            case "resync":
                return self._resync(command, held=held)
            case _:
                assert_never(command.kind)

    def _roll_back(self, command: Command) -> str:
        learning, seq = self._learning, int(command.arguments["checkpoint"])
        drop = command.arguments["mode"] == "drop"
        if not learning.judge.has_followed(command.id):
            learning.catch_up()
            mark = learning.checkpoints.kept(seq)
            if mark is None:
                raise Misused(f"expected the number of a kept checkpoint, got {seq}")
            if not learning.way_back.is_open(seq):
                raise Misused(f"checkpoint {seq} is damaged; nothing was changed")
            if drop:
                learning.check_room_for(mark.position)
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

    def _pin(self, command: Command) -> str:
        seq, name = int(command.arguments["checkpoint"]), str(command.arguments["name"])
        try:
            made = pin(self._settings.state_dir, seq, name, self._learning.fence)
        except OSError as error:  # nothing was decided: learning need not wait for the disk
            raise Misused(f"checkpoint {seq} cannot be pinned: {error}") from None
        return f"checkpoint {seq} is kept as {name}: {made.bytes} bytes"

    def _resync(self, command: Command, *, held: bool) -> str:
        """Go on without entries that the log has lost, if they are as many as was accepted."""
        learning = self._learning
        if not learning.judge.has_followed(command.id):
            learning.load()
            loss = learning.loss()
            if held and loss.total == 0:  # an attempt before ended in the middle
                return "nothing is missing any more; learning goes on"
            loss.check(int(command.arguments["accept_loss"]))
            if loss.closes_way_back:
                learning.close_way_back(loss.position)
            settle(learning.fence, loss)
            self._record(command, f"lost: {loss.ahead} entries not learned, {loss.behind} learned")
        return "learning goes on without the entries that are missing"

    def _record(self, command: Command, reason: str) -> None:
        """Decide that entries ahead have new numbers, so that nothing is held against theirs."""
        number = self._learning.progress.consumed
        self._learning.judge.attempts.forget_behind(number)
        self._learning.judge.decide(
            Decision(kind="renumber", after=number, until=number, reason=reason, command=command.id)
        )
