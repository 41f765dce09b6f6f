"""The streams that were declared beside the default one.

The API writes a declaration to Redis (one hash, durable like the log); the worker copies it to a
file in the stream's own directory, and back where Redis has lost it. So a predictor that starts
while Redis is away still knows every stream, and the API need not write to the state directory.
A declaration never changes: a stream's learner rests on it.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import structlog

from service.errors import Conflict, SettingsError
from service.settings import Settings
from service.store import directory
from service.store.link import connect, connect_async, redis_answers, redis_errors
from service.store.names import STREAMS
from service.store.server import server_url

DIRECTORY = "streams"
FILE = "stream.json"
REPLAY_SHARE = 0.7
"""Share of the memory of Redis that the replay buffers of all streams may take."""

log: structlog.stdlib.BoundLogger = structlog.get_logger()


def settings_of(settings: Settings, name: str, options: Mapping[str, Any]) -> Settings:
    """Return the settings of a declared stream.

    Args:
        settings: of the process.
        name: what the stream is called.
        options: the settings in which it differs, by name.

    Raises:
        SettingsError: naming the option that is wrong.
    """
    return settings.of_stream(
        name,
        options,
        settings.state_dir / DIRECTORY / name,
        settings.redis_url or server_url(settings),  # a password stays in its file
    )


def declared_on_disk(settings: Settings) -> list[Settings]:
    """Return the settings of every stream that has a file; one that cannot be read is logged."""
    found = []
    for path in sorted(settings.state_dir.glob(f"{DIRECTORY}/*/{FILE}")):
        try:
            found.append(settings_of(settings, path.parent.name, json.loads(path.read_bytes())))
        except (OSError, ValueError, SettingsError) as error:
            log.critical("declaration_refused", file=str(path), reason=str(error))
    return found


class DeclaredStreams:
    """The worker's side; every method may raise `Unavailable`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._redis: Any = connect(server_url(settings))
        self._refused: set[str] = set()

    def all(self) -> list[Settings]:
        """Return the settings of every declared stream; its declaration is then in both places.

        Raises:
            OSError: the disk is full or refuses.
        """
        with redis_errors():
            told = {name.decode(): text for name, text in self._redis.hgetall(STREAMS).items()}
        files = {path.parent.name: path for path in self._root.glob(f"*/{FILE}")}
        for name in told.keys() - files.keys():
            (self._root / name).mkdir(parents=True, exist_ok=True)
            directory.replace_file(self._root / name / FILE, told[name])
        for name in files.keys() - told.keys():
            with redis_errors():
                self._redis.hsetnx(STREAMS, name, files[name].read_bytes())
        return declared_on_disk(self._settings)

    def close(self) -> None:
        """Close the connection."""
        self._redis.close()

    @property
    def _root(self) -> Path:
        return self._settings.state_dir / DIRECTORY


class Registry:
    """The API's side; every method may raise `Unavailable`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._redis: Any = connect_async(server_url(settings))

    async def declare(self, name: str, options: Mapping[str, Any]) -> tuple[Settings, bool]:
        """Return the settings of a stream from now on, and whether it is new.

        Raises:
            SettingsError: naming the option that is wrong; nothing was declared.
            Conflict: `stream_exists`, declared otherwise before; `too_many_streams`.
        """
        made = settings_of(self._settings, name, options)
        record = json.dumps(dict(options), sort_keys=True)
        async with redis_answers():
            known: dict[bytes, bytes] = await self._redis.hgetall(STREAMS)
            most = self._settings.max_streams
            if name.encode() not in known and len(known) + 1 >= most:
                raise Conflict(
                    "too_many_streams", f"expected at most {most} streams, the default one included"
                )
            await self._check_room(made, known)
            new = bool(await self._redis.hsetnx(STREAMS, name, record))
            before = await self._redis.hget(STREAMS, name)
        if json.loads(before) != json.loads(record):
            raise Conflict("stream_exists", f"stream {name} was declared otherwise: {before!r}")
        return made, new

    async def _check_room(self, made: Settings, known: Mapping[bytes, bytes]) -> None:
        """Check that the replay buffers of all streams leave Redis room for their logs."""
        most = int((await self._redis.info("memory"))["maxmemory"] * REPLAY_SHARE)
        others = [
            _replay_bytes(settings_of(self._settings, name.decode(), json.loads(record)))
            for name, record in known.items()
            if name.decode() != made.stream
        ]
        together = _replay_bytes(self._settings) + sum(others) + _replay_bytes(made)
        if most and together > most:
            raise SettingsError(
                f"replay_bytes: expected at most {most} for all streams together, "
                f"{REPLAY_SHARE:.0%} of the memory of redis, got {together}"
            )

    async def find(self, name: str) -> Settings | None:
        """Return the settings of a declared stream, or None where there is none of that name."""
        async with redis_answers():
            record = await self._redis.hget(STREAMS, name)
        return None if record is None else settings_of(self._settings, name, json.loads(record))

    async def all(self) -> list[Settings]:
        """Return the settings of every declared stream."""
        async with redis_answers():
            known: dict[bytes, bytes] = await self._redis.hgetall(STREAMS)
        return [
            settings_of(self._settings, name.decode(), json.loads(record))
            for name, record in sorted(known.items())
        ]

    async def close(self) -> None:
        """Close every connection."""
        await self._redis.aclose()


def _replay_bytes(settings: Settings) -> int:
    """Return what a stream's replay buffer may take; preset `paper` bounds it by samples alone."""
    return settings.replay_bytes if settings.preset == "default" else 0
