"""Harm by poison is undone, lasting drift is kept, and a class-ordered stream is left alone.

A real worker on a real Redis with the toy engine, whose class means follow what it is taught.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from service.engine.protocol import Array
from service.metrics import WorkerMetrics
from service.settings import Settings
from service.store.aside import GONE
from service.store.decisions import Decision, Decisions
from service.store.link import connect
from service.store.names import DEFAULT as names
from service.store.submission import Submission
from service.worker import loop
from service.worker.checkpoints import Checkpoint, Checkpoints
from service.worker.health import Health
from service.worker.loop import Pace, Worker
from tests.conftest import MakeSettings
from tests.log_entries import append_all, digest, submission
from tests.toy_engine import ToyEngine, ToyEngines

CLASSES = 3
LABELS = np.random.default_rng(1).integers(0, CLASSES, 10)
Wrong = Callable[[int], bool]


def never(_number: int) -> bool:
    return False


def images(true: Array, generator: np.random.Generator) -> Array:
    noise = generator.integers(0, 100, (len(true), 8, 8, 1))
    x: Array = (noise + (true * 50)[:, None, None, None]).astype(np.uint8)
    return x


def stream(count: int, wrong: Wrong = never, *, by_class: int | None = None) -> list[Submission]:
    """Return entries of ten samples; those whose number is `wrong` have every label false."""
    generator = np.random.default_rng(0)
    made = []
    for number in range(1, count + 1):
        true = generator.integers(0, CLASSES, 10)
        if by_class is not None:
            true = np.full(10, (number - 1) // by_class)
        told = (true + 1) % CLASSES if wrong(number) else true
        made.append(submission(images(true, generator), told))
    return made


def accuracy(engine: ToyEngine, *, turned: int = 0) -> float:
    """Return the share of fresh samples answered right, where labels are `turned` so far."""
    generator = np.random.default_rng(9)
    true = generator.integers(0, CLASSES, 300)
    answer = engine.recall(images(true, generator))
    said = np.array(answer.classes)[answer.probabilities.argmax(1)]
    return float((said == (true + turned) % CLASSES).mean())


class StopsWhenIdle(Worker):
    """A worker that ends once everything in the log is learned, what it releases included."""

    def _idle(self) -> None:
        super()._idle()
        if not self._learning.unsaved and not self._learning.read(count=1, block_ms=1):
            self.stop()


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let checkpoints come at every tenth look, whatever they cost."""
    looks = iter(range(10**9))
    monkeypatch.setattr(Pace, "due", property(lambda _: next(looks) % 10 == 0))
    monkeypatch.setattr(Pace, "affordable", True)
    monkeypatch.setattr(loop, "BLOCK_MS", 1)


def learn(settings: Settings) -> tuple[Checkpoint, ToyEngine]:
    """Let a worker learn the log; return its last checkpoint and the engine in it."""
    worker = StopsWhenIdle(settings, ToyEngines(), WorkerMetrics(CollectorRegistry()))
    try:
        worker.run()
        engine = worker._learning._state.engine
    finally:
        worker.close()
    checkpoints = Checkpoints(settings)
    assert isinstance(engine, ToyEngine)
    return checkpoints.read(next(checkpoints.newest_first())), engine


def set_aside(settings: Settings) -> dict[bytes, bytes]:
    redis = connect(str(settings.redis_url))
    found: Any = redis.hgetall(names.quarantine)
    redis.close()
    return dict(found)


def kinds(settings: Settings) -> list[str]:
    return [
        "rollback" if one.checkpoint is not None else one.kind
        for one in Decisions(settings.state_dir)
    ]


def skipped(settings: Settings) -> list[int]:
    decisions = Decisions(settings.state_dir)
    return [number for number in range(1, 1000) if decisions.skips(number) is not None]


