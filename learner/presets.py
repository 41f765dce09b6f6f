"""One door to what learners of either preset have in common: their state, and purging. Ours."""

from collections.abc import Iterable

from learner import adaptive_served, adaptive_state, state, unlearning
from learner.adaptive import AdaptiveLEViT
from learner.adaptive_mixture import AdaptiveMixture
from learner.levit import LEViT
from learner.mixture import Mixture
from learner.report import Purged, Stored
from learner.state import LearnerState


def dump(learner: LEViT | AdaptiveLEViT) -> LearnerState:
    """Return the whole state; saving changes nothing."""
    if isinstance(learner, AdaptiveLEViT):
        return adaptive_state.dump(learner)
    return state.dump(learner)


def restore(saved: LearnerState, *, device: str = "cpu") -> LEViT | AdaptiveLEViT:
    """Return the learner that `dump` described; continuing is bit-equal to never having stopped.

    It shares nothing with the saved state, which may be restored again.

    Raises:
        StateError: naming what is missing or of another shape.
    """
    if _preset(saved) == "default":
        return adaptive_state.restore(saved, device=device)
    return state.restore(saved, device=device)


def restore_for_prediction(
    saved: LearnerState, *, device: str = "cpu"
) -> Mixture | AdaptiveMixture:
    """Return the mixture that answers as the dumped learner does; it may share the tensors.

    Raises:
        StateError: naming what is missing or of another shape.
    """
    if _preset(saved) == "default":
        return adaptive_served.restore_for_prediction(saved, device=device)
    return state.restore_for_prediction(saved, device=device)


def purge(learner: LEViT | AdaptiveLEViT, source: int, stored: Iterable[Stored]) -> Purged:
    """Take back what a source has sent, as far as its samples are held or handed in.

    Networks keep what they learned, so preset `paper` only drops them from its memory. After an
    exception the learner is no whole state.

    Args:
        learner: of either preset.
        source: as `observe` took it.
        stored: its mini-batches that are still there, in any order, as they were learned.
    """
    if isinstance(learner, AdaptiveLEViT):
        return unlearning.purge(learner, source, stored)
    return Purged(replay=learner.memory.drop(source), unlearned=0)


def _preset(saved: LearnerState) -> str:
    preset: str = saved.values.get("config", {}).get("preset", "paper")
    return preset
