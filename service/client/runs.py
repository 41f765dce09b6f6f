"""A run: many samples sent as numbered batches, each under a key that it will always have.

Whoever sends the same run again repeats the keys, and the service takes no batch twice.
Dimension key: N samples of the run.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Self

from service.client.models import ApiError, Receipt, Sent
from service.client.requests import Body, tensors
from service.engine.protocol import Array, Label


@dataclass(frozen=True, slots=True)
class Run:
    """Samples [N, ...], their labels, and how they are cut into batches."""

    name: str
    x: Array
    labels: Array | Sequence[Label | None] | None
    batch_size: int

    @classmethod
    def of(
        cls,
        x: Array,
        labels: Array | Sequence[Label | None] | None,
        *,
        batch_size: int,
        name: str | None,
    ) -> Self:
        """Return the run of these samples; without a name, their content is its name.

        Raises:
            ValueError: no samples, as many labels as there are not samples, or batches of none.
        """
        if len(x) == 0 or batch_size < 1:
            raise ValueError(
                f"expected samples in batches, got {len(x)} in batches of {batch_size}"
            )
        if labels is not None and len(labels) != len(x):
            raise ValueError(f"expected {len(x)} labels, one a sample, got {len(labels)}")
        run = cls(name or "", x, labels, batch_size)
        return run if name else replace(run, name=run._digest())

    def batches(self, first: int) -> Iterator[tuple[int, Body, str]]:
        """Yield number, body and Idempotency-Key of each batch from the `first` on."""
        for number, at in enumerate(range(0, len(self.x), self.batch_size)):
            if number >= first:
                yield number, self._body(at), _key(self.name, number)

    def sent(self, number: int, receipt: Receipt, before: Sent | None) -> Sent:
        """Return how far it has come once batch `number` is accepted."""
        replayed = 0 if before is None else before.replayed
        return Sent(
            run=self.name,
            batches=number + 1,
            samples=min((number + 1) * self.batch_size, len(self.x)),
            total=len(self.x),
            replayed=replayed + (receipt.n if receipt.replayed else 0),
            receipt=receipt,
        )

    def refused(self, number: int, refusal: ApiError) -> ApiError:
        """Return the refusal of batch `number`, saying which one it was."""
        message = f"batch {number} of run {self.name}: {refusal.message}"
        if refusal.code == "idempotency_key_reused":
            message += "; the run was begun with other samples or batches: choose another name"
        return ApiError(refusal.status, refusal.code, message, retry_after_s=refusal.retry_after_s)

    def _body(self, at: int) -> Body:
        batch = slice(at, at + self.batch_size)
        return tensors(self.x[batch], None if self.labels is None else self.labels[batch])

    def _digest(self) -> str:
        """Return what tells these batches from all others; each is encoded once more for it."""
        digest = hashlib.sha256()
        for at in range(0, len(self.x), self.batch_size):
            digest.update(self._body(at).content)
        return digest.hexdigest()[:16]


def _key(name: str, number: int) -> str:
    """Return the Idempotency-Key of a batch of a run; it is the same whenever it is asked for."""
    return hashlib.sha256(json.dumps([name, number]).encode()).hexdigest()[:32]
