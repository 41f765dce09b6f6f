"""PNG and JPEG images to arrays: one as a body, or several as base64 strings in JSON.

Every image of a stream ends up in the stream's shape: turned upright as its EXIF orientation says,
in one channel (luma) or three (RGB), transparency laid on white, then resized whole, bilinear and
antialiased. Nothing is cut off and nothing padded, so the sides are stretched apart where they
have another ratio. An image that has the shape already keeps every pixel.

Sizes are compared before a pixel is decoded. So is the number of scans: a JPEG of 63 kB may hold
thousands of progressive ones, and each takes another 10 ms over 16 million pixels.
Dimension key: B batch, H height, W width (pixels), C channels.
"""

import base64
import io
import warnings
from collections.abc import Sequence
from typing import Final

import numpy as np
from PIL import ExifTags, Image

from service.api.bounds import Limits, check_batch_size
from service.engine.protocol import Array
from service.errors import TooLarge, Unprocessable
from service.inputs import InputSchema

PNG_OR_JPEG: Final = ("PNG", "JPEG")
MAX_SCANS = 64
"""Most scans of a JPEG; progressive ones have some 10."""
_START_OF_SCAN = b"\xff\xda"
_SHOWN = Image.Transpose
_UPRIGHT = {
    2: _SHOWN.FLIP_LEFT_RIGHT,
    3: _SHOWN.ROTATE_180,
    4: _SHOWN.FLIP_TOP_BOTTOM,
    5: _SHOWN.TRANSPOSE,
    6: _SHOWN.ROTATE_270,
    7: _SHOWN.TRANSVERSE,
    8: _SHOWN.ROTATE_90,
}
"""What turns an image of an EXIF orientation upright."""
_GREY_MODES = ("1", "L", "LA", "I;16")
_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)

# Filters belong to the process, not to a thread, so they cannot be set around a single image.
warnings.filterwarnings("error", module=r"PIL\.")


def read_images(
    files: Sequence[bytes],
    *,
    known: InputSchema | None,
    limits: Limits,
    formats: Sequence[str] = PNG_OR_JPEG,
) -> Array:
    """Return the images that `files` hold as uint8 [B, H, W, C] in the stream's shape.

    On a stream that has no shape yet the first image's own is taken, for all of them.

    Args:
        files: one image each.
        known: what the stream's samples are, if that is settled.
        limits: most images, and most pixels in all of them together.
        formats: what the files may be.

    Raises:
        ServiceError: `bad_image`, `too_many_pixels` or `schema_mismatch`, or what is wrong with
            the number of images or the first one's shape.
    """
    check_batch_size(len(files), limits.max_batch)
    if known is not None and known.kind != "image":
        raise Unprocessable("schema_mismatch", f"expected samples of {known}, got an image")
    arrays: list[Array] = []
    pixels = 0
    for index, file in enumerate(files):
        try:
            image = _opened(file, formats)
            pixels += image.width * image.height
            if pixels > limits.max_pixels:
                raise _too_large(limits.max_pixels, str(pixels), index)
            image = _upright(image)
            known = known or _own_schema(image)
            arrays.append(_in_shape(image, known))
        except _BOMBS:
            raise _too_large(limits.max_pixels, "many more", index) from None
        except (OSError, SyntaxError, ValueError, Warning):
            # These are what Pillow raises for files that are damaged or not what they should be.
            raise Unprocessable(
                "bad_image",
                f"expected a whole {' or '.join(formats)} image, got something else "
                f"at sample {index}",
            ) from None
    return np.stack(arrays)


def from_base64(texts: Sequence[str]) -> list[bytes]:
    """Return the files that `texts` spell, one each.

    Raises:
        Unprocessable: `bad_image`, with the index of the first that is no base64.
    """
    files = []
    for index, text in enumerate(texts):
        try:
            files.append(base64.b64decode(text, validate=True))
        except ValueError:
            raise Unprocessable(
                "bad_image",
                f"expected a PNG or JPEG image in base64, got another text at sample {index}",
            ) from None
    return files


def _opened(file: bytes, formats: Sequence[str]) -> Image.Image:
    """Return the image whose size is known and whose pixels are not decoded yet."""
    image = Image.open(io.BytesIO(file), formats=tuple(formats))
    if image.format != "PNG" and file.count(_START_OF_SCAN) > MAX_SCANS:
        raise ValueError(f"more than {MAX_SCANS} scans")
    return image


def _upright(image: Image.Image) -> Image.Image:
    """Return the image as a viewer shows it, decoded."""
    turn = _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    image.load()
    return image if turn is None else image.transpose(turn)


def _own_schema(image: Image.Image) -> InputSchema:
    """Return the schema of a stream that begins with `image`."""
    try:
        return InputSchema(
            "image", (image.height, image.width, 1 if image.mode in _GREY_MODES else 3)
        )
    except ValueError as error:
        raise Unprocessable(
            "bad_shape", f"{error}; declare the stream's shape, and images are resized to it"
        ) from None


def _in_shape(image: Image.Image, schema: InputSchema) -> Array:
    """Return the pixels as uint8 [H, W, C] of the schema."""
    height, width, channels = schema.shape
    mode = "L" if channels == 1 else "RGB"
    if image.mode == "I;16":
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    seen_through = image.has_transparency_data
    image = image.convert("RGBA" if seen_through else mode)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    if seen_through:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image).convert(mode)
    return np.asarray(image).reshape(schema.shape)


def _too_large(limit: int, found: str, index: int) -> TooLarge:
    return TooLarge(
        "too_many_pixels",
        f"expected at most {limit} pixels in all images of a request, "
        f"got {found} up to sample {index}",
    )
