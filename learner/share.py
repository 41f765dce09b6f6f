"""Who makes room in a full replay buffer: no source takes it from the others beyond its share.

The sample to leave is the one of the largest key among the sources that have more than their share;
where none has, the one of the largest key of all. So a source that writes a thousand times as much
fills what nobody else needs, and gives it back as others come. With one source this is bottom-k
sampling as it was. Ours.
Dimension key: M members, N members and then those that would be, K sources, P some of the N.
"""

import torch
from torch import Tensor

_WINDOW = 1024  # members looked at first for the last ones of a source


def leaving(
    keys_N: Tensor, source_N: Tensor, members: int, *, capacity: int, share: float
) -> Tensor:
    """Return the indexes of the samples that leave, as many as there are beyond capacity.

    Costs little where the newcomers are few, however many members there are.

    Args:
        keys_N: int64, all different; the members' ascending.
        source_N: who sent each, small numbers >= 0.
        members: M.
        capacity: of the buffer.
        share: of the capacity that one source may have beside others; 1 / K where that is more.
    """
    excess = len(keys_N) - capacity
    if excess <= 0:
        return torch.empty(0, dtype=torch.int64)
    counts_K = torch.bincount(source_N)
    most = max(int(share * capacity), -(-capacity // int((counts_K > 0).sum())))
    new = torch.arange(members, len(keys_N))
    beyond = [new[:0]]
    for k in (counts_K > most).nonzero()[:, 0].tolist():
        n = min(excess, int(counts_K[k]) - most)
        own = torch.cat([_last(source_N[:members], k, n), new[source_N[members:] == k]])
        beyond.append(_largest(keys_N, own, n))
    first = _largest(keys_N, torch.cat(beyond), excess)
    if len(first) == excess:
        return first
    others = torch.cat([torch.arange(max(0, members - excess), members), new])
    others = others[~torch.isin(others, first)]
    return torch.cat([first, _largest(keys_N, others, excess - len(first))])


def _last(source_M: Tensor, source: int, n: int) -> Tensor:
    """Return the indexes of the last n members of a source, or of all it has."""
    width = _WINDOW
    while True:
        found = (source_M[-width:] == source).nonzero()[:, 0]
        if len(found) >= n or width >= len(source_M):
            return (found + max(0, len(source_M) - width))[-n:]
        width *= 4


def _largest(keys_N: Tensor, among_P: Tensor, n: int) -> Tensor:
    """Return those of some indexes that have the n largest keys, or all."""
    return among_P[keys_N[among_P].topk(min(n, len(among_P))).indices]
