"""Dynamic knowledge fusion: features of frozen experts joined to the active one's (LEViT).

    f_k(x) = A_k(T) + sum over j < k of g_kj A_j(T)

The public text leaves the gate's form open. Ours is attention over the frozen features,
g_k(x) = softmax over j of <q_k, A_j(T)> / sqrt(D), with one learned query q_k per expert that
starts at zero, so that `gated` starts as `fixed` and its size does not grow with the mixture.
Dimension key: B batch, J frozen experts before this one, D width.
"""

import torch
from torch import Tensor, nn

from learner.config import FusionKind


class Fusion(nn.Module):
    """How one expert uses what earlier experts see (LEViT's DKF and its ablations)."""

    def __init__(self, kind: FusionKind, width: int) -> None:
        super().__init__()
        self.kind = kind
        self.query_D = nn.Parameter(torch.empty(width)) if kind == "gated" else None

    def gate(self, frozen_BJD: Tensor) -> Tensor:
        """Return the weight of each frozen expert for each sample, [B, J], rows summing to 1."""
        B, J, D = frozen_BJD.shape
        if self.query_D is None:
            return frozen_BJD.new_full((B, J), 1.0 / J)
        gate_BJ: Tensor = (frozen_BJD @ self.query_D / D**0.5).softmax(1)
        return gate_BJ

    def forward(self, own_BD: Tensor, frozen_BJD: Tensor) -> Tensor:
        """Return the fused feature, [B, D]; the expert's own where nothing is frozen before it."""
        if self.kind == "none" or frozen_BJD.shape[1] == 0:
            return own_BD
        return own_BD + (self.gate(frozen_BJD)[:, None] @ frozen_BJD).squeeze(1)
