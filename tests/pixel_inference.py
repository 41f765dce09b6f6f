"""An inference process without torch: `python -m tests.pixel_inference FD FD ...`.

Its predictors are those of `tests.served`; a state with the value `corrupt` is none, and with
`slow` its predictor takes its time and tells who it is. It hears SIGTERM, unlike the real one.
"""

import os
import sys
import time
from dataclasses import replace
from typing import cast

import numpy as np

from service.engine.inference import run
from service.engine.protocol import Array, Engines, EngineState, Prediction
from service.errors import CorruptState
from tests.served import PixelEngines, PixelPredictor


class SlowPredictor(PixelPredictor):
    """Takes half a second, and answers with its process in place of an expert."""

    def predict(self, x: Array) -> Prediction:
        time.sleep(0.5)
        return replace(super().predict(x), experts=np.full(len(x), os.getpid()))


class Engine(PixelEngines):
    """Makes predictors of states that are whole."""

    def predictor(self, state: EngineState) -> PixelPredictor:
        if "corrupt" in state.values:
            raise CorruptState("an array is missing")
        if "slow" in state.values:
            return SlowPredictor(state.values["classes"])
        return super().predictor(state)


if __name__ == "__main__":
    run(cast(Engines, Engine()), [int(fd) for fd in sys.argv[1:]])
