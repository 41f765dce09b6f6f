"""Which places of an image a linear read-out of its features has its score from. Ours.

The reference is an image of one even colour, which has no contrast anywhere and so, whatever the
colour, one and the same response of each filter. A score less the reference's is the sum over the
features of weight times (value - reference's); a feature is the square root of the mean of a
filter's responses over a cell, and its share of the sum is divided among the places of the cell in
proportion to how far their responses are from the reference's (the rescale rule of DeepLIFT,
Shrikumar et al. 2017). Nothing is lost: what all places add is the score less the reference's.
Dimension key: R renditions, C channels, H height, W width, G cells, D features.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from learner.responses import pooled, sides
from learner.tokenizer import Tokenizer

CELLS = 5
"""Most cells each way that places are gathered in, to be looked at. In a grid of 8 x 8 the hottest
says nothing: without it MNIST digits lost no more of their score than without the coldest."""


def contributions(patches: Tokenizer, x_1CHW: Tensor, weight_D: Tensor) -> Tensor:
    """Return what each place (a patch's) adds to the score of one image, [H', W'].

    They sum to weight . (features - features of an even image). Where the tokenizer takes an image
    and its mirror image for one, a place counts in both.

    Args:
        patches: makes the features.
        x_1CHW: the image, uint8 or float32.
        weight_D: of the class, for each feature.
    """
    scaled = patches.scaled(x_1CHW)
    renditions = torch.cat([scaled, scaled.flip(3)]) if patches.mirror else scaled
    halves = torch.cat(patches.responses(renditions), 1)
    even = torch.cat(patches.responses(torch.zeros_like(scaled)), 1)
    grid = sides(halves, patches.grid)
    value, reference = (pooled(part, grid).mean(0).sqrt() for part in (halves, even))
    slope = weight_D.view_as(value) / (value + reference).clamp_min(1e-12)
    with torch.enable_grad():
        leaves = halves.detach().requires_grad_()
        (slopes,) = torch.autograd.grad((pooled(leaves, grid).mean(0) * slope).sum(), leaves)
    added_RHW = ((halves - even) * slopes).sum(1)
    if patches.mirror:
        return added_RHW[0] + added_RHW[1].flip(1)
    return added_RHW[0]


def cells(places_HW: Tensor) -> Tensor:
    """Return the mean of the places in each of at most 5 x 5 cells, [rows, columns]."""
    grid = (min(CELLS, places_HW.shape[0]), min(CELLS, places_HW.shape[1]))
    return F.adaptive_avg_pool2d(places_HW[None], grid)[0]
