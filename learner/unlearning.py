"""What a learner of preset `default` can take back of one source: samples held, and their sums.

Samples leave the replay buffer, or wait no longer for the encoder. Out of the sums go those that
left the buffer, and those that somebody kept and hands in again. Networks, densities, an expert's
own sums and the encoder's filters keep what they learned. Ours.
Dimension key: B batch, K classes.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from learner.adaptive_parts import AdaptiveParts
from learner.adaptive_training import FORWARD
from learner.report import Purged, Stored
from learner.samples import UNLABELLED, checked_samples, class_indexes
from learner.view import compact

_AT_ONCE = 256  # samples encoded together; the bits depend on it


def purge(levit: AdaptiveParts, source: int, stored: Iterable[Stored]) -> Purged:
    """Take back what a source has sent; see `presets.purge`."""
    if levit.knowledge is None:
        return _let_go(levit, source)
    x, y_B, ids_B2 = levit.replay.drop(source)
    _unlearn(levit, x, y_B)
    gone, unlearned = set(map(tuple, ids_B2.tolist())), len(x)
    for batch in stored:
        x = checked_samples(batch.x, levit.config.input_shape).to(levit.device)
        y_B, _ = class_indexes(batch.labels, len(x), levit.mixture.classes)
        left = [
            i
            for i, k in enumerate(y_B.tolist())
            if k != UNLABELLED and (batch.number, i) not in gone
        ]
        _unlearn(levit, x[left], y_B[left].to(levit.device))
        unlearned += len(left)
    asked = levit.knowledge.reconsider(levit.mixture, levit.replay)
    levit.counts.spent += FORWARD * asked * (1 + (len(levit.mixture.experts) > 1))
    return Purged(replay=len(ids_B2), unlearned=unlearned)


def _let_go(levit: AdaptiveParts, source: int) -> Purged:
    """Drop what waits for the encoder; it is in no sum yet but the first guess's."""
    pairs = [part.split(source) for part in levit.pending]
    levit.pending = tuple(others for _, others in pairs if len(others.y_B))
    mixture, labelled = levit.mixture, 0
    for theirs, _ in pairs:
        rows = theirs.y_B != UNLABELLED
        y_L, view_LV = theirs.y_B[rows], compact(theirs.x[rows])
        _uncount(levit, y_L)
        mixture.first_KV = mixture.first_KV.index_add(0, y_L, view_LV, alpha=-1)
        labelled += len(y_L)
    return Purged(replay=sum(len(theirs.y_B) for theirs, _ in pairs), unlearned=labelled)


@torch.no_grad()
def _unlearn(levit: AdaptiveParts, x: Tensor, y_B: Tensor) -> None:
    """Take labelled samples out of the sums."""
    encoder, known = levit.mixture.encoder, levit.knowledge
    if encoder is None or known is None:
        return
    for some, y in zip(x.split(_AT_ONCE), y_B.split(_AT_ONCE), strict=True):
        if len(y):
            known.remove(encoder(some), y)
            _uncount(levit, y)


def _uncount(levit: AdaptiveParts, y_L: Tensor) -> None:
    counts_K = levit.mixture.counts_K
    levit.mixture.counts_K = counts_K - torch.bincount(y_L, minlength=len(counts_K)).to(counts_K)
