"""What administrators ask of the worker, by way of Redis: the API asks, the worker answers.

A command is an entry of the stream `names.commands`; the worker follows it, writes the answer under
the command's id and deletes the entry. One that is not answered in time is taken back, so that it
does not come true when nobody expects it any more.
"""

import asyncio
import json
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

from redis.client import Pipeline

from service.errors import Unavailable
from service.store.fence import Fence
from service.store.link import connect_async, redis_answers, redis_errors
from service.store.names import ANSWER_LIFETIME_S, DEFAULT, Names

Kind = Literal["rollback", "pin", "resync"]
POLL_S = 0.05
"""Time between looks for the answer."""
TAKEN = 16
"""Most commands that the worker takes at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One thing that an administrator wants."""

    id: str
    kind: Kind
    arguments: Mapping[str, Any]
    """`rollback {checkpoint, mode}`, `pin {checkpoint, name}` or `resync {accept_loss}`."""
    place: str
    """Its id in the stream of commands."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the worker says to a command."""

    ok: bool
    """Whether it was followed."""
    detail: str
    """What was done, or why it was refused."""


class CommandDesk:
    """The API's side: hands in commands and waits for answers."""

    def __init__(self, url: str, names: Names = DEFAULT) -> None:
        self._redis: Any = connect_async(url)  # its types are a union over protocols
        self._names = names

    async def ask(self, kind: Kind, arguments: Mapping[str, Any], *, timeout_s: float) -> Answer:
        """Return what the worker answers.

        Raises:
            Unavailable: `worker_silent`, no answer within `timeout_s`: the command was taken back,
                but may be under way; `redis_unavailable`, the outcome is unknown.
        """
        command_id, deadline = uuid.uuid4().hex, time.monotonic() + timeout_s
        fields = {"id": command_id, "kind": kind, "arguments": json.dumps(arguments)}
        async with redis_answers():
            place = await self._redis.xadd(self._names.commands, fields)
        while (answer := await self._answer(command_id)) is None:
            if time.monotonic() > deadline:
                async with redis_answers():
                    await self._redis.xdel(self._names.commands, place)
                raise Unavailable(
                    "worker_silent",
                    f"expected an answer of the worker within {timeout_s:g} s, got none; "
                    "whether it follows is not known",
                    retry_after_s=1,
                )
            await asyncio.sleep(POLL_S)
        return answer

    async def close(self) -> None:
        """Close every connection."""
        await self._redis.aclose()

    async def _answer(self, command_id: str) -> Answer | None:
        async with redis_answers():
            record = await self._redis.get(self._names.answer(command_id))
        return None if record is None else Answer(**json.loads(record))


class Commands:
    """The worker's side; every method may raise `Unavailable`."""

    def __init__(self, fence: Fence) -> None:
        self._fence = fence

    def take(self) -> list[Command]:
        """Return the commands that wait for an answer, oldest first; they wait until `done`."""
        with redis_errors():
            waiting: Any = self._fence.redis.xrange(self._fence.names.commands, count=TAKEN)
        return [
            Command(
                id=fields[b"id"].decode(),
                kind=fields[b"kind"].decode(),
                arguments=json.loads(fields[b"arguments"]),
                place=place.decode(),
            )
            for place, fields in waiting
        ]

    def done(self, command: Command, answer: Answer) -> None:
        """Answer a command, so that it waits no longer; idempotent.

        Raises:
            StateDirectoryBusy: a later worker has started; nothing was written.
        """
        self._fence.write(partial(_queue_answer, self._fence.names, command, answer))


def _queue_answer(names: Names, command: Command, answer: Answer, pipe: Pipeline) -> None:
    record, lifetime_s = json.dumps(asdict(answer)), ANSWER_LIFETIME_S
    pipe.set(names.answer(command.id), record, ex=lifetime_s)
    pipe.xdel(names.commands, command.place)
