"""Tiny learners and seeded streams for the tests of the learner."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from learner import LearnerConfig, LEViT, dump, paper

torch.set_num_threads(1)  # two test processes share two cores, and bits depend on the count

CONFIGS: dict[str, LearnerConfig] = {
    "vit-gated": paper((1, 8, 8), capacity=25, per_batch=22, learning_rate=3e-3),
    "vit-fixed": paper((1, 8, 8), capacity=25, per_batch=22, learning_rate=3e-3, fusion="fixed"),
    "vit-none": paper((1, 8, 8), capacity=25, per_batch=22, learning_rate=3e-3, fusion="none"),
    "dnn-gated": paper((1, 8, 8), capacity=25, per_batch=22, learning_rate=3e-3, kind="dnn"),
    "vit-several-steps": paper((1, 8, 8), capacity=25, per_batch=150, learning_rate=3e-3),
    "vit-full-window": paper((1, 8, 8), capacity=25, per_batch=22, threshold=1e3),
    "vit-no-replay": paper((1, 8, 8), capacity=25, per_batch=0),
    "colour": paper((3, 8, 8), capacity=25, per_batch=22, learning_rate=3e-3),
    "padded": paper((1, 13, 11), capacity=25, per_batch=22, learning_rate=3e-3),
    "vectors": paper((6,), capacity=25, per_batch=22, learning_rate=3e-3),
}
"""Every configuration that obeys the laws, small enough to learn a stream in a second."""

PHASES, PER_PHASE, BATCH = 3, 50, 10
CLASSES = 2 * PHASES


@dataclass(frozen=True)
class MiniBatch:
    """What one `observe` gets; labels as the stream spells them."""

    x: Tensor
    labels: Tensor | list[str] | None


@dataclass
class Shift:
    """Samples of a class are a fixed pattern plus noise, so classes are easy to tell apart."""

    shape: tuple[int, ...]
    seed: int = 0
    generator: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.seed)
        self.patterns = torch.rand(CLASSES, *self.shape, generator=self.generator)

    def draw(self, y_B: Tensor) -> Tensor:
        """Return one sample of each class listed: uint8 images or float32 vectors."""
        noise = torch.rand(len(y_B), *self.shape, generator=self.generator)
        x = 0.8 * self.patterns[y_B] + 0.2 * noise
        return x * 10 if len(self.shape) < 3 else (x * 255).round().to(torch.uint8)

    def of(self, k: int, n: int) -> Tensor:
        """Return n samples of class k."""
        return self.draw(torch.full((n,), k))


def phases(config: LearnerConfig, *, seed: int = 0) -> Iterator[MiniBatch]:
    """Yield mini-batches of two classes at a time, then of two others.

    Every fifth has no labels, every fourth has half of them.
    """
    source = Shift(config.input_shape, seed)
    for number in range(PHASES * PER_PHASE // BATCH):
        k = 2 * (number * BATCH // PER_PHASE)
        y_B = torch.randint(k, k + 2, (BATCH,), generator=source.generator)
        x = source.draw(y_B)
        if number % 4 == 3:
            y_B[::2] = -1
        yield MiniBatch(x, None if number % 5 == 4 else y_B)


def learned(config: LearnerConfig, *, steps: int | None = None, seed: int = 0) -> LEViT:
    """Return a learner that has observed the first `steps` mini-batches of `phases`."""
    levit = LEViT(config)
    for number, batch in enumerate(phases(config, seed=seed)):
        if steps is not None and number >= steps:
            break
        levit.observe(batch.x, batch.labels)
    return levit


def digest(levit: LEViT) -> str:
    """Return the SHA-256 of the whole state: every byte of every tensor, every plain value."""
    state = dump(levit)
    sha = hashlib.sha256(repr(dict(state.values)).encode())
    for name in sorted(state.tensors):
        tensor = state.tensors[name].detach().cpu().contiguous()
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()
