"""The held-out slice of the whole past, and what it decides: ridge and pool weights.

A replay member is held out while its key is below a bound that only falls, so that what was once
trained on is never held out, and what is no longer held out may be trained on. Like the buffer
itself the slice is a uniform sample of all labelled samples, in whatever order they came. Ours.
Dimension key: H held-out samples, M parts, K classes, F features.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from learner.adaptive_mixture import ALL, AdaptiveMixture
from learner.analytic import AnalyticMemory
from learner.blend import Pool, fitted_pool
from learner.encoder import Encoded, Encoder
from learner.reservoir import ReplayBuffer
from learner.splitmix import sample_keys
from learner.tokenizer import Grids

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
class HeldFeatures:
    """Features that the tokenizer made of held-out samples, so that it makes them once.

    No part of the durable state: made again they are the same bits. Never changed. Ours.
    """

    keys_H: Tensor
    """Of the samples, ascending."""
    features_HF: Tensor

    @classmethod
    def none(cls) -> Self:
        """Return those of no sample."""
        return cls(torch.empty(0, dtype=torch.int64), torch.empty(0, 0))

    def encoded(
        self, encoder: Encoder, replay: ReplayBuffer, slots_H: Tensor
    ) -> tuple[Encoded, "HeldFeatures"]:
        """Return what these members become, smallest key first, and the features to keep."""
        x = replay.x[slots_H]
        if encoder.patches is None:
            return encoder(x), self
        keys_H = sample_keys(replay.ids_S2[slots_H], replay.salt)
        known_H = torch.isin(keys_H, self.keys_H)
        features_HF = torch.empty(len(keys_H), encoder.patches.features, device=x.device)
        if known_H.any():
            place = torch.searchsorted(self.keys_H, keys_H[known_H])
            features_HF[known_H] = self.features_HF[place]
        if not known_H.all():
            made, slots = encoder.patches(x[~known_H]), slots_H[~known_H]
            features_HF[~known_H] = made.features_BF
            replay.columns["tokens"][slots] = made.tokens_BRNE
            replay.columns["ready"][slots] = True
        grids = Grids(features_HF, encoder.replayed(replay, slots_H))
        return encoder(x, grids), HeldFeatures(keys_H, features_HF)


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the held-out samples decided."""

    ridge: float
    pools: dict[int, Pool]
    accuracy_M: tuple[float, ...]
    """Of each part on the held-out samples, 0 to 1."""
    held: int
    """How many decided."""
    kept: HeldFeatures
    """Of the samples that decided."""


def kept_bytes(encoder: Encoder, replay: ReplayBuffer) -> int:
    """Return the bytes of the features kept of a full slice."""
    return 0 if encoder.patches is None else 4 * encoder.patches.features * _most(replay)


def fallen_bound(bound: int, replay: ReplayBuffer) -> int:
    """Return the bound below which at most `MOST` members, and a fifth of the capacity, lie.

    None at all where a fifth would be too few to decide anything.
    """
    key = replay.key_of_rank(_most(replay))
    return bound if key is None else min(bound, key)


def _most(replay: ReplayBuffer) -> int:
    most = min(MOST, replay.capacity // 5)
    return most if most >= FEWEST else 0


@torch.no_grad()
def judged(
    mixture: AdaptiveMixture,
    memory: AnalyticMemory,
    held: tuple[ReplayBuffer, int],
    ridge: float | None,
    *,
    everything: bool,
    kept: HeldFeatures,
) -> Judgement | None:
    """Return what the held-out slice decides, or None while it is too small.

    The read-out is solved without them, and no gradient and no expert's own sums have seen them.

    Args:
        mixture: as it answers now.
        memory: holds all labelled samples, the held-out ones too.
        held: the replay buffer, and the bound below whose keys its members are held out.
        ridge: the one in use; None at first.
        everything: whether to try the ridge's neighbours too.
        kept: features of the last time.
    """
    replay, bound = held
    slots = replay.below(bound)
    if len(slots) < FEWEST or mixture.encoder is None:
        return None
    y_H = replay.y_S[slots]
    encoded, kept = kept.encoded(mixture.encoder, replay, slots)
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
    return Judgement(chosen, pools, tuple(right_M.tolist()), len(slots), kept)


def _neighbours(ridge: float) -> tuple[float, ...]:
    low, high = _RIDGES
    return tuple(
        r for r in (ridge / _RIDGE_STEP, ridge, ridge * _RIDGE_STEP) if low <= r <= high
    ) or (ridge,)


def _loss(pool: Pool, logp_MHK: Tensor, y_H: Tensor) -> float:
    p_H = pool(logp_MHK).gather(1, y_H[:, None])
    return float(-p_H.clamp_min(1e-12).log().sum())
