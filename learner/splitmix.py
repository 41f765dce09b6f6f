"""The key of a sample: a hash of its id, the same wherever and whenever it is asked for.

SplitMix64 (Steele, Lea & Flood 2014), chained over salt, entry number and index.
Dimension key: B batch.
"""

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # the constants of SplitMix64, as int64
_FIRST = 0xBF58476D1CE4E5B9 - 2**64
_SECOND = 0x94D049BB133111EB - 2**64


def sample_keys(ids_B2: Tensor, salt: int) -> Tensor:
    """Return the hash of each id, [B] int64, evenly spread over its whole range.

    With h(s, i) the i-th number that SplitMix64 gives after seed s: h(h(h(salt, 0), entry), index).
    """
    key = torch.tensor(salt)
    for part in (torch.tensor(0), *ids_B2.unbind(1)):
        key = _mixed(key + (part + 1) * _GOLDEN)
    return key


def _mixed(z: Tensor) -> Tensor:
    z = (z ^ _shifted(z, 30)) * _FIRST
    z = (z ^ _shifted(z, 27)) * _SECOND
    return z ^ _shifted(z, 31)


def _shifted(z: Tensor, bits: int) -> Tensor:
    """Return int64 bits shifted right, zeros moved in."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)
