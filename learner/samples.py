"""What may come in: samples of the declared shape and range, labels of an open set. Ours.

Dimension key: B batch, L labelled samples of it, C channels, H height, W width, D vector width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from learner.errors import ShapeError

Label = int | str
Labels = Tensor | Sequence[str]
UNLABELLED = -1
"""Class index of a sample without a label."""
NO_ANSWER = -1
"""In place of the class that was answered, where no class was known."""
OTHER = -2
"""In its place where the answer was wrong, and only that is known of it."""


def checked_samples(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return `x` if it is a mini-batch of samples of `shape`, (C, H, W) or (D,).

    Raises:
        ShapeError: naming what was expected and what came.
    """
    image = len(shape) == 3
    if x.dim() == 0 or len(x) == 0 or tuple(x.shape[1:]) != shape:
        raise ShapeError(f"expected samples [B, {shape}] with B >= 1, got {tuple(x.shape)}")
    if x.dtype not in ((torch.uint8, torch.float32) if image else (torch.float32,)):
        raise ShapeError(f"expected float32{' or uint8' if image else ''}, got {x.dtype}")
    if x.dtype == torch.float32 and not x.isfinite().all():
        raise ShapeError("expected finite values, got NaN or infinity")
    if x.dtype == torch.float32 and image and (x.min() < 0 or x.max() > 1):
        raise ShapeError(f"expected values in [0, 1], got {x.min():g} to {x.max():g}")
    # The bits of a convolution depend on the layout; of one channel `contiguous` keeps any strides.
    return x.contiguous().view(-1).view(x.shape)


def class_indexes(
    labels: Labels | None, n: int, known: Sequence[Label]
) -> tuple[Tensor, list[Label]]:
    """Return the class index of each of n samples, [B], and the labels never seen before.

    New labels are numbered after the `known` ones, in order of appearance.

    Raises:
        ShapeError: another number of labels than samples, a negative one, or another kind of
            label than int64, str, or the known ones.
    """
    y_B = torch.full((n,), UNLABELLED)
    if labels is None:
        return y_B, []
    plain = _plain(labels)
    if len(plain) != n:
        raise ShapeError(f"expected {n} labels, one per sample, got {len(plain)}")
    index = {label: k for k, label in enumerate(known)}
    for i, label in enumerate(plain):
        if label in (UNLABELLED, ""):
            continue
        if isinstance(label, int) and label < 0:
            raise ShapeError(f"expected labels >= 0, or -1 for none, got {label} at index {i}")
        y_B[i] = index.setdefault(label, len(index))
    kinds = {type(label).__name__ for label in index}
    if len(kinds) > 1:
        raise ShapeError(f"expected one kind of label in a stream, got {' and '.join(kinds)}")
    return y_B, list(index)[len(known) :]


def judged(guess_L: Tensor, y_B: Tensor, right: Sequence[bool | None] | None) -> Tensor:
    """Return the class of each labelled sample and what was answered, int64 [L, 2].

    `NO_ANSWER` where nothing was, `OTHER` where it was wrong and not kept.

    Args:
        guess_L: what the learner answers now, or NO_ANSWER.
        y_B: classes, -1 for none.
        right: of each of the B samples, whether an earlier answer was right, None where there was
            none; None: there was none at all.
    """
    labelled_B = y_B != UNLABELLED
    y_L = y_B[labelled_B]
    if right is not None:
        given_L = torch.tensor([one is not None for one in right])[labelled_B.cpu()]
        said_L = torch.tensor([bool(one) for one in right])[labelled_B.cpu()].to(y_L.device)
        told_L = torch.where(said_L, y_L, OTHER)
        guess_L = torch.where(given_L.to(y_L.device), told_L, guess_L)
    return torch.stack([y_L, guess_L], 1)


def _plain(labels: Tensor | Sequence[object]) -> list[Label]:
    if isinstance(labels, Tensor):
        if labels.dtype != torch.int64 or labels.dim() != 1:
            raise ShapeError(f"expected labels int64 [B], got {labels.dtype} {tuple(labels.shape)}")
        numbers: list[Label] = labels.tolist()
        return numbers
    strings: list[Label] = [label for label in labels if isinstance(label, str)]
    if len(strings) != len(labels):
        kinds = {type(label).__name__ for label in labels} - {"str"}
        raise ShapeError(f"expected labels as int64 or strings, got {' and '.join(kinds)}")
    return strings
