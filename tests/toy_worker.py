"""A worker process with the toy engine: `python -m tests.toy_worker STEP_S [FLAW]`.

It reads its settings from the environment as `levit worker` does. A FLAW makes it a negative
control: a worker with that mistake must not reach the state of one without.
"""

import hashlib
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from service.engine.protocol import Array, EngineState, Labels, Members, ObserveReport, Origin
from service.errors import CorruptState, SettingsError, StateDirectoryBusy
from service.inputs import InputSchema
from service.settings import Settings
from service.store import records
from service.store.entry import Entry
from service.store.read import Log
from service.timeline import Timeline
from service.worker import loop, process, recent
from tests.toy_engine import ToyEngine, ToyEngines

EXIT_CODES = {SettingsError: 2, CorruptState: 65, StateDirectoryBusy: 75}


class ForgetsTheGenerator(ToyEngines):
    """A restore that begins the random numbers anew."""

    def restore(self, settings: Settings, state: EngineState, members: Members) -> ToyEngine:
        engine = super().restore(settings, state, members)
        return replace(engine, generator=np.random.default_rng(settings.seed))


class ForgetsTheMemory(ToyEngines):
    """A restore that begins with an empty replay memory."""

    def restore(self, settings: Settings, state: EngineState, members: Members) -> ToyEngine:
        return replace(super().restore(settings, state, members), memory=[])


class ForgetsTheTimeline(ToyEngines):
    """With it, a time line begins anew at each restart."""

    def __init__(self, step_s: float) -> None:
        super().__init__(step_s)
        Timeline.load = lambda self, dumped: None  # type: ignore[method-assign]


DEADLY = 254
"""First value of a batch that kills the process which learns it."""


class MortalEngine(ToyEngine):
    """Dies of what a bug in a library could make of some batch."""

    def observe(self, origin: Origin, x: Array, labels: Labels | None) -> ObserveReport:
        if x.flat[0] == DEADLY:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().observe(origin, x, labels)


class Mortal(ToyEngines):
    """Engines that a batch can kill."""

    def create(self, settings: Settings, schema: InputSchema) -> ToyEngine:
        return MortalEngine(**vars(super().create(settings, schema)))

    def restore(self, settings: Settings, state: EngineState, members: Members) -> ToyEngine:
        return MortalEngine(**vars(super().restore(settings, state, members)))


class TrustsTheLog(ToyEngines):
    """With it, whatever lies in the log counts as what was accepted."""

    def __init__(self, step_s: float) -> None:
        super().__init__(step_s)
        read = Entry.from_fields

        def from_fields(number: int, position: str, fields: Mapping[bytes, bytes]) -> Entry:
            sha256 = hashlib.sha256(fields[b"payload"]).hexdigest().encode()
            return read(number, position, {**fields, b"sha256": sha256})

        Entry.from_fields = from_fields  # type: ignore[method-assign]


class RemembersFew(ToyEngines):
    """With it, a worker soon keeps as many batches' ids and records as it ever will."""

    def __init__(self, step_s: float) -> None:
        super().__init__(step_s)
        records.SHARE, recent.RECENT = 0.01, 1000


class RepeatsItself(ToyEngines):
    """With it, a worker does not know what it has told whoever listens."""

    def __init__(self, step_s: float) -> None:
        super().__init__(step_s)
        Log.told = lambda self: 0  # type: ignore[method-assign]
        Log.mark = lambda self: None  # type: ignore[method-assign]


FLAWS = {
    "none": ToyEngines,
    "generator": ForgetsTheGenerator,
    "memory": ForgetsTheMemory,
    "timeline": ForgetsTheTimeline,
    "checksum": TrustsTheLog,
    "mortal": Mortal,
    "brief": RemembersFew,
    "repeats": RepeatsItself,
}


def main(step_s: str, flaw: str = "none") -> int:
    """Run the worker; return its exit code."""
    loop.SHARE = 0.5  # many checkpoints, as their moments are what is tested
    try:
        return process.run(Settings.read(), FLAWS[flaw](float(step_s)))
    except tuple(EXIT_CODES) as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_CODES[type(error)]


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
