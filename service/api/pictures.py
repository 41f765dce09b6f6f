"""Samples as they are shown: images as PNG, others as their values."""

import base64
import io
from typing import Any

import numpy as np
from PIL import Image

from service.engine.protocol import Array


def shown(x: Array) -> str | list[Any]:
    """Return one sample: of an image, uint8 or float32 in [0, 1], the PNG in base64; else lists."""
    if x.ndim != 3:  # noqa: PLR2004  an image has height, width, channels
        values: list[Any] = x.astype(np.float64).round(6).tolist()
        return values
    pixels = x if x.dtype == np.uint8 else (x.clip(0, 1) * 255).round().astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
