"""Entries with late labels without a log, and the way through them; a stream with them in a log."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from service.engine.protocol import Array, Label, Labels
from service.settings import Settings
from service.store import entry as entries
from service.store.append import Appender
from service.store.decisions import Decisions
from service.store.entry import Entry, Header, Kind
from service.store.submission import Receipt
from service.worker.step import Memory, Step, advance
from tests.log_entries import SCHEMA, batches, kept, late
from tests.toy_engine import ToyEngine, ToyEngines


class Walk:
    """A learner that is walked through entries; the first one has number 1."""

    def __init__(self, state_dir: Path, **options: object) -> None:
        settings = Settings(**options)  # type: ignore[arg-type]
        self.engine: ToyEngine = ToyEngines().create(settings, SCHEMA)
        self.memory = Memory.fresh(settings)
        self.decisions = Decisions(state_dir)
        self.number = 0

    def observe(self, x: Array, labels: Labels | None = None, *, batch_id: str = "") -> str:
        """Take samples in; return their batch id."""
        return self._next("observed", entries.encode(x, labels), len(x), batch_id)[0]

    def keep(self, x: Array, answers: Labels | None) -> str:
        """Take samples in that were answered; return their batch id."""
        return self._next("predicted", entries.encode(x, answers), len(x), "")[0]

    def label(self, given: Mapping[str, Label], *, batch_id: str = "") -> Step:
        """Take late labels in; return the step."""
        return self._next("labels", entries.encode_given(given), len(given), batch_id)[1]

    def _next(self, kind: Kind, payload: bytes, n: int, batch_id: str) -> tuple[str, Step]:
        self.number += 1
        batch_id = batch_id or f"{self.number:032x}"
        header = Header(batch_id=batch_id, schema=SCHEMA, n=n, kind=kind)
        fields = {
            name.encode(): value if isinstance(value, bytes) else str(value).encode()
            for name, value in header.to_fields(payload).items()
        }
        entry = Entry.from_fields(self.number, f"{self.number}-0", fields)
        lesson = self.memory.lesson(entry)
        return batch_id, advance(self.engine, lesson, self.decisions, self.memory)


def images(value: int, n: int = 2) -> Array:
    """Return n images of one value each."""
    return np.full((n, *SCHEMA.shape), value, np.uint8)


async def append_with_late_labels(settings: Settings, count: int) -> list[Receipt]:
    """Append batches, every third without labels and every sixth kept with answers, whose labels
    come in another order up to ten entries later; return the receipts of what brings labels."""
    assert settings.redis_url is not None
    generator, receipts = np.random.default_rng(1), list[Receipt]()
    waiting: list[tuple[str, int]] = []
    appender = Appender(settings.redis_url, settings)
    try:
        for number, one in enumerate(batches(count, seed=3)):
            x, labels = entries.decode_payload(one.payload)
            unlabelled = labels is None
            if unlabelled and number % 2:
                one = kept(x, generator.integers(-1, 3, len(x)))  # noqa: PLW2901
            receipt = await appender.append(replace(one, idempotency_key=f"{number:020}"))
            if unlabelled:
                true = x[:, 0, 0, 0].astype(int) // 75
                waiting += [(f"{receipt.batch_id}:{i}", int(k)) for i, k in enumerate(true)]
            generator.shuffle(waiting)
            if number % 4 == 3 and waiting:
                few, waiting = waiting[:5], waiting[5:]
                again = {f"{receipt.batch_id}:0": 1, f"{'0' * 32}:0": 2}
                told = late(dict(few) | again, key=f"late-{number:020}")
                receipts.append(await appender.append(told))
    finally:
        await appender.close()
    return receipts
