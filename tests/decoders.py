"""Every decoder of a request behind one function, and inputs from which fuzzing it begins."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from service.api.body import IMAGES, JSON, SAFETENSORS
from service.api.bounds import Limits
from service.api.codec import decode
from service.api.image_body import from_base64, read_images
from service.api.labels_body import read_given
from service.api.lines import split
from service.errors import ServiceError
from service.inputs import InputSchema
from tests.bad_bodies import BAD_JSON, BAD_LABELS, BAD_TENSORS, labels
from tests.images import as_text
from tests.test_images import GOOD

MOST_BYTES = 8192
LIMITS = Limits(
    max_body_bytes=2**23, max_json_bytes=2**20, max_batch=16, max_pixels=2**20, line_s=1, stream_s=1
)
GREY = InputSchema.parse("image:8x8x1")
MEDIA_TYPES = (JSON, SAFETENSORS, *IMAGES)


def decode_one(data: bytes) -> None:
    """Give all but the first byte to the decoder that it chooses."""
    if not data:
        return
    choice, body = data[0] % 64 % 7, data[1:]
    known = GREY if data[0] & 64 else None
    with contextlib.suppress(ServiceError):
        if choice < len(MEDIA_TYPES):
            decode(body, MEDIA_TYPES[choice], known=known, limits=LIMITS)
        elif choice == len(MEDIA_TYPES):
            read_images(from_base64([body.decode(errors="replace")]), known=known, limits=LIMITS)
        elif choice == len(MEDIA_TYPES) + 1:
            asyncio.run(_decode_lines(body))
        else:
            read_given(body, LIMITS)


async def _decode_lines(body: bytes) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 100):
            yield body[start : start + 100]

    async for line in split(chunks(), 1000):
        with contextlib.suppress(ServiceError):
            decode(line, JSON, known=None, limits=LIMITS)


def seeds() -> list[bytes]:
    """Return inputs from which to begin: everything that the tests refuse, and good images."""
    json_bodies = [body for *_, body in BAD_JSON if len(body) < MOST_BYTES]
    tensors = [body for *_, body in BAD_TENSORS if len(body) < MOST_BYTES]
    return [
        *(b"\0" + body for body in json_bodies),
        *(b"\1" + body for body in tensors),
        *(bytes([kind | 64]) + image for image in GOOD for kind in (2, 3)),
        *(b"\4" + as_text(image).encode() for image in GOOD),
        b"\5" + b"\n".join(json_bodies),
        *(b"\6" + body for *_, body in BAD_LABELS),
        b"\6" + labels('"ID": 7'),
    ]
