"""The held-out slice of the whole past, and what it decides: ridge and pool weights.

A replay member is held out while its key is below a bound that only falls, so that what was once
trained on is never held out, and what is no longer held out may be trained on. Like the buffer
itself the slice is a uniform sample of all labelled samples, in whatever order they came. Ours.
Dimension key: H held-out samples, M parts, K classes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from learner.adaptive_mixture import ALL, AdaptiveMixture
from learner.analytic import AnalyticMemory
from learner.blend import Pool, fitted_pool
from learner.reservoir import ReplayBuffer

FIRST_BOUND = -(2**63) + 2**64 // 10
"""Keys below it, a tenth of all, are held out at first."""
MOST = 1000
"""Most samples held out; at most a fifth of the buffer's capacity either."""
FEWEST = 20
"""Held-out samples needed before they decide anything."""
FIRST_RIDGES = (1.0, 0.1, 0.01, 0.001)
_RIDGE_STEP, _RIDGES = 3.0, (1e-4, 3.0)
_OWN_POOL = 40  # held-out samples that give an expert a pool of its own


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the held-out samples decided."""

    ridge: float
    pools: dict[int, Pool]
    accuracy_M: tuple[float, ...]
    """Of each part on the held-out samples, 0 to 1."""
    held: int
    """How many decided."""


def fallen_bound(bound: int, replay: ReplayBuffer) -> int:
    """Return the bound below which at most `MOST` members, and a fifth of the capacity, lie.

    None at all where a fifth would be too few to decide anything.
    """
    most = min(MOST, replay.capacity // 5)
    most = most if most >= FEWEST else 0
    key = replay.key_of_rank(most)
    return bound if key is None else min(bound, key)


@torch.no_grad()
def judged(
    mixture: AdaptiveMixture,
    memory: AnalyticMemory,
    held: tuple[ReplayBuffer, int],
    ridge: float | None,
    *,
    everything: bool,
) -> Judgement | None:
    """Return what the held-out slice decides, or None while it is too small.

    The read-out is solved without them, and no gradient and no expert's own sums have seen them.

    Args:
        mixture: as it answers now.
        memory: holds all labelled samples, the held-out ones too.
        held: the replay buffer, and the bound below whose keys its members are held out.
        ridge: the one in use; None at first.
        everything: whether to try the ridge's neighbours too.
    """
    replay, bound = held
    slots = replay.below(bound)
    if len(slots) < FEWEST or mixture.encoder is None:
        return None
    y_H = replay.y_S[slots]
    encoded = mixture.encoder(replay.x[slots])
    ridges = FIRST_RIDGES if ridge is None else _neighbours(ridge) if everything else (ridge,)
    read_outs = memory.read_outs(ridges, without=(encoded.features_BF, y_H))
    scored = []
    for candidate, read_out in zip(ridges, read_outs, strict=True):
        logp_1HK = mixture.known(read_out.scores(encoded.features_BF))[None]
        scored.append((_loss(fitted_pool(logp_1HK, y_H), logp_1HK, y_H), candidate, read_out))
    _, chosen, read_out = min(scored, key=lambda s: s[:2])
    answer = mixture.answer(encoded, read_out)
    pools = {ALL: fitted_pool(answer.logp_MBK, y_H)}
    for k, expert in enumerate(mixture.experts):
        rows = (answer.routed_B == k).nonzero().squeeze(1)
        if len(mixture.experts) > 1 and len(rows) >= _OWN_POOL:
            pools[expert.life.id] = fitted_pool(
                answer.logp_MBK[:, rows], y_H[rows], pools[ALL].weight_M
            )
    right_M = (answer.logp_MBK.argmax(2) == y_H).float().mean(1)
    return Judgement(chosen, pools, tuple(right_M.tolist()), len(slots))


def _neighbours(ridge: float) -> tuple[float, ...]:
    low, high = _RIDGES
    return tuple(
        r for r in (ridge / _RIDGE_STEP, ridge, ridge * _RIDGE_STEP) if low <= r <= high
    ) or (ridge,)


def _loss(pool: Pool, logp_MHK: Tensor, y_H: Tensor) -> float:
    p_H = pool(logp_MHK).gather(1, y_H[:, None])
    return float(-p_H.clamp_min(1e-12).log().sum())
