"""A worker process with the toy engine: `python -m tests.toy_worker STEP_S [FLAW [DIE_AT]]`.

It reads its settings from the environment as `levit worker` does. A FLAW makes it a negative
control: a worker with that mistake must not reach the state of one without. With DIE_AT it kills
itself right before its so many-th step towards something durable (an fsync, rename or link).
"""

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

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


def die_at(count: int) -> None:
    """Kill this process right before its `count`-th durable step."""
    left = count

    def counted(action: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any) -> Any:  # noqa: ANN401
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return action(*arguments)

        return wrapped

    os.fsync = counted(os.fsync)
    for name in ("rename", "replace", "hardlink_to", "unlink"):
        setattr(Path, name, counted(getattr(Path, name)))


def main(step_s: str, flaw: str = "none", count: str | None = None) -> int:
    """Run the worker; return its exit code."""
    loop.SHARE = 0.5  # many checkpoints, as their moments are what is tested
    if count is not None:
        die_at(int(count))
    try:
        return loop.run(Settings.read(), FLAWS[flaw](float(step_s)))
    except tuple(EXIT_CODES) as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_CODES[type(error)]


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
