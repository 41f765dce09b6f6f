"""What one sample of a stream is: an image, a vector or a series, and its shape.

A stream's first accepted batch, or the setting LEVIT_INPUT, fixes the `InputSchema`; it never
changes afterwards. Spelling: `image:HxWxC`, `vector:D`, `series:TxC`.
Dimension key: B batch, H height, W width (pixels), C channels, D vector width, T time steps.
"""

import re
from dataclasses import dataclass
from typing import Literal, Self

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
