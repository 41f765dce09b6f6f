"""Images as files, for tests."""

import base64
import io
import struct
import zlib
from collections.abc import Iterable
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

from service.engine.protocol import Array

ORIENTATION = 0x0112
"""Tag of EXIF that says how a camera was held."""


def as_file(pixels: Array | Image.Image, kind: str = "PNG", **options: Any) -> bytes:  # noqa: ANN401  as Pillow takes them
    """Return an image file of pixels [H, W] or [H, W, C], or of an image."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def as_text(file: bytes) -> str:
    """Return a file as JSON bodies spell it."""
    return base64.b64encode(file).decode()


def turned(image: Image.Image, orientation: int) -> bytes:
    """Return a PNG that says it was taken by a camera held askew."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return as_file(image, exif=exif)


@cache
def bomb(side: int) -> bytes:
    """Return a PNG of side x side pixels, each of one bit: some 8,000 times its own size."""
    rows = zlib.compressobj(9)
    packed = rows.compress(bytes(side * (side // 8 + 1))) + rows.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return png([(b"IHDR", header), (b"IDAT", packed), (b"IEND", b"")])


def png(chunks: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return a PNG of these chunks, name and data, each with the checksum it should have."""
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )


def many_scans(scans: int, side: int = 64) -> bytes:
    """Return a progressive JPEG whose last scan is there again and again."""
    file = as_file(np.full((side, side), 128, np.uint8), "JPEG", progressive=True)
    last = file[file.rindex(b"\xff\xda") : -2]
    return file[:-2] + last * scans + file[-2:]
