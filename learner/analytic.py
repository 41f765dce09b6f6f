"""The analytic memory: sums over labelled samples that cannot forget, and their read-outs.

Counts n_c, sums s_c of features and G = sum of phi phi^T (Hayes & Kanan 2020; ACIL; RanPAC) do not
depend on order, batches or task boundaries. A new class is a new row, two memories merge by
addition, a sample is unlearned by subtraction. Ours: of G the lower triangle only, in panels of
256 rows; samples wait in a queue and are multiplied 256 at a time, in float32, then added in
float64. Blocks are counted from the first sample on, so that neither the cut into batches nor a
reading changes a bit.
Dimension key: B batch, D features, K classes, Q rows in the queue, H held-out samples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor
from torch.nn.functional import pad

from learner.errors import ShapeError
from learner.readout import BLOCK, PANEL, Kind, ReadOut, Sums, product, solve


class _Rows(NamedTuple):
    """Samples in the queue. Ours."""

    phi_QD: Tensor
    y_Q: Tensor
    weight_Q: Tensor


@dataclass(frozen=True, slots=True)
class AnalyticPoint:
    """What brings the memory back to an earlier moment; shares its tensors. Ours."""

    counts_K: Tensor
    sums_KD: Tensor
    faded: float
    queue: tuple[_Rows, ...]


class AnalyticMemory:
    """Counts, sums and second moments of the features of every labelled sample (see the head)."""

    def __init__(self, features: int, *, device: torch.device | None = None) -> None:
        self.features, self.device = features, device or torch.device("cpu")
        self.counts_K = self._zeros(0)
        """Samples per class, float64, those in the queue included; replaced, never changed."""
        self._sums_KD = self._zeros(0, features)
        self._panels = [
            self._zeros(min(PANEL, features - start), min(features, start + PANEL))
            for start in range(0, features, PANEL)
        ]
        self._faded = 1.0  # what sums and panels are still to be multiplied with
        self._queue: tuple[_Rows, ...] = ()
        self._undoable = False

    @property
    def nbytes(self) -> int:
        """Bytes of the whole state, the queue counted full."""
        return memory_bytes(self.features, len(self.counts_K))

    def add(self, phi_BD: Tensor, y_B: Tensor, *, classes: int) -> None:
        """Take in labelled samples.

        Args:
            phi_BD: their features, float32.
            y_B: their classes, int64, 0 to classes - 1.
            classes: classes known by now.

        Raises:
            ShapeError: another number of features; nothing was added.
        """
        self._enqueue(phi_BD, y_B, 1.0, classes)

    def remove(self, phi_BD: Tensor, y_B: Tensor) -> None:
        """Unlearn samples that were added since the last `scale`: as if never seen, to rounding.

        Raises:
            ShapeError: another number of features; nothing was removed.
        """
        self._enqueue(phi_BD, y_B, -1.0, len(self.counts_K))

    def scale(self, factor: float) -> None:
        """Multiply all counts and sums by a forgetting factor, 0 to 1; costs no pass over them."""
        self.counts_K = self.counts_K * factor
        self._faded *= factor
        self._queue = tuple(r._replace(weight_Q=r.weight_Q * factor) for r in self._queue)

    def merge(self, other: Self) -> None:
        """Become the memory of both streams, whose classes are numbered alike; not undoable.

        Raises:
            ShapeError: the other has another number of features.
        """
        if other.features != self.features:
            raise ShapeError(f"expected {self.features} features, got {other.features}")
        self._settle()
        theirs = other._sums()
        classes = max(len(self.counts_K), len(theirs.counts_K))
        self._widen(classes)
        more = classes - len(theirs.counts_K)
        self.counts_K = self.counts_K + pad(theirs.counts_K, (0, more)).to(self.device)
        self._apply_fading()
        self._sums_KD += pad(theirs.sums_KD, (0, 0, 0, more)).to(self.device)
        for panel, block in zip(self._panels, theirs.blocks(), strict=True):
            panel.add_(block.to(self.device))

    def undo_point(self) -> AnalyticPoint:
        """Return what `undo` needs after any `add`, `remove` and `scale`; copies nothing.

        From here to the next point the queue only grows, by what is added.
        """
        self._settle()
        self._undoable = True
        return AnalyticPoint(self.counts_K, self._sums_KD, self._faded, self._queue)

    def undo(self, point: AnalyticPoint) -> None:
        """Put the memory back to the newest `undo_point`, bit for bit."""
        self.counts_K, self._sums_KD = point.counts_K, point.sums_KD
        self._faded, self._queue = point.faded, point.queue
        self._undoable = False

    def read_out(
        self, ridge: float, *, kind: Kind = "lda", without: tuple[Tensor, Tensor] | None = None
    ) -> ReadOut:
        """Return the one read-out of `read_outs` for this ridge."""
        return self.read_outs([ridge], kind=kind, without=without)[0]

    def read_outs(
        self,
        ridges: Sequence[float],
        *,
        kind: Kind = "lda",
        without: tuple[Tensor, Tensor] | None = None,
    ) -> list[ReadOut]:
        """Return the closed-form classifier for each ridge; changes nothing.

        Takes about D^3 / 3 multiplications each, and D^2 float32 of memory for all.

        Args:
            ridges: what is added to the diagonal, in units of its mean, > 0.
            kind: "lda", or "ridge" regression.
            without: features [H, D] and classes [H] of samples that were added and are left out of
                the sums for this once, so that the read-out can be judged on them.

        Raises:
            NonFiniteError: the sums hold NaN or infinity.
        """
        sums = self._sums(*([self._checked(*without, -1.0)] if without else []))
        if not (sums.counts_K > 0).any():
            nothing_K = torch.full((len(sums.counts_K),), -torch.inf, device=self.device)
            weight_DK = nothing_K.new_zeros(self.features, len(nothing_K))
            return [ReadOut(weight_DK, nothing_K, nothing_K) for _ in ridges]
        return solve(sums, ridges, kind)

    def tensors(self) -> dict[str, Tensor]:
        """Return the whole state by name; views, valid until the memory changes.

        Not between an `undo_point` and its `undo`.
        """
        self._settle()
        rows = self._rows()
        panels = {f"panels.{i}": panel for i, panel in enumerate(self._panels)}
        faded = torch.tensor(self._faded, dtype=torch.float64)
        sums = {"counts": self.counts_K, "sums": self._sums_KD, "faded": faded}
        queue = {"queue.phi": rows.phi_QD, "queue.y": rows.y_Q, "queue.weight": rows.weight_Q}
        return sums | queue | panels

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Become the memory of as many features whose `tensors` these are, and own them.

        Continuing is bit-equal to never having stopped.

        Raises:
            KeyError: one is missing.
        """
        own = {name: tensor.to(self.device) for name, tensor in tensors.items()}
        self.counts_K, self._sums_KD, self._faded = own["counts"], own["sums"], own["faded"].item()
        self._panels = [own[f"panels.{i}"] for i in range(len(self._panels))]
        self._queue = (_Rows(own["queue.phi"], own["queue.y"], own["queue.weight"]),)
        self._undoable = False

    def _enqueue(self, phi_BD: Tensor, y_B: Tensor, weight: float, classes: int) -> None:
        rows = self._checked(phi_BD, y_B, weight)
        self._widen(classes)
        self.counts_K = self._counted(rows)
        self._queue = (*self._queue, rows)
        if not self._undoable:
            self._settle()

    def _checked(self, phi_BD: Tensor, y_B: Tensor, weight: float) -> _Rows:
        """Return rows of their own, float32 and on this device."""
        if tuple(phi_BD.shape) != (len(y_B), self.features):
            raise ShapeError(
                f"expected features [{len(y_B)}, {self.features}], got {tuple(phi_BD.shape)}"
            )
        return _Rows(
            phi_BD.detach().to(self.device, torch.float32, copy=True),
            y_B.to(self.device, copy=True),
            torch.full((len(y_B),), weight, device=self.device),
        )

    def _counted(self, rows: _Rows) -> Tensor:
        return self.counts_K + torch.bincount(rows.y_Q, rows.weight_Q.double(), len(self.counts_K))

    def _widen(self, classes: int) -> None:
        more = max(0, classes - len(self.counts_K))
        if more:
            self.counts_K = pad(self.counts_K, (0, more))
            self._sums_KD = pad(self._sums_KD, (0, 0, 0, more))

    def _settle(self) -> None:
        """Fold the complete blocks of the queue into sums and panels.

        When this happens changes no bit (but for a `scale` in between), yet it ends what `undo` can
        reach.
        """
        self._undoable = False
        queued = sum(len(rows.y_Q) for rows in self._queue)
        whole = queued - queued % BLOCK
        if not whole:
            return
        queue = self._rows()
        for start in range(0, whole, BLOCK):
            self._fold(_Rows(*(part[start : start + BLOCK] for part in queue)))
        self._queue = (_Rows(*(part[whole:].clone() for part in queue)),)

    def _fold(self, rows: _Rows) -> None:
        self._apply_fading()
        _add_rows(self._sums_KD, rows)
        for i, panel in enumerate(self._panels):
            panel.add_(product(rows.phi_QD, rows.weight_Q, i * PANEL))

    def _apply_fading(self) -> None:
        if self._faded != 1.0:
            for sums in (self._sums_KD, *self._panels):
                sums.mul_(self._faded)
            self._faded = 1.0

    def _rows(self, *also: _Rows) -> _Rows:
        rows = (self._checked(torch.empty(0, self.features), torch.empty(0).long(), 1.0), *also)
        return _Rows(*(torch.cat(parts) for parts in zip(*self._queue, *rows, strict=True)))

    def _sums(self, *also: _Rows) -> Sums:
        rows, counts_K = self._rows(*also), self.counts_K
        for more in also:
            counts_K = self._counted(more)
        sums_KD = _add_rows(self._sums_KD * self._faded, rows)
        return Sums(counts_K, sums_KD, self._panels, self._faded, rows.phi_QD, rows.weight_Q)

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(*shape, dtype=torch.float64, device=self.device)


def memory_bytes(features: int, classes: int) -> int:
    """Return the bytes of an analytic memory: about 4 D^2 + 2 KiB D + 8 K D."""
    panels = sum(
        min(PANEL, features - start) * min(features, start + PANEL)
        for start in range(0, features, PANEL)
    )
    return 8 * (panels + classes * (features + 1)) + BLOCK * (4 * features + 12)


def _add_rows(sums_KD: Tensor, rows: _Rows) -> Tensor:
    """Add rows to the sums of their classes, in place, and return them."""
    return sums_KD.index_add_(0, rows.y_Q, rows.phi_QD.double() * rows.weight_Q[:, None])
