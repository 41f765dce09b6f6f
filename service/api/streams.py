"""The streams of one API process: what serves each of them, found by its name.

Streams share the process, its Redis server and its codec, and nothing else: each has its own names
in Redis, directory, log, model and inference thread.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Annotated, Any

import structlog
from fastapi import Path
from starlette.requests import Request

from service.api.audience import MOST_LISTENERS, Audience
from service.api.batcher import Batcher
from service.api.explainer import Explainer
from service.api.freshness import Freshness
from service.api.intake import Intake
from service.api.predictor import Follower, Predictors
from service.api.pulse import Pulse
from service.api.seats import Seats
from service.errors import NotFound, Unavailable
from service.metrics import ApiMetrics
from service.settings import STREAM_NAME, Settings
from service.store.append import Appender
from service.store.commands import CommandDesk
from service.store.declared import Registry, declared_on_disk
from service.store.feed import Feed
from service.store.names import DEFAULT_STREAM, Names
from service.store.quarantine import Quarantine
from service.store.replay_view import ReplayView
from service.store.server import server_url
from service.store.snapshots import SnapshotInfo
from service.store.stream_ids import START
from service.store.unlearned import Unlearned

log: structlog.stdlib.BoundLogger = structlog.get_logger()


StreamName = Annotated[str, Path(pattern=STREAM_NAME, description="Name of a declared stream.")]


def named_stream(stream: StreamName) -> None:
    """Say in the API's description that the path names a stream."""


def root_of(stream: str) -> str:
    """Return where the routes of a stream begin; empty for the default one."""
    return "" if stream == DEFAULT_STREAM else f"/streams/{stream}"


class StreamServices:
    """Everything that serves one stream."""

    def __init__(
        self, settings: Settings, load_predictors: Callable[[], Predictors], metrics: ApiMetrics
    ) -> None:
        """Prepare; `start` begins to follow and to answer.

        Args:
            settings: of the stream.
            load_predictors: returns what makes predictors; called in a thread.
            metrics: of the process.
        """
        url, names = server_url(settings), Names(settings.stream)
        self.settings = settings
        self.metrics = metrics.of(settings.stream)
        self.appender = Appender(url, settings)
        self.intake = Intake(
            self.appender,
            self.metrics,
            root=root_of(settings.stream),
            require_key=settings.require_idempotency_key,
        )
        self.quarantine = Quarantine(url, names)
        self.desk = CommandDesk(url, names)
        self.follower = Follower(settings, load_predictors)
        self.freshness = Freshness(self.follower)
        self.audience = Audience(Feed(url, names))
        self.watchers = Seats(MOST_LISTENERS)
        """Places of those who are told what is now."""
        self.ending = asyncio.Event()
        """Set when whoever listens is told nothing more."""
        self._unlearned = Unlearned(url, names)
        self.pulse = Pulse(self.follower, self.appender, self.staleness_s)
        self.explainer = Explainer(self.follower, ReplayView(url, names), top_k=settings.top_k)
        self.batcher = Batcher(self.follower.answer, settings, self.metrics)

    async def staleness_s(self) -> float:
        """Return the age of the oldest entry that the served model has not learned; 0 without one.

        Raises:
            Unavailable: Redis is away.
        """
        served = self.follower.facts
        return await self._unlearned.age_s(START if served is None else served.position)

    def start(self) -> None:
        """Begin, on the running event loop."""
        self.freshness.start()
        self.follower.start()
        self.batcher.start()

    async def stop(self) -> None:
        """Stop in reverse order of who needs whom."""
        self.end_waiting()
        await self.batcher.stop()
        self.follower.stop()
        used = (self.appender, self.quarantine, self.desk, self.audience, self.explainer)
        for connected in (*used, self._unlearned):
            await connected.close()

    def end_waiting(self) -> None:
        """End the requests that only wait."""
        self.freshness.stop()
        self.audience.stop()
        self.ending.set()


StreamOf = Callable[[Request], Awaitable[StreamServices]]
"""Returns the stream that a request is about; raises NotFound, `unknown_stream`."""


class Streams:
    """The streams by name; lives on one event loop."""

    def __init__(
        self, settings: Settings, load_predictors: Callable[[], Predictors], metrics: ApiMetrics
    ) -> None:
        """Prepare the default stream; `start` begins with it and those that are known.

        Args:
            settings: of the process.
            load_predictors: returns what makes predictors; called once in a thread.
            metrics: of the process.
        """
        self._settings = settings
        self._load_predictors = load_predictors
        self._metrics = metrics
        self._registry = Registry(settings)
        self.default = StreamServices(settings, load_predictors, metrics)
        self._by_name = {DEFAULT_STREAM: self.default}
        self._adding = asyncio.Lock()

    @property
    def all(self) -> Mapping[str, StreamServices]:
        """Every stream that is known now."""
        return self._by_name

    @property
    def facts(self) -> dict[str, SnapshotInfo]:
        """The facts of the served snapshots by stream, for metrics."""
        found = {name: one.follower.facts for name, one in self._by_name.items()}
        return {name: facts for name, facts in found.items() if facts is not None}

    async def start(self) -> None:
        """Begin with the default stream and those whose declaration lies on the disk."""
        self.default.start()
        for settings in await asyncio.to_thread(declared_on_disk, self._settings):
            await self._add(settings)

    async def stop(self) -> None:
        """Stop all of them."""
        await asyncio.gather(*(one.stop() for one in self._by_name.values()))
        await self._registry.close()

    def end_waiting(self) -> None:
        """End the requests that only wait, as the process is about to stop."""
        for one in self._by_name.values():
            one.end_waiting()

    async def of(self, request: Request) -> StreamServices:
        """Return the stream that a request is about.

        Raises:
            NotFound: `unknown_stream`.
        """
        name = request.path_params.get("stream", DEFAULT_STREAM)
        known = self._by_name.get(name)
        return known if known is not None else await self._found(name)

    async def declare(self, name: str, options: Mapping[str, Any]) -> tuple[StreamServices, bool]:
        """Return a stream that is there from now on, and whether it is new.

        Raises:
            SettingsError: naming the option that is wrong; nothing was declared.
            Conflict: `stream_exists`, declared otherwise before; `too_many_streams`.
            Unavailable: `redis_unavailable`, the outcome is unknown.
        """
        settings, new = await self._registry.declare(name, options)
        return await self._add(settings), new

    async def learn_of_others(self) -> None:
        """Add the streams that were declared by way of other processes."""
        with suppress(Unavailable):
            for settings in await self._registry.all():
                await self._add(settings)

    async def _found(self, name: str) -> StreamServices:
        try:
            settings = await self._registry.find(name)
        except Unavailable:
            settings = None
        if settings is None:
            raise NotFound("unknown_stream", "there is no such stream; GET /streams lists them")
        return await self._add(settings)

    async def _add(self, settings: Settings) -> StreamServices:
        async with self._adding:
            known = self._by_name.get(settings.stream)
            if known is None:
                known = StreamServices(settings, self._load_predictors, self._metrics)
                known.start()
                self._by_name[settings.stream] = known
                log.info("stream_added", stream=settings.stream)
            return known
