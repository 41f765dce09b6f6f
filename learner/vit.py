"""Vision Transformer parts: the shared backbone and the attention module of one expert.

Follows Dosovitskiy et al. 2021 (pre-norm blocks, GELU); the split into a shared backbone (patch
embedding and first block) and one attention module per expert is LEViT's (Ye & Bors 2026). The
dense twins stand in for both where attention makes no sense (vectors) or is ablated (LEViT-DNN).
Dimension key: B batch, C channels, H height, W width, P patch side, N tokens, A heads, D width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from learner.config import NetworkConfig


class Attention(nn.Module):
    """Pre-norm multi-head self-attention, without the residual (Vaswani et al. 2017)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, t_BND: Tensor) -> Tensor:
        """Return what each token reads from all tokens of its own image, [B, N, D]."""
        B, N, D = t_BND.shape
        q_BANd, k_BANd, v_BANd = self._projected(t_BND)
        y_BANd = F.scaled_dot_product_attention(q_BANd, k_BANd, v_BANd)
        y_BND: Tensor = self.out(y_BANd.transpose(1, 2).reshape(B, N, D))
        return y_BND

    def weights(self, t_BND: Tensor) -> Tensor:
        """Return how much each token (row) reads from each (column), mean over heads, [B, N, N]."""
        q_BANd, k_BANd, _ = self._projected(t_BND)
        weights_BANN: Tensor = (q_BANd @ k_BANd.mT / q_BANd.shape[3] ** 0.5).softmax(3)
        return weights_BANN.mean(1)

    def _projected(self, t_BND: Tensor) -> tuple[Tensor, ...]:
        B, N, D = t_BND.shape
        qkv_BNAd: Tensor = self.qkv(self.norm(t_BND)).view(B, N, 3, self.heads, D // self.heads)
        return qkv_BNAd.permute(2, 0, 3, 1, 4).unbind(0)


class Block(nn.Module):
    """Attention and feed-forward, each with its residual (Dosovitskiy et al. 2021, eq. 2-3)."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.attention = Attention(width, heads)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width)
        )

    def forward(self, t_BND: Tensor) -> Tensor:
        """Return the tokens one block further, [B, N, D]."""
        t_BND = t_BND + self.attention(t_BND)
        y_BND: Tensor = t_BND + self.feed_forward(t_BND)
        return y_BND


class PatchBackbone(nn.Module):
    """Shared patch embedding, position embedding and first block: images to tokens (LEViT)."""

    def __init__(self, input_shape: tuple[int, ...], config: NetworkConfig) -> None:
        super().__init__()
        C, H, W = input_shape
        P = config.patch
        self.padding = (0, -W % P, 0, -H % P)  # right and bottom, where P does not divide
        self.grid = (-(-H // P), -(-W // P))
        tokens = self.grid[0] * self.grid[1]
        self.embedding = nn.Conv2d(C, config.width, kernel_size=P, stride=P)
        self.position_ND = nn.Parameter(torch.empty(tokens, config.width))
        self.block = Block(config.width, config.heads, config.width)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return the tokens of each image, [B, N, D]."""
        y_BND: Tensor = self.block(self.embedded(x_BCHW))
        return y_BND

    def embedded(self, x_BCHW: Tensor) -> Tensor:
        """Return the patches of each image as tokens, before the block, [B, N, D]."""
        t_BDhw: Tensor = self.embedding(F.pad(x_BCHW, self.padding))
        t_BND: Tensor = t_BDhw.flatten(2).transpose(1, 2) + self.position_ND
        return t_BND


class DenseBackbone(nn.Module):
    """The shared layer of the fully connected kind: one token a sample (LEViT-DNN; sizes ours)."""

    def __init__(self, input_shape: tuple[int, ...], config: NetworkConfig) -> None:
        super().__init__()
        values = int(torch.Size(input_shape).numel())
        self.layer = nn.Linear(values, config.width)

    def forward(self, x: Tensor) -> Tensor:
        """Return one token per sample, [B, 1, D]."""
        t_BD: Tensor = F.gelu(self.layer(x.flatten(1)))
        return t_BD[:, None]


class AttentionModule(nn.Module):
    """A_k: one expert's self-attention over the shared tokens, pooled to a feature (LEViT)."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.attention = Attention(config.width, config.heads)
        self.norm = nn.LayerNorm(config.width)

    def forward(self, t_BND: Tensor) -> Tensor:
        """Return the feature of each sample, the mean over its tokens, [B, D]."""
        feature_BD: Tensor = self.norm(t_BND + self.attention(t_BND)).mean(1)
        return feature_BD


class DenseModule(nn.Module):
    """A_k of the fully connected kind: one residual layer over the single token (LEViT-DNN)."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.layer = nn.Linear(config.width, config.width)
        self.norm = nn.LayerNorm(config.width)

    def forward(self, t_BND: Tensor) -> Tensor:
        """Return the feature of each sample, [B, D]."""
        t_BD = t_BND.squeeze(1)
        feature_BD: Tensor = self.norm(t_BD + F.gelu(self.layer(t_BD)))
        return feature_BD


def backbone(input_shape: tuple[int, ...], config: NetworkConfig) -> PatchBackbone | DenseBackbone:
    """Return the shared backbone of this kind, not yet initialised."""
    kind = PatchBackbone if config.kind == "vit" else DenseBackbone
    return kind(input_shape, config)


def feature_module(config: NetworkConfig) -> AttentionModule | DenseModule:
    """Return one expert's own module A_k of this kind, not yet initialised."""
    return AttentionModule(config) if config.kind == "vit" else DenseModule(config)
