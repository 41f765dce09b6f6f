"""An inference process without torch: `python -m tests.pixel_inference THREADS FD FD ...`.

Its predictors are those of `tests.served`; a state with the value `broken` makes none, one with
`corrupt` is none. It hears SIGTERM and SIGINT, unlike the real one.
"""

import sys
from typing import cast

from service.engine.inference import run
from service.engine.protocol import Engines, EngineState
from service.errors import CorruptState
from tests.served import PixelEngines, PixelPredictor


class Engine(PixelEngines):
    """Makes predictors of states that are whole."""

    def predictor(self, state: EngineState) -> PixelPredictor:
        if "corrupt" in state.values:
            raise CorruptState("an array is missing")
        return super().predictor(state)


if __name__ == "__main__":
    run(cast(Engines, Engine()), [int(fd) for fd in sys.argv[2:]])
