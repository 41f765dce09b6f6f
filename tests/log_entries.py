"""A small seeded stream put into the log as the API would, and the digest of what was learned."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from service.engine.digest import digest
from service.engine.protocol import Array, Label, Labels
from service.inputs import InputSchema
from service.settings import Settings
from service.store import entry
from service.store.append import Appender
from service.store.events import EntryMark, Mark, News
from service.store.fence import Fence
from service.store.submission import Receipt, Submission

__all__ = [
    "NO_NEWS",
    "SCHEMA",
    "append_all",
    "batches",
    "claimed",
    "digest",
    "kept",
    "late",
    "refused_batch",
    "submission",
]

SCHEMA = InputSchema.parse("image:8x8x1")
NO_NEWS = News(mark=Mark(entry=EntryMark(), decisions=0, snapshot=0), events=[])


def submission(
    x: Array, labels: Labels | None = None, *, key: str | None = None, body: str | None = None
) -> Submission:
    """Return what the API makes of a request with these arrays."""
    payload = entry.encode(x, labels)
    listed: list[Label] = [] if labels is None else [v for v in _plain(labels) if v not in (-1, "")]
    kinds = {type(label) for label in listed}
    return Submission(
        schema=InputSchema.of(x),
        labels_kind="string" if kinds == {str} else "int" if kinds else None,
        n=len(x),
        distinct_labels=sorted(set(listed), key=str),
        payload=payload,
        idempotency_key=key,
        digest=hashlib.sha256(payload if body is None else body.encode()).hexdigest(),
    )


def late(given: Mapping[str, Label], *, key: str | None = None) -> Submission:
    """Return what the API makes of labels for samples of earlier batches."""
    payload = entry.encode_given(given)
    kinds = {type(label) for label in given.values()}
    return Submission(
        schema=None,
        labels_kind="string" if kinds == {str} else "int",
        n=len(given),
        distinct_labels=sorted(set(given.values()), key=str),
        payload=payload,
        kind="labels",
        idempotency_key=key,
        digest=hashlib.sha256(payload).hexdigest(),
    )


def kept(x: Array, answers: Labels | None, *, key: str | None = None) -> Submission:
    """Return what the API makes of samples that were answered and are to be kept."""
    plain = submission(x, key=key)
    return replace(plain, kind="predicted", payload=entry.encode(x, answers), model_version=1)


def batches(count: int, *, n: int = 4, seed: int = 0) -> list[Submission]:
    """Return a stream of small grey images of three classes; every third batch has no labels."""
    generator = np.random.default_rng(seed)
    stream = []
    for number in range(count):
        labels = generator.integers(0, 3, n)
        x = (
            generator.integers(0, 100, (n, 8, 8, 1), np.uint8)
            + (labels * 50).astype(np.uint8)[:, None, None, None]
        )
        stream.append(submission(x, None if number % 3 == 2 else labels))
    return stream


def refused_batch() -> Submission:
    """Return a batch that the toy engine refuses to learn."""
    return submission(np.full((2, 8, 8, 1), 255, np.uint8))


async def append_all(settings: Settings, stream: Sequence[Submission]) -> list[Receipt]:
    """Append a stream to the log; return its receipts."""
    assert settings.redis_url is not None
    appender = Appender(settings.redis_url, settings)
    try:
        return [await appender.append(one) for one in stream]
    finally:
        await appender.close()


def claimed(url: str) -> Fence:
    """Return the connection of a worker that has just started."""
    fence = Fence(url)
    fence.claim(0)
    return fence


def _plain(labels: Labels) -> Sequence[Label]:
    return labels.tolist() if isinstance(labels, np.ndarray) else labels
