"""Baselines without a gradient: sums from which a read-out is solved, and two that only count.

`ncm`, nearest class mean. `slda`, streaming linear discriminant analysis (Hayes & Kanan 2020,
1909.01520): class means and one shared covariance, here as exact sums over all that came, with
inputs standardised when it is solved. `randumb` (Prabhu et al. 2024, 2402.08823): the same on
random Fourier features (Rahimi & Recht 2007). None keeps a sample, none depends on the order.
`previous_label` and `majority` are what a time-ordered stream must beat.
Dimension key: B batch, D features, K classes, V values of one sample.
"""

import math
from typing import Protocol

import torch
from torch import Tensor

from bench.methods import Cost, Facts

BLOCK = 200
"""Samples that are added to the sums at once."""
GROWTH = 1.02
"""The read-out is solved anew when its samples have grown by this factor."""
SMALLEST_DEVIATION = 1e-3
"""Of the largest: values that hardly vary are not blown up."""


class Features(Protocol):
    """A fixed map from samples to features."""

    @property
    def width(self) -> int:
        """Features of one sample."""
        ...

    @property
    def weights(self) -> tuple[Tensor, ...]:
        """What it keeps."""
        ...

    def __call__(self, x_BV: Tensor) -> Tensor:
        """Return float32 [B, D]."""
        ...


class Raw:
    """The values themselves."""

    weights: tuple[Tensor, ...] = ()

    def __init__(self, first_BV: Tensor) -> None:
        """Take the first samples, of which only the width matters."""
        self.width = first_BV.shape[1]

    def __call__(self, x_BV: Tensor) -> Tensor:
        """Return the samples."""
        return x_BV


class Fourier:
    """Random Fourier features of a Gaussian kernel; standardised by the first samples."""

    def __init__(self, first_BV: Tensor, width: int, scale: float, facts: Facts) -> None:
        """Draw `width` waves; the kernel is exp(-scale / 2 |x - x'|^2 / (V var(x)))."""
        self.width = width
        generator = torch.Generator().manual_seed(facts.seed)
        self.mean_V = first_BV.mean(0)
        if facts.kind == "image":  # all pixels have one scale; single ones may be black so far
            self.deviation_V = torch.full_like(self.mean_V, first_BV.std().item())
        else:
            self.deviation_V = _deviation(first_BV.var(0))
        values = first_BV.shape[1]
        self.wave_VD = torch.randn(values, width, generator=generator) * math.sqrt(scale / values)
        self.phase_D = torch.rand(width, generator=generator) * (2 * math.pi)

    @property
    def weights(self) -> tuple[Tensor, ...]:
        """Waves, phases and the standardisation."""
        return self.mean_V, self.deviation_V, self.wave_VD, self.phase_D

    def __call__(self, x_BV: Tensor) -> Tensor:
        """Return the waves' values at the samples."""
        standard_BV = (x_BV - self.mean_V) / self.deviation_V
        return (standard_BV @ self.wave_VD + self.phase_D).cos() * math.sqrt(2 / self.width)


