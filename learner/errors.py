"""Every refusal of the learner.

LearnerError
+-- ConfigError    (ValueError)       a hyper-parameter is out of bounds
+-- ShapeError     (ValueError)       samples or labels have another shape, dtype or range
+-- NonFiniteError (ArithmeticError)  a loss or gradient is NaN or infinite; nothing was learned
+-- StateError     (ValueError)       a saved state is incomplete or of another shape
"""


class LearnerError(Exception):
    """Base of all that the learner raises on purpose; the learner is unchanged when it does."""


class ConfigError(LearnerError, ValueError):
    """A hyper-parameter is out of its bounds."""


class ShapeError(LearnerError, ValueError):
    """Samples or labels are not what the configuration says."""


class NonFiniteError(LearnerError, ArithmeticError):
    """A loss or a gradient is not finite; no step was taken."""


class StateError(LearnerError, ValueError):
    """A saved state cannot be restored whole."""
