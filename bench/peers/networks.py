"""The networks that the peers' own scripts recommend, for any stream of the benchmark.

Grey images, vectors and series: a multilayer perceptron. Colour images: the slim ResNet-18 of
Lopez-Paz & Ranzato 2017, as Avalanche has it, on 32 x 32 pixels. Replay keeps samples as they
arrived (uint8 images), so a network prepares its input itself.
Dimension key: B batch, C channels, H height, W width, D input or feature width, K classes.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from bench.methods import Facts
from bench.peers.library import SlimResNet18

COLOURS = 3
SLIM_SIDE = 32, 32
SLIM_FEATURES = 160


class Pixels(nn.Module):
    """Images as Avalanche's own benchmarks hand them over: standardised by known moments."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        grey = channels == 1
        mean = [0.1307] if grey else [0.4914, 0.4822, 0.4465]
        deviation = [0.3081] if grey else [0.2023, 0.1994, 0.2010]
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("deviation", torch.tensor(deviation).view(-1, 1, 1))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return float32 [B, C, H, W]; colour is resized to 32 x 32, what the ResNet takes."""
        x_BCHW = x_BCHW / 255 if x_BCHW.dtype == torch.uint8 else x_BCHW
        x_BCHW = (x_BCHW - self.mean) / self.deviation
        if x_BCHW.shape[1] == COLOURS and x_BCHW.shape[2:] != SLIM_SIDE:
            return functional.interpolate(x_BCHW, SLIM_SIDE, mode="bilinear")
        return x_BCHW


class Standardised(nn.Module):
    """Vectors and series by the mean and deviation of what was trained on so far."""

    count: Tensor
    mean: Tensor
    squares: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("squares", torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, D]; in training mode count x first (Chan et al. 1979, pairwise update)."""
        x_BD = x.flatten(1)
        if self.training:
            added = len(x_BD)
            total = self.count + added
            step_D = x_BD.mean(0) - self.mean
            within_D = (x_BD - x_BD.mean(0)).square().sum(0)
            self.squares += within_D + step_D.square() * self.count * added / total
            self.mean += step_D * added / total
            self.count.copy_(total)
        deviation_D = (self.squares / self.count.clamp(min=1)).sqrt()
        return (x_BD - self.mean) / deviation_D.clamp(min=1e-6)


class Network(nn.Module):
    """Input, features, head; the head stands at the top because CoPE replaces it by name."""

    def __init__(self, prepare: nn.Module, body: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.prepare = prepare
        self.body = body
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        """Return the head's answer, [B, K] for a classifier."""
        answer: Tensor = self.head(self.body(self.prepare(x)))
        return answer


def is_colour(facts: Facts) -> bool:
    """Say whether the samples are images of three channels."""
    return facts.kind == "image" and facts.shape[0] == COLOURS


def prepare(facts: Facts) -> nn.Module:
    """Return what turns arriving samples into a network's input."""
    return Pixels(facts.shape[0]) if facts.kind == "image" else Standardised(math.prod(facts.shape))


def body(facts: Facts, hidden: tuple[int, ...], dropout: float = 0.0) -> tuple[nn.Module, int]:
    """Return the features' network and their width: slim ResNet-18 for colour, else an MLP.

    Args:
        facts: the stream.
        hidden: widths of the MLP's layers; unused for colour.
        dropout: after each layer of the MLP, 0 to 1.
    """
    if is_colour(facts):
        slim: nn.Module = SlimResNet18(facts.classes)
        slim.linear = nn.Identity()
        return slim, SLIM_FEATURES
    layers: list[nn.Module] = [nn.Flatten()]
    width = math.prod(facts.shape)
    for wide in hidden:
        layers += [nn.Linear(width, wide), nn.ReLU()]
        layers += [nn.Dropout(dropout)] if dropout else []  # noqa: TID251  the peer's own network
        width = wide
    return nn.Sequential(*layers), width


def classifier(facts: Facts, hidden: tuple[int, ...], dropout: float = 0.0) -> Network:
    """Return a network with one output per class."""
    features, width = body(facts, hidden, dropout)
    return Network(prepare(facts), features, nn.Linear(width, facts.classes))