class ClosedForm:
    """Exact sums per class and one shared second moment, solved by count."""

    def __init__(
        self, facts: Facts, *, shrinkage: float | None, waves: int | None = None, scale: float = 1.0
    ) -> None:
        """Make an empty one.

        Args:
            facts: of the stream.
            shrinkage: share of the identity in the covariance; None: nearest mean, no covariance.
            waves: random Fourier features; None: the raw values.
            scale: of the kernel of the waves, relative to 1 / (values x variance).
        """
        self._facts, self._shrinkage, self._waves, self._scale = facts, shrinkage, waves, scale
        self._held: list[tuple[Tensor, Tensor]] = []
        self._features: Features | None = None
        self._count_K = torch.zeros(facts.classes, dtype=torch.float64)
        self._sum_KD = torch.empty(0)
        self._moment_DD = torch.empty(0)
        self._read_out: tuple[Tensor, Tensor] | None = None
        self._solved_K = self._count_K.clone()
        self._samples = 0

    def observe(self, x: Tensor, y: Tensor) -> None:
        """Add the labelled samples to the sums, a block at a time; solve if that is due."""
        labelled = y >= 0
        self._samples += int(labelled.sum())
        self._held.append((_values(x[labelled]), y[labelled]))
        held = sum(len(y) for _, y in self._held)
        if held >= BLOCK or (held and self._features is None and self._waves is None):
            self._add_held()  # waves are fitted to a whole block
        if self._out_of_date():
            self._solve()

    def predict(self, x: Tensor) -> Tensor:
        """Return the class of the highest score; before the first block the most frequent one."""
        if self._features is None or self._read_out is None:
            held = torch.cat([y for _, y in self._held]) if self._held else torch.empty(0).long()
            return torch.full((len(x),), int(held.bincount().argmax()) if len(held) else -1)
        weight_DK, bias_K = self._read_out
        return (self._features(_values(x)).double() @ weight_DK + bias_K).argmax(1)

    def cost(self) -> Cost:
        """Return the bytes of sums, read-out, features and held samples."""
        kept = [self._count_K, self._sum_KD, self._moment_DD, *(self._read_out or ())]
        weights = self._features.weights if self._features else ()
        held = [tensor for pair in self._held for tensor in pair]
        return Cost(
            state_bytes=sum(tensor.nbytes for tensor in (*kept, *weights, *held)),
            parameters=sum(tensor.numel() for tensor in (*(self._read_out or ()), *weights)),
            sample_gradients=float(self._samples),
        )

    def _add_held(self) -> None:
        x_BV, y_B = (torch.cat(parts) for parts in zip(*self._held, strict=True))
        self._held.clear()
        if self._features is None:
            self._begin(x_BV)
        assert self._features is not None  # noqa: S101  begun just now
        features_BD = self._features(x_BV).double()  # float32 sums lose small variances
        self._count_K += y_B.bincount(minlength=len(self._count_K))
        self._sum_KD.index_add_(0, y_B, features_BD)
        if self._shrinkage is not None:
            self._moment_DD += features_BD.T @ features_BD

    def _begin(self, first_BV: Tensor) -> None:
        if self._waves is None:
            self._features = Raw(first_BV)
        else:
            self._features = Fourier(first_BV, self._waves, self._scale, self._facts)
        width = self._features.width
        self._sum_KD = torch.zeros(self._facts.classes, width, dtype=torch.float64)
        square = 0 if self._shrinkage is None else width
        self._moment_DD = torch.zeros(square, square, dtype=torch.float64)

    def _out_of_date(self) -> bool:
        """Say whether samples grew by 2 %, or those of a class doubled, since it was solved."""
        if self._features is None:
            return False
        count_K = self._count_K.clone()
        for _, y_B in self._held:
            count_K += y_B.bincount(minlength=len(count_K))
        grown = count_K.sum() > GROWTH * self._solved_K.sum()
        return bool(grown or (count_K > 2 * self._solved_K).any())

    def _solve(self) -> None:
        if self._held:
            self._add_held()
        n = self._count_K.sum()
        mean_KD = self._sum_KD / self._count_K.clamp(min=1)[:, None]
        if self._shrinkage is None:
            weight_KD = mean_KD
        else:
            within_DD = (self._moment_DD - mean_KD.T @ self._sum_KD) / n
            mean_D = self._sum_KD.sum(0) / n
            scale_D = 1 / _deviation(self._moment_DD.diagonal() / n - mean_D**2)
            standard_DD = within_DD * scale_D * scale_D[:, None] * (1 - self._shrinkage)
            standard_DD.diagonal().add_(self._shrinkage)
            factor_DD = torch.linalg.cholesky(standard_DD)
            weight_KD = torch.cholesky_solve((mean_KD * scale_D).T, factor_DD).T * scale_D
        bias_K = -0.5 * (weight_KD * mean_KD).sum(1)
        bias_K[self._count_K == 0] = -torch.inf
        self._read_out = (weight_KD.T.contiguous(), bias_K)
        self._solved_K = self._count_K.clone()


class Counting:
    """Answers with one label for all: the last one, or the most frequent so far."""

    def __init__(self, facts: Facts, *, last: bool) -> None:
        """Make one that knows no label yet."""
        self._last = last
        self._count_K = torch.zeros(facts.classes, dtype=torch.int64)
        self._label = -1

    def observe(self, x: Tensor, y: Tensor) -> None:  # noqa: ARG002  it looks at labels only
        """Count the labels."""
        labels = y[y >= 0]
        if len(labels):
            self._count_K += labels.bincount(minlength=len(self._count_K))
            self._label = int(labels[-1] if self._last else self._count_K.argmax())

    def predict(self, x: Tensor) -> Tensor:
        """Return the label."""
        return torch.full((len(x),), self._label)

    def cost(self) -> Cost:
        """Return the bytes of the counts."""
        return Cost(state_bytes=self._count_K.nbytes, parameters=0, sample_gradients=0.0)


def ncm(facts: Facts) -> ClosedForm:
    """Return a nearest class mean on raw values."""
    return ClosedForm(facts, shrinkage=None)


def slda(facts: Facts, *, shrinkage: float = 1e-4) -> ClosedForm:
    """Return streaming linear discriminant analysis on standardised values."""
    return ClosedForm(facts, shrinkage=shrinkage)


def randumb(
    facts: Facts, *, features: int = 2000, scale: float = 1.0, shrinkage: float = 1e-4
) -> ClosedForm:
    """Return linear discriminant analysis on `features` random Fourier features."""
    return ClosedForm(facts, shrinkage=shrinkage, waves=features, scale=scale)


def previous_label(facts: Facts) -> Counting:
    """Return what always repeats the last label it was told."""
    return Counting(facts, last=True)


def majority(facts: Facts) -> Counting:
    """Return what always says the most frequent label so far."""
    return Counting(facts, last=False)


def _values(x: Tensor) -> Tensor:
    """Return samples as float32 [B, V]; bytes become 0 to 1."""
    flat_BV = x.flatten(1)
    return flat_BV.float() / 255 if x.dtype == torch.uint8 else flat_BV


def _deviation(variance_V: Tensor) -> Tensor:
    """Return standard deviations of which none is below a thousandth of the largest."""
    deviation_V = variance_V.clamp(min=0).sqrt()
    return deviation_V.clamp(min=deviation_V.max().item() * SMALLEST_DEVIATION or 1.0)
