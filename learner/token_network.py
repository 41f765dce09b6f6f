"""The classifier half of an expert of preset `default`: a small ViT on the tokenizer's tokens.

Dosovitskiy et al. 2021 (pre-norm blocks); before each block a depthwise convolution over the token
grid says where a token lies (conditional positions, Chu et al. 2021). The feature is the mean over
tokens. Dynamic knowledge fusion (LEViT, Ye & Bors 2026) adds gated features of frozen experts,
scaled by a number that starts at zero (Bachlechner et al. 2021, ReZero), so that an expert begins
as what it inherits. Ours: both of these choices.
Dimension key: B batch, N tokens, E width of a token, D width, J frozen experts
read from, K classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from learner.config import FusionKind
from learner.expert import Head
from learner.fusion import Fusion
from learner.vit import Block

WIDTH, HEADS, HIDDEN = 128, 4, 256
"""Sizes of a block; HIDDEN is the feed-forward's."""


class PlaceBlock(nn.Module):
    """A depthwise convolution over the token grid, then attention and feed-forward."""

    def __init__(self, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid
        self.place = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH)
        self.block = Block(WIDTH, HEADS, HIDDEN)

    def forward(self, t_BND: Tensor) -> Tensor:
        """Return the tokens one block further, [B, N, D]."""
        y_BND: Tensor = self.block(self.placed(t_BND))
        return y_BND

    def placed(self, t_BND: Tensor) -> Tensor:
        """Return the tokens with what tells where they lie, [B, N, D]."""
        t_BDhw = t_BND.transpose(1, 2).unflatten(2, self.grid)
        placed: Tensor = t_BND + self.place(t_BDhw).flatten(2).transpose(1, 2)
        return placed


class TokenNetwork(nn.Module):
    """One expert's way from tokens to scores of all classes it has been shown."""

    def __init__(
        self,
        token_shape: tuple[int, int],
        grid: tuple[int, int],
        *,
        classes: int,
        fusion: FusionKind,
    ) -> None:
        """Make the modules.

        Args:
            token_shape: (N, E).
            grid: how the N tokens lie, rows and columns.
            classes: columns of the classifier, >= 0.
            fusion: how features of frozen experts enter; `none` where there are none.
        """
        super().__init__()
        self.embed = nn.Linear(token_shape[1], WIDTH)
        self.blocks = nn.ModuleList([PlaceBlock(grid), PlaceBlock(grid)])
        self.norm = nn.LayerNorm(WIDTH)
        self.fusion = Fusion(fusion, WIDTH)
        self.fusion_scale = nn.Parameter(torch.zeros(())) if fusion != "none" else None
        self.head = Head(WIDTH, classes)

    def features(self, tokens_BNE: Tensor) -> Tensor:
        """Return the feature A_k(T) of each sample, [B, D]."""
        t_BND: Tensor = self.embed(tokens_BNE)
        for block in self.blocks:
            t_BND = block(t_BND)
        feature_BD: Tensor = self.norm(t_BND).mean(1)
        return feature_BD

    def attention(self, tokens_BNE: Tensor) -> list[Tensor]:
        """Return of each block how much its tokens read from each other, [B, N, N]."""
        t_BND: Tensor = self.embed(tokens_BNE)
        weights = []
        for block in (part for part in self.blocks if isinstance(part, PlaceBlock)):
            weights.append(block.block.attention.weights(block.placed(t_BND)))
            t_BND = block(t_BND)
        return weights

    def scores(self, own_BD: Tensor, frozen_BJD: Tensor | None) -> Tensor:
        """Return a logit for each class this expert was shown, [B, K]."""
        if self.fusion_scale is not None and frozen_BJD is not None:
            fused_BD: Tensor = self.fusion(own_BD, frozen_BJD)
            own_BD = own_BD + self.fusion_scale * (fused_BD - own_BD)
        logits_BK: Tensor = self.head(own_BD)
        return logits_BK


def er_ace(logits_BK: Tensor, y_B: Tensor, arriving: int, seen_K: Tensor) -> Tensor:
    """Return the asymmetric cross-entropy of ER-ACE (Caccia et al. 2022, eq. 5), mean over samples.

    The first `arriving` samples compete among the classes present in them, replayed ones among all
    classes seen, so that what arrives does not push old classes away.

    Args:
        logits_BK: of arriving samples first, then of replayed ones.
        y_B: their classes.
        arriving: how many came with this mini-batch, 0 to B.
        seen_K: bool, classes with a label so far.
    """
    present_K = torch.zeros_like(seen_K)
    present_K[y_B[:arriving]] = True
    allowed_BK = torch.where(
        (torch.arange(len(y_B), device=y_B.device) < arriving)[:, None], present_K, seen_K
    )
    return F.cross_entropy(logits_BK.masked_fill(~allowed_BK, -1e9), y_B)
