"""The learner: tensors in, values out. This is its front door, the only one outsiders use.

Pure: no clock, no file, no network, no environment, no global random state.
"""

from learner.adaptive import AdaptiveLEViT
from learner.adaptive_config import AdaptiveConfig
from learner.adaptive_mixture import PARTS, AdaptiveExpert, AdaptiveMixture
from learner.config import LearnerConfig, paper
from learner.drawing import drawn
from learner.errors import ConfigError, LearnerError, NonFiniteError, ShapeError, StateError
from learner.explanation import explain, features
from learner.levit import LEViT
from learner.mixture import Mixture
from learner.presets import dump, purge, restore, restore_for_prediction
from learner.report import (
    Expansion,
    Explanation,
    Heat,
    Life,
    ObserveReport,
    Prediction,
    Purged,
    Stored,
)
from learner.scaler import unit
from learner.state import LearnerState

__all__ = [
    "PARTS",
    "AdaptiveConfig",
    "AdaptiveExpert",
    "AdaptiveLEViT",
    "AdaptiveMixture",
    "ConfigError",
    "Expansion",
    "Explanation",
    "Heat",
    "LEViT",
    "LearnerConfig",
    "LearnerError",
    "LearnerState",
    "Life",
    "Mixture",
    "NonFiniteError",
    "ObserveReport",
    "Prediction",
    "Purged",
    "ShapeError",
    "StateError",
    "Stored",
    "drawn",
    "dump",
    "explain",
    "features",
    "paper",
    "purge",
    "restore",
    "restore_for_prediction",
    "unit",
]
