"""Avalanche 0.6's online methods, each with the network and settings recommended for it.

Settings: ContinualAI/continual-learning-baselines (ER, MIR, ER-ACE, SCR, CoPE, GDumb), the CoPE
authors' scripts for CoPE on colour images, Buzzega et al. 2020 for DER. All of them replay from the
first mini-batch on and know no task. Options that all share: `capacity`, samples in memory, None
for 2,000 or, of colour images, 1,000; `state_bytes`, if positive, fills the memory until the whole
state has this many bytes instead; `learning_rate`, None for the recommended one.
"""

import itertools
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD

from bench.methods import Facts, Method
from bench.peers import library
from bench.peers.feeding import Draws, Spending
from bench.peers.networks import Network, body, classifier, is_colour, prepare
from bench.peers.replayed import (
    LABEL_BYTES,
    FromScratch,
    Replayed,
    StreamingLda,
    WithLogits,
    WithMeans,
    WithPrototypes,
)

PROJECTION = 128
FULL = 400, 400
CAPACITY = 2000
COLOUR_CAPACITY = 1000


def er(
    facts: Facts,
    *,
    capacity: int | None = None,
    state_bytes: int = 0,
    replayed: int = 10,
    learning_rate: float | None = None,
) -> Method:
    """Return experience replay (Chaudhry et al. 2019) from a reservoir."""
    draws, network = _network(facts, FULL)
    size = _capacity(facts, capacity, state_bytes, beside=_bytes(network))
    memory = library.ReservoirSamplingBuffer(size)
    plugin = library.ReplayPlugin(size, batch_size_mem=replayed, storage_policy=memory)
    strategy = library.Naive(**_trained(network, learning_rate or 0.1), plugins=[plugin])
    return Replayed(strategy, memory, draws, Spending(network))


def mir(
    facts: Facts,
    *,
    capacity: int | None = None,
    state_bytes: int = 0,
    replayed: int = 10,
    learning_rate: float | None = None,
    candidates: int = 50,
) -> Method:
    """Return maximally interfered retrieval (Aljundi et al. 2019): replays what a step hurts."""
    draws, network = _network(facts, (400,), dropout=0.5)
    size = _capacity(facts, capacity, state_bytes, beside=_bytes(network))
    plugin = library.MIRPlugin(batch_size_mem=replayed, mem_size=size, subsample=candidates)
    strategy = library.Naive(**_trained(network, learning_rate or 0.05), plugins=[plugin])
    return Replayed(strategy, plugin.storage_policy, draws, Spending(network))


def er_ace(
    facts: Facts,
    *,
    capacity: int | None = None,
    state_bytes: int = 0,
    replayed: int = 10,
    learning_rate: float | None = None,
) -> Method:
    """Return ER with asymmetric cross-entropy (Caccia et al. 2022): arriving classes only."""
    draws, network = _network(facts, FULL)
    size = _capacity(facts, capacity, state_bytes, beside=_bytes(network))
    trained = _trained(network, learning_rate or 0.1)
    strategy = library.ER_ACE(**trained, mem_size=size, batch_size_mem=replayed)
    return Replayed(strategy, strategy.storage_policy, draws, Spending(network))


def der(  # noqa: PLR0913  each is an option of its own
    facts: Facts,
    *,
    capacity: int | None = None,
    state_bytes: int = 0,
    replayed: int = 10,
    learning_rate: float | None = None,
    alpha: float | None = None,
    beta: float = 0.5,
) -> Method:
    """Return DER++ (Buzzega et al. 2020): replay logits, weight alpha, and labels, weight beta.

    `alpha` None: 0.1 for colour images, else 1.
    """
    draws, network = _network(facts, FULL)
    size = _capacity(facts, capacity, state_bytes, beside=_bytes(network), each=4 * facts.classes)
    strategy = library.DER(
        **_trained(network, learning_rate or 0.03),
        mem_size=size,
        batch_size_mem=replayed,
        alpha=(0.1 if is_colour(facts) else 1.0) if alpha is None else alpha,
        beta=beta,
    )
    return WithLogits(strategy, strategy.storage_policy, draws, Spending(network))


def cope(
    facts: Facts,
    *,
    capacity: int | None = None,
    state_bytes: int = 0,
    learning_rate: float | None = None,
) -> Method:
    """Return continual prototype evolution (De Lange & Tuytelaars 2021); replays a batch's size."""
    colour = is_colour(facts)
    width = 256 if colour else 32
    draws = Draws(facts.seed)
    with draws.lent():
        features, wide = body(facts, FULL)
        network = Network(prepare(facts), features, nn.Linear(wide, width))
        beside = _bytes(network) + 4 * facts.classes * width
        size = _capacity(facts, capacity, state_bytes, beside=beside)
        plugin = library.CoPEPlugin(mem_size=size, n_classes=facts.classes, p_size=width)
    rate = learning_rate or (0.005 if colour else 0.01)
    strategy = library.Naive(**_trained(network, rate), plugins=[plugin])
    parts = strategy, plugin.storage_policy, draws, Spending(network)
    return WithPrototypes(*parts, prototypes=plugin.p_mem)


