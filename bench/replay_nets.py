"""Experience replay and fine-tuning as others run them: plain networks, SGD, a reservoir.

Grey images, vectors and series: a network of two layers of 400 units. Colour images: the slim
ResNet-18 with 20 filters of Lopez-Paz & Ranzato 2017 (1706.08840). The settings are those of the
published comparisons (De Lange & Tuytelaars 2021, 2009.00919): SGD, rate 0.05, one step a batch on
it and as many replayed samples. `finetune` is the same without memory.
Dimension key: B batch, C channels, H height, W width, V values, M memory members, R replayed.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from bench.methods import Cost, Facts, Shape

HIDDEN, FILTERS = 400, 20
COLOUR_CAPACITY, GREY_CAPACITY = 1000, 2000


class Reservoir:
    """A uniform sample of all that came (Vitter 1985)."""

    def __init__(self, capacity: int, generator: torch.Generator) -> None:
        """Make an empty one."""
        self._capacity, self._generator = capacity, generator
        self.x = torch.empty(0)
        self.y_M = torch.empty(0, dtype=torch.int64)
        self._seen = 0

    def __len__(self) -> int:
        """Return how many samples it holds."""
        return min(self._seen, self._capacity)

    @property
    def nbytes(self) -> int:
        """Bytes of its room, full or not."""
        return self.x.nbytes + self.y_M.nbytes

    def add(self, x: Tensor, y_B: Tensor) -> None:
        """Take in each sample with the chance that keeps the memory uniform."""
        if not self.y_M.numel():
            self.x = x.new_empty(self._capacity, *x.shape[1:])
            self.y_M = y_B.new_empty(self._capacity)
        for sample, label in zip(x, y_B, strict=True):
            self._seen += 1
            at = self._seen - 1
            if at >= self._capacity:
                at = int(torch.randint(self._seen, (), generator=self._generator))
            if at < self._capacity:
                self.x[at], self.y_M[at] = sample, label

    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        """Return at most `count` different members at random."""
        chosen = torch.randperm(len(self), generator=self._generator)[:count]
        return self.x[chosen], self.y_M[chosen]


class ReplayNet:
    """One network, SGD on what arrives and on what is replayed."""

    def __init__(
        self, facts: Facts, *, capacity: int, replayed: int, learning_rate: float, steps: int
    ) -> None:
        """Make one with fresh weights and an empty memory."""
        generator = torch.Generator().manual_seed(facts.seed)
        self._network = network(facts.shape, facts.classes)
        initialise(self._network, generator)
        self._network.eval()
        self._optimiser = torch.optim.SGD(self._network.parameters(), lr=learning_rate)
        self._memory = Reservoir(capacity, generator)
        self._replayed, self._steps = replayed, steps
        self._trained = 0
        self._learned = False

    def observe(self, x: Tensor, y: Tensor) -> None:
        """Step on the labelled samples and the replayed ones, then remember."""
        x, y_B = x[y >= 0], y[y >= 0]
        self._network.train()
        for _ in range(self._steps if len(y_B) else 0):
            x_old, y_R = self._memory.draw(self._replayed)
            both = torch.cat([x, x_old]) if len(y_R) else x
            said_BK: Tensor = self._network(_values(both))
            loss = functional.cross_entropy(said_BK, torch.cat([y_B, y_R]))
            self._optimiser.zero_grad()
            loss.backward()
            self._optimiser.step()
            self._trained += len(both)
        self._network.eval()
        self._memory.add(x, y_B)
        self._learned |= bool(len(y_B))

    @torch.no_grad()
    def predict(self, x: Tensor) -> Tensor:
        """Return the class of the largest output; -1 before the first label."""
        if not self._learned:
            return torch.full((len(x),), -1)
        said_BK: Tensor = self._network(_values(x))
        return said_BK.argmax(1)

    def cost(self) -> Cost:
        """Return the bytes of network and memory; three sample-gradients per trained sample."""
        weights = [*self._network.parameters(), *self._network.buffers()]
        return Cost(
            state_bytes=sum(tensor.nbytes for tensor in weights) + self._memory.nbytes,
            parameters=sum(p.numel() for p in self._network.parameters()),
            sample_gradients=3.0 * self._trained,
        )


class Block(nn.Module):
    """Two 3 x 3 convolutions with batch normalisation, and a way around them (He et al. 2016)."""

    def __init__(self, before: int, filters: int, stride: int) -> None:
        super().__init__()
        self.first = _convolution(before, filters, 3, stride)
        self.first_norm = nn.BatchNorm2d(filters)
        self.second = _convolution(filters, filters, 3, 1)
        self.second_norm = nn.BatchNorm2d(filters)
        same = before == filters and stride == 1
        around = (_convolution(before, filters, 1, stride), nn.BatchNorm2d(filters))
        self.around = nn.Sequential(*(() if same else around))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return [B, filters, H / stride, W / stride]."""
        inner = functional.relu(self.first_norm(self.first(x_BCHW)))
        return functional.relu(self.second_norm(self.second(inner)) + self.around(x_BCHW))


