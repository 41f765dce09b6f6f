"""The batches that were learned last, by id: what comes twice is learned once."""

from collections.abc import Sequence

import numpy as np

from service.engine.protocol import Tensors

RECENT = 50_000
"""Learned batches whose ids are remembered, so that one that comes twice is learned once."""


class RecentBatches:
    """The ids of the batches learned last, each with the step that learned it."""

    def __init__(self) -> None:
        self._steps: dict[str, int] = {}

    def step_of(self, batch_id: str) -> int | None:
        """Return the step that learned a batch, or None where none of the recent ones did."""
        return self._steps.get(batch_id)

    def add(self, batch_id: str, step: int) -> None:
        """Remember a batch; the oldest beyond `RECENT` is forgotten."""
        self._steps[batch_id] = step
        if len(self._steps) > RECENT:
            del self._steps[next(iter(self._steps))]

    def dump(self) -> Tensors:
        """Return it as arrays: `ids` uint8 [N, 16] and `steps` int64 [N], oldest first."""
        raw = b"".join(bytes.fromhex(batch_id) for batch_id in self._steps)
        ids = np.frombuffer(raw, np.uint8).reshape(-1, 16)
        return {"ids": ids, "steps": np.array(list(self._steps.values()), np.int64)}

    def load(self, arrays: Tensors) -> None:
        """Become what was dumped."""
        ids: Sequence[bytes] = [row.tobytes() for row in arrays["ids"]]
        steps = arrays["steps"].tolist()
        self._steps = {one.hex(): step for one, step in zip(ids, steps, strict=True)}
