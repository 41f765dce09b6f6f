"""What one sample of a stream is: an image, a vector or a series, and its shape.

A stream's first accepted batch, or the setting LEVIT_INPUT, fixes the `InputSchema`; it never
changes afterwards. Spelling: `image:HxWxC`, `vector:D`, `series:TxC`.
Dimension key: B batch, H height, W width (pixels), C channels, D vector width, T time steps.
"""

import re
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

InputKind = Literal["image", "vector", "series"]
MIN_SIDE, MAX_SIDE = 8, 128
MAX_VALUES = MAX_SIDE * MAX_SIDE * 3
_RANK = {"image": 3, "vector": 1, "series": 2}
_PATTERN = re.compile(r"(image|vector|series):(\d{1,6}(?:x\d{1,6}){0,2})")


@dataclass(frozen=True, slots=True)
class InputSchema:
    """Kind and shape of one sample: image (H, W, C), vector (D,) or series (T, C)."""

    kind: InputKind
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        """Check the shape against the bounds of its kind.

        Raises:
            ValueError: naming the bound and the value.
        """
        if len(self.shape) != _RANK[self.kind]:
            raise ValueError(f"expected {_RANK[self.kind]} extents for {self.kind}, got {self}")
        if min(self.shape) < 1:
            raise ValueError(f"expected every extent >= 1, got {self}")
        if self.kind == "image":
            height, width, channels = self.shape
            if min(height, width) < MIN_SIDE or max(height, width) > MAX_SIDE:
                raise ValueError(f"expected image sides from {MIN_SIDE} to {MAX_SIDE}, got {self}")
            if channels not in (1, 3):
                raise ValueError(f"expected 1 or 3 image channels, got {self}")
        if self.values > MAX_VALUES:
            raise ValueError(f"expected at most {MAX_VALUES} values a sample, got {self}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the schema spelled by `text`, for example `image:28x28x1`.

        Raises:
            ValueError: if the text is not of the form, or a bound is passed.
        """
        match = _PATTERN.fullmatch(text)
        if match is None:
            raise ValueError(f"expected image:HxWxC, vector:D or series:TxC, got {text!r}")
        kind: InputKind = match[1]  # type: ignore[assignment]  # the pattern allows these three
        return cls(kind, tuple(int(extent) for extent in match[2].split("x")))

    @classmethod
    def of(cls, x: NDArray[Any]) -> Self:
        """Return what the samples `x` [B, ...] are; dtype and rank together say the kind.

        uint8 [B, H, W] and [B, H, W, C] are images, float32 [B, D] vectors, [B, T, C] series,
        [B, H, W, C] images. So one stream of images may mix uint8 and float32 batches.

        Raises:
            ValueError: for another dtype or rank, or a shape out of bounds.
        """
        sample = x.shape[1:]
        match x.dtype.type, x.ndim:
            case np.uint8, 3:
                return cls("image", (*sample, 1))
            case ((np.uint8 | np.float32), 4):
                return cls("image", sample)
            case np.float32, 2:
                return cls("vector", sample)
            case np.float32, 3:
                return cls("series", sample)
            case _:
                raise ValueError(
                    "expected x as uint8 of rank 3 or 4, or float32 of rank 2 to 4, "
                    f"got {x.dtype} of rank {x.ndim}"
                )

    def canonical(self, x: NDArray[Any]) -> NDArray[Any]:
        """Return the samples `x` [B, ...] in the one layout engines see: [B, *shape], no copy.

        The wire has two spellings of grey images, [B, H, W] and [B, H, W, 1]; this is the latter.

        Raises:
            ValueError: if the samples of `x` are something else than this schema.
        """
        if (found := self.of(x)) != self:
            raise ValueError(f"expected samples of {self}, got {found}")
        return x.reshape(len(x), *self.shape)

    def no_samples(self) -> NDArray[np.uint8]:
        """Return an array of no samples, [0, *shape]."""
        return np.empty((0, *self.shape), np.uint8)

    @property
    def values(self) -> int:
        """Numbers in one sample."""
        product = 1
        for extent in self.shape:
            product *= extent
        return product

    def __str__(self) -> str:
        """Return the spelling that `parse` reads."""
        return f"{self.kind}:{'x'.join(map(str, self.shape))}"
