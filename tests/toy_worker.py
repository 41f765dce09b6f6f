"""A worker process with the toy engine: `python -m tests.toy_worker STEP_S [FLAW]`.

It reads its settings from the environment as `levit worker` does. A FLAW makes it a negative
control: a worker with that mistake must not reach the state of one without.
"""

import sys
from dataclasses import replace

import numpy as np

from service.engine.protocol import EngineState, Members
from service.errors import CorruptState, SettingsError, StateDirectoryBusy
from service.settings import Settings
from service.worker import loop
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


FLAWS = {
    "none": ToyEngines,
    "generator": ForgetsTheGenerator,
    "memory": ForgetsTheMemory,
}


def main(step_s: str, flaw: str = "none") -> int:
    """Run the worker; return its exit code."""
    try:
        return loop.run(Settings.read(), FLAWS[flaw](float(step_s)))
    except tuple(EXIT_CODES) as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_CODES[type(error)]


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
