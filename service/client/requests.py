"""What the client sends: bodies with their type and their digest. Dimension key: B batch."""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import numpy as np

from service.engine.protocol import Array, Label, Labels
from service.store.entry import encode

_IMAGES = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg"}
"""Media types by the first bytes of a file."""


@dataclass(frozen=True, slots=True)
class Body:
    """Bytes of a request and what they are."""

    content: bytes
    media_type: str

    @property
    def headers(self) -> dict[str, str]:
        """Type and digest (RFC 9530), by which a body that was changed on its way is refused."""
        digest = base64.b64encode(hashlib.sha256(self.content).digest()).decode()
        return {"Content-Type": self.media_type, "Content-Digest": f"sha-256=:{digest}:"}


def tensors(x: Array, labels: Array | Sequence[Label | None] | None = None) -> Body:
    """Return the body that carries a batch.

    Args:
        x: samples [B, ...], uint8 or floats (sent as float32).
        labels: one per sample, all integers or all strings; None, -1 or "" for no label.

    Raises:
        ValueError: `x` or `labels` are of a kind that the wire does not have.
    """
    samples = np.asarray(x)
    if samples.dtype.kind == "f":
        samples = samples.astype(np.float32, copy=False)
    elif samples.dtype != np.uint8:
        raise ValueError(f"expected x of uint8 or floats, got {samples.dtype}")
    wired = None if labels is None else _wire_labels(labels)
    return Body(encode(samples, wired), "application/x-safetensors")


def _wire_labels(labels: Array | Sequence[Label | None]) -> Labels:
    """Return labels as the wire has them: int64 with -1, or strings with "" for none."""
    listed = labels.tolist() if isinstance(labels, np.ndarray) else list(labels)
    kinds = {type(label) for label in listed} - {type(None)}
    if kinds == {str}:
        return ["" if label is None else str(label) for label in listed]
    if kinds <= {int}:
        return np.array([-1 if label is None else label for label in listed], np.int64)
    raise ValueError("expected labels that are all integers or all strings, None for no label")


def image(content: bytes) -> Body:
    """Return the body that carries one image, as it lies in its file.

    Raises:
        ValueError: the bytes are neither PNG nor JPEG.
    """
    for start, media_type in _IMAGES.items():
        if content.startswith(start):
            return Body(content, media_type)
    raise ValueError(f"expected the bytes of a PNG or a JPEG, got {content[:8]!r}")


def document(value: Mapping[str, object]) -> Body:
    """Return the body that carries a JSON document."""
    return Body(json.dumps(value, ensure_ascii=False).encode(), "application/json")


def late_labels(labels: Mapping[str, Label | np.integer[Any]]) -> Body:
    """Return the body that tells labels by sample id; integers of numpy are integers."""
    plain = {one: label if isinstance(label, str) else int(label) for one, label in labels.items()}
    return document({"labels": plain})


def prefix(stream: str | None) -> str:
    """Return what stands before the path of each route of a stream."""
    return "" if stream is None else f"/streams/{quote(stream, safe='')}"
