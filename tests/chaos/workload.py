"""The batches that clients send: each made from its seed, client and number, so none is stored.

Three classes that a nearest-mean learner tells apart, every third batch without labels, and one in
so many that the toy engine refuses, as its first value is the type's largest.
"""

import hashlib
from dataclasses import dataclass

import numpy as np

from service.engine.protocol import Array
from service.inputs import InputSchema
from service.store.entry import encode
from tests.toy_worker import DEADLY


@dataclass(frozen=True)
class Workload:
    """What is sent; the same for the same fields."""

    seed: int = 0
    schema: str = "image:8x8x1"
    fewest: int = 1
    most: int = 128
    """Samples in a batch: 64 bytes to 8 KB, most of them small."""
    refused_odds: int = 50
    """One in so many batches must be quarantined by the toy engine; 0 for none."""
    deadly: frozenset[tuple[int, int]] = frozenset()
    """Client and number of batches that kill the worker each time it learns them."""

    def arrays(self, client: int, number: int) -> tuple[Array, Array | None]:
        """Return samples and labels of one batch."""
        generator = np.random.default_rng([self.seed, client, number])
        n = round(self.fewest * (self.most / self.fewest) ** generator.uniform() ** 2)
        labels = generator.integers(0, 3, n)
        shape = InputSchema.parse(self.schema).shape
        x = generator.integers(0, 100, (n, *shape), np.uint8)
        x += (labels * 50).astype(np.uint8).reshape(-1, *[1] * len(shape))
        if (client, number) in self.deadly:
            x.flat[0] = DEADLY
        elif self.refused(client, number):
            x.flat[0] = 255
        return x, None if number % 3 == 2 else labels

    def refused(self, client: int, number: int) -> bool:
        """Say whether this batch must be quarantined."""
        odds = self.refused_odds
        return (odds > 0 and number % odds == odds - 1) or (client, number) in self.deadly

    def body(self, client: int, number: int) -> bytes:
        """Return the request that carries one batch."""
        return encode(*self.arrays(client, number))

    def key(self, client: int, number: int) -> str:
        """Return its Idempotency-Key."""
        named = f"{self.seed}:{client}:{number}"
        return hashlib.sha256(named.encode()).hexdigest()[:32]
