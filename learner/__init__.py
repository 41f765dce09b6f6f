"""The learner: tensors in, values out. This is its front door, the only one outsiders use.

Pure: no clock, no file, no network, no environment, no global random state.
"""

from learner.config import LearnerConfig, paper
from learner.errors import ConfigError, LearnerError, NonFiniteError, ShapeError, StateError
from learner.levit import LEViT, ObserveReport
from learner.mixture import Mixture, Prediction
from learner.scaler import unit
from learner.state import LearnerState, dump, restore, restore_for_prediction

__all__ = [
    "ConfigError",
    "LEViT",
    "LearnerConfig",
    "LearnerError",
    "LearnerState",
    "Mixture",
    "NonFiniteError",
    "ObserveReport",
    "Prediction",
    "ShapeError",
    "StateError",
    "dump",
    "paper",
    "restore",
    "restore_for_prediction",
    "unit",
]