async def test_a_burst_of_wrong_labels_is_undone_and_stays_set_aside(
    settings: MakeSettings,
) -> None:
    made = settings()
    await append_all(made, stream(460, lambda number: 200 < number <= 240))

    checkpoint, engine = learn(made)

    rollback = next(one for one in Decisions(made.state_dir) if one.checkpoint is not None)
    assert rollback.until <= 200 + 50
    assert kinds(made).count("rollback") == 1
    assert "expand" not in kinds(made)
    assert set(range(201, 241)) <= set(skipped(made))
    assert set(skipped(made)) <= set(range(180, 245))
    assert checkpoint.progress.quarantined == len(set_aside(made)) == len(skipped(made))
    assert checkpoint.progress.learned + checkpoint.progress.quarantined == 460
    assert accuracy(engine) > 0.97


async def test_without_looking_at_its_health_the_same_burst_does_harm(
    settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Health, "after", lambda *_, **__: "none")
    made = settings()
    await append_all(made, stream(240, lambda number: 200 < number <= 240))

    _, engine = learn(made)

    assert accuracy(engine) < 0.5


async def test_evidence_that_lasts_is_drift_and_every_entry_is_learned(
    settings: MakeSettings,
) -> None:
    made = settings()
    await append_all(made, stream(600, lambda number: number > 200))

    checkpoint, engine = learn(made)

    assert kinds(made).count("rollback") == 1
    assert kinds(made)[-1] == "expand"
    assert set(set_aside(made).values()) == {GONE}
    assert checkpoint.progress.quarantined == len(skipped(made)) > 100
    assert checkpoint.progress.learned == 600
    assert checkpoint.progress.consumed == 600 + len(skipped(made))
    assert accuracy(engine, turned=1) > 0.97


async def test_a_class_ordered_stream_never_rolls_back(settings: MakeSettings) -> None:
    made = settings()
    await append_all(made, stream(600, by_class=200))

    checkpoint, _ = learn(made)

    assert kinds(made) == []
    assert checkpoint.progress.learned == 600


async def test_killed_and_restarted_in_the_middle_it_decides_and_ends_the_same(
    settings: MakeSettings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole, broken = settings(), settings(state_dir=tmp_path / "other")
    entries = stream(460, lambda number: 200 < number <= 240)
    await append_all(whole, entries)
    expected, _ = learn(whole)
    connect(str(whole.redis_url)).flushall()
    await append_all(broken, entries)

    decided = Decisions.add

    def die_after(self: Decisions, decision: Decision) -> None:
        decided(self, decision)
        raise KeyboardInterrupt

    monkeypatch.setattr(Decisions, "add", die_after)
    deaths, found = 0, None
    while found is None and deaths < 100:
        try:
            found, _ = learn(broken)
        except KeyboardInterrupt:
            deaths += 1

    assert found is not None
    assert deaths == len(list(Decisions(broken.state_dir))) > 1
    assert found.progress.consumed == expected.progress.consumed
    assert skipped(broken) == skipped(whole)
    assert digest(found.state) == digest(expected.state)


async def test_a_rollback_restores_the_number_of_experts(settings: MakeSettings) -> None:
    made = settings(checkpoints_kept=1000)
    await append_all(made, stream(100))
    before, _ = learn(made)
    kept = Checkpoints(made)
    early = next(p for p in reversed(list(kept.newest_first())) if kept.read(p).state.frozen)
    mark = kept.read(early)
    assert len(mark.state.frozen) < len(before.state.frozen)

    Decisions(made.state_dir).add(
        Decision(
            kind="skip",
            after=mark.progress.consumed,
            until=100,
            reason="rolled back",
            checkpoint=int(early.name.removeprefix("ckpt-")),
            command="c",
        )
    )
    after, engine = learn(made)

    assert len(engine.frozen) == len(mark.state.frozen)
    assert digest(after.state) == digest(mark.state)
    assert after.progress.quarantined == 100 - mark.progress.consumed
    assert len(set_aside(made)) == after.progress.quarantined
