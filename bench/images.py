"""Arrays of a data set as the learner takes them."""

import torch
from torch import Tensor

from service.engine.protocol import Array
from service.inputs import InputSchema


def as_tensor(x: Array) -> Tensor:
    """Return images [N, H, W] or [N, H, W, C] as a tensor [N, C, H, W], no copy."""
    return torch.from_numpy(InputSchema.of(x).canonical(x)).permute(0, 3, 1, 2)
