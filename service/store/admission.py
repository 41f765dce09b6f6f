"""Whether the service can keep another batch: its backlog, Redis' memory, the disk's space.

Refused here, before Redis refuses: once it is full, the worker could not store what lets it trim
anything. Memory and disk are looked at once a second; when there is room again, batches are taken
again.
"""

import asyncio
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from service.errors import Unavailable
from service.settings import Settings
from service.store.durability import ServerFacts, ask_server, server_facts
from service.store.inventory import newest_checkpoint_bytes
from service.store.names import DEFAULT_STREAM, Names

ADMISSION_SHARE = 0.8
"""Share of Redis' `maxmemory` that accepted batches may fill; the rest is the worker's, which
must be able to write replay members before it can trim anything."""
CHECK_INTERVAL_S = 1.0
"""How long an answer about memory, disk and durability is believed."""
_MIB = 2**20

log: structlog.stdlib.BoundLogger = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What was found when it was last looked at."""

    server: ServerFacts
    worker_problem: str | None
    """Why the worker has stopped learning until a human looks; None while it learns."""
    disk_free: int
    """Bytes free where the state directory lies."""
    disk_needed: int
    """Bytes that must be free there: two checkpoints and the floor of the settings."""
    read_at: float
    """Monotonic seconds."""

    @property
    def disk_problem(self) -> str | None:
        """What is wrong with the disk, or None."""
        if self.disk_free >= self.disk_needed:
            return None
        needed, free = self.disk_needed // _MIB, self.disk_free // _MIB
        return f"expected {needed} MiB free on the disk of the state directory, got {free} MiB"


class Admission:
    """Looks at what bounds the service, and refuses what it could not keep."""

    def __init__(self, redis: Any, settings: Settings) -> None:  # noqa: ANN401  redis-py's types are a union over protocols
        self._redis = redis
        self._settings = settings
        self._names = Names(settings.stream)
        default = settings.stream == DEFAULT_STREAM
        self._worker = "the worker" if default else f"the worker of stream {settings.stream}"
        self._facts: Facts | None = None
        self._accepted_bytes = 0  # since memory was looked at
        self._tolerated: list[str] = []  # logged once

    async def facts(self) -> Facts:
        """Return what was found at most `CHECK_INTERVAL_S` ago; may raise errors of Redis."""
        if self._facts is None or time.monotonic() - self._facts.read_at > CHECK_INTERVAL_S:
            self._facts = await self._read()
            self._tell_once(self._facts.server.problems)
        return self._facts

    def check_room(self, facts: Facts, backlog: int, nbytes: int) -> None:
        """Check that one more batch of so many bytes can be kept and learned.

        What was let in since memory was looked at counts, too: a second of it may fill Redis.

        Raises:
            Unavailable: `backlog_full` or `disk_full`, naming the bound.
        """
        most = self._settings.max_backlog
        share = (facts.server.memory_used + self._accepted_bytes) / facts.server.memory_most
        if backlog >= most:
            code, problem = (
                "backlog_full",
                f"expected a backlog under {most} entries, got {backlog}",
            )
        elif share >= ADMISSION_SHARE:
            code = "backlog_full"
            problem = f"expected redis under {ADMISSION_SHARE:.0%} of maxmemory, got {share:.0%}"
        elif facts.disk_problem is not None:
            raise Unavailable("disk_full", facts.disk_problem, retry_after_s=1)
        else:
            self._accepted_bytes += nbytes
            return
        raise Unavailable(code, problem, retry_after_s=1)

    async def problems(self) -> list[str]:
        """Return what keeps the service from what it promises; empty when nothing does."""
        facts = await self.facts()
        found = [] if self._settings.allow_weaker_durability else list(facts.server.problems)
        if facts.worker_problem is not None:
            which = (
                ""
                if self._settings.stream == DEFAULT_STREAM
                else f" stream {self._settings.stream}"
            )
            found.append(f"the worker has stopped{which}: {facts.worker_problem}")
        if facts.disk_problem is not None:
            found.append(facts.disk_problem)
        return found

    async def _read(self) -> Facts:
        pipe = self._redis.pipeline(transaction=False)
        ask_server(pipe)
        pipe.hgetall(self._names.worker)
        self._accepted_bytes = 0
        config, memory, worker = await pipe.execute()
        free, checkpoint = await asyncio.to_thread(_disk, self._settings.state_dir)
        stopped = worker.get(b"state") == b"stopped"
        return Facts(
            server=server_facts(config, memory),
            worker_problem=worker.get(b"problem", b"").decode() if stopped else None,
            disk_free=free,
            disk_needed=2 * checkpoint + self._settings.disk_floor_bytes,
            read_at=time.monotonic(),
        )

    def _tell_once(self, problems: list[str]) -> None:
        if self._settings.allow_weaker_durability and problems != self._tolerated:
            self._tolerated = problems
            log.warning("weaker_durability_allowed", problems=problems)


def _disk(state_dir: Path) -> tuple[int, int]:
    """Return the bytes free where `state_dir` lies, or will lie, and of its newest checkpoint."""
    path = state_dir.absolute()
    there = next(place for place in (path, *path.parents) if place.exists())
    return shutil.disk_usage(there).free, newest_checkpoint_bytes(state_dir)