def gdumb(
    facts: Facts,
    *,
    capacity: int | None = None,
    state_bytes: int = 0,
    learning_rate: float | None = None,
    passes: int = 10,
) -> Method:
    """Return GDumb (Prabhu et al. 2020): a balanced memory, a network trained on it when asked."""
    draws, network = _network(facts, FULL)
    size = _capacity(facts, capacity, state_bytes, beside=2 * _bytes(network))
    plugin = library.GDumbPlugin(mem_size=size)
    strategy = library.Naive(
        **_trained(network, learning_rate or 0.1),
        plugins=[plugin],
        train_mb_size=16,
        train_epochs=passes,
    )
    return FromScratch(strategy, plugin.storage_policy, draws, Spending(network))


def scr(
    facts: Facts,
    *,
    capacity: int | None = None,
    state_bytes: int = 0,
    replayed: int = 100,
    learning_rate: float | None = None,
) -> Method:
    """Return supervised contrastive replay (Mai et al. 2021), no review trick; images only."""
    draws = Draws(facts.seed)
    with draws.lent():
        features, width = body(facts, FULL)
        network = library.SCRModel(
            feature_extractor=nn.Sequential(prepare(facts), features),
            projection=nn.Sequential(
                nn.Linear(width, width), nn.ReLU(inplace=True), nn.Linear(width, PROJECTION)
            ),
        )
    means = 4 * facts.classes * width
    size = _capacity(facts, capacity, state_bytes, beside=_bytes(network) + means)
    strategy = library.SCR(
        **_trained(network, learning_rate or 0.1, criterion=False),
        augmentations=_augmentations(facts),
        mem_size=size,
        batch_size_mem=replayed,
        eval_mb_size=64,
    )
    strategy.replay_plugin.batch_size = None  # all of a mini-batch at once, whatever its size
    memory = strategy.replay_plugin.storage_policy
    return WithMeans(strategy, memory, draws, Spending(network.feature_extractor))


def slda(facts: Facts, *, shrinkage: float = 1e-4) -> Method:
    """Return streaming LDA (Hayes & Kanan 2020) on the input itself, without a network."""
    fixed = prepare(facts) if facts.kind == "image" else nn.Identity()
    flat = nn.Sequential(fixed, nn.Flatten())
    width = flat(torch.zeros((1, *facts.shape))).shape[1]
    strategy = library.StreamingLDA(
        slda_model=flat,
        criterion=nn.CrossEntropyLoss(),
        input_size=width,
        num_classes=facts.classes,
        shrinkage_param=shrinkage,
        evaluator=library.no_metrics(),
    )
    return StreamingLda(strategy)


def _network(facts: Facts, hidden: tuple[int, ...], dropout: float = 0.0) -> tuple[Draws, Network]:
    draws = Draws(facts.seed)
    with draws.lent():
        return draws, classifier(facts, hidden, dropout)


def _trained(network: nn.Module, learning_rate: float, *, criterion: bool = True) -> dict[str, Any]:
    """Return what every strategy is given; SGD without momentum, as all the scripts have it."""
    common = {"model": network, "optimizer": SGD(network.parameters(), learning_rate)}
    common |= {"criterion": nn.CrossEntropyLoss()} if criterion else {}
    return {**common, "evaluator": library.no_metrics()}


def _capacity(facts: Facts, capacity: int | None, share: int, *, beside: int, each: int = 0) -> int:
    """Return the samples that the memory may hold.

    Args:
        facts: the stream.
        capacity: samples, None for the preset.
        share: if positive, bytes of the whole state instead; they buy at least ten samples.
        beside: bytes kept besides the memory.
        each: bytes kept with each sample besides input and label.
    """
    if not share:
        preset = COLOUR_CAPACITY if is_colour(facts) else CAPACITY
        return preset if capacity is None else capacity
    value = 1 if facts.kind == "image" else 4
    return max(10, (share - beside) // (math.prod(facts.shape) * value + LABEL_BYTES + each))


def _bytes(network: nn.Module) -> int:
    tensors = itertools.chain(network.parameters(), network.buffers())
    return sum(tensor.nbytes for tensor in tensors)


def _augmentations(facts: Facts) -> Any:  # noqa: ANN401
    """Return SCR's second view: crops for all; mirroring and colours where there are colours."""
    made = library.augmentation
    crop = made.RandomResizedCrop(size=facts.shape[1:], scale=(0.2, 1.0))
    colours = (
        made.RandomHorizontalFlip(),
        made.ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8),
        made.RandomGrayscale(p=0.2),
    )
    views = nn.Sequential(crop, *(colours if is_colour(facts) else ()))

    def view(x: Tensor) -> Tensor:
        seen: Tensor = views(x / 255 if x.dtype == torch.uint8 else x)
        return (seen * 255).round().to(torch.uint8) if x.dtype == torch.uint8 else seen

    return view