def network(shape: Shape, classes: int) -> nn.Module:
    """Return a network for samples of `shape`; its weights are not drawn yet."""
    if len(shape) == 3 and shape[0] == 3:  # noqa: PLR2004  colour images [3, H, W]
        widths = [FILTERS, FILTERS, 2 * FILTERS, 4 * FILTERS, 8 * FILTERS]
        blocks: list[nn.Module] = []
        for stage, (before, filters) in enumerate(pairwise(widths)):
            blocks += [Block(before, filters, 1 + (stage > 0)), Block(filters, filters, 1)]
        stem = (_convolution(3, FILTERS, 3, 1), nn.BatchNorm2d(FILTERS), nn.ReLU())
        pool = (nn.AdaptiveAvgPool2d(1), nn.Flatten())
        return nn.Sequential(*stem, *blocks, *pool, _linear(widths[-1], classes))
    hidden = (nn.Flatten(), _linear(math.prod(shape), HIDDEN), nn.ReLU())
    return nn.Sequential(*hidden, _linear(HIDDEN, HIDDEN), nn.ReLU(), _linear(HIDDEN, classes))


def initialise(net: nn.Module, generator: torch.Generator) -> None:
    """Draw the weights as torch does by default, but from `generator`."""
    for module in net.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            nn.init.kaiming_uniform_(module.weight, a=math.sqrt(5), generator=generator)
            if module.bias is not None:
                bound = 1 / math.sqrt(module.weight[0].numel())
                nn.init.uniform_(module.bias, -bound, bound, generator=generator)


def er(
    facts: Facts,
    *,
    capacity: int | None = None,
    replayed: int = 10,
    learning_rate: float = 0.05,
    steps: int = 1,
) -> ReplayNet:
    """Return experience replay; `capacity` None: 2,000 samples, colour images 1,000."""
    colour = len(facts.shape) == 3 and facts.shape[0] == 3  # noqa: PLR2004
    preset = COLOUR_CAPACITY if colour else GREY_CAPACITY
    return ReplayNet(
        facts,
        capacity=preset if capacity is None else capacity,
        replayed=replayed,
        learning_rate=learning_rate,
        steps=steps,
    )


def finetune(facts: Facts, *, learning_rate: float = 0.05) -> ReplayNet:
    """Return the same network without a memory."""
    return ReplayNet(facts, capacity=0, replayed=0, learning_rate=learning_rate, steps=1)


def _convolution(before: int, filters: int, side: int, stride: int) -> nn.Conv2d:
    found: nn.Conv2d = nn.utils.skip_init(
        nn.Conv2d, before, filters, side, stride=stride, padding=side // 2, bias=False
    )
    return found


def _linear(before: int, after: int) -> nn.Linear:
    found: nn.Linear = nn.utils.skip_init(nn.Linear, before, after)
    return found


def _values(x: Tensor) -> Tensor:
    """Return samples as float32; bytes become 0 to 1."""
    return x.float() / 255 if x.dtype == torch.uint8 else x
