"""What fails between two steps of the worker is done again, or not at all; never by half.

Each test breaks one step of a worker with the toy engine on a real Redis, and looks at what the
next attempt, or the next start, makes of it.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from service.engine.protocol import Array, Labels, ObserveReport, Origin
from service.metrics import WorkerMetrics
from service.settings import Settings
from service.store import directory
from service.store.append import Appender
from service.store.decisions import Decision, Decisions
from service.store.link import connect
from service.store.names import DEFAULT as names
from service.store.snapshots import SnapshotReader, SnapshotWriter
from service.worker import loop
from service.worker.learning import Learning
from service.worker.loop import Pace, StepAbandoned
from service.worker.orders import Orders
from tests.conftest import MakeSettings
from tests.log_entries import append_all, batches, digest
from tests.test_rollback import learn, stream
from tests.toy_engine import ToyEngine, ToyEngines
from tests.toy_learning import learn_all

FULL = OSError(28, "No space left on device")
Add = Callable[[Decisions, Decision], None]


def full(*_: object, **__: object) -> None:
    raise FULL


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let checkpoints come at every tenth look, whatever they cost."""
    looks = iter(range(10**9))
    monkeypatch.setattr(Pace, "due", property(lambda _: next(looks) % 10 == 0))
    monkeypatch.setattr(Pace, "affordable", True)
    monkeypatch.setattr(loop, "BLOCK_MS", 1)


@pytest.fixture
def part(settings: MakeSettings) -> Iterator[Learning]:
    """What a worker is around its loop, started."""
    made = settings()
    metrics = WorkerMetrics(CollectorRegistry())
    started = Learning(made, ToyEngines(), str(made.redis_url), metrics)
    started.restore()
    yield started
    started.close()


def learn_waiting(part: Learning) -> None:
    for raw in part.read(count=8, block_ms=10):
        part.learn(raw)


def ask(settings: Settings, kind: str, arguments: str) -> None:
    fields: dict[Any, Any] = {"id": "one", "kind": kind, "arguments": arguments}
    connect(str(settings.redis_url)).xadd(names.commands, fields)


def answer(settings: Settings) -> bytes:
    found: Any = connect(str(settings.redis_url)).get(names.answer("one"))
    return bytes(found)


# In the middle of a step


def die_after_growth(add: Add) -> Add:
    def dying(self: Decisions, decision: Decision) -> None:
        add(self, decision)
        if decision.kind == "expand":
            raise KeyboardInterrupt

    return dying


def full_at_first(add: Add) -> Add:
    refused = set()

    def refusing(self: Decisions, decision: Decision) -> None:
        what = "back" if decision.checkpoint is not None else decision.kind
        if what not in refused:
            refused.add(what)
            raise FULL
        add(self, decision)

    return refusing


@pytest.mark.parametrize("fault", [die_after_growth, full_at_first], ids=["killed", "disk full"])
async def test_a_drift_ends_in_the_same_state_whatever_fails_at_its_decisions(
    settings: MakeSettings,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    fault: Callable[[Add], Add],
) -> None:
    whole, broken = settings(), settings(state_dir=tmp_path / "other")
    entries = stream(450, lambda number: number > 200)
    await append_all(whole, entries)
    expected, _ = learn(whole)
    connect(str(whole.redis_url)).flushall()
    await append_all(broken, entries)

    monkeypatch.setattr(Decisions, "add", fault(Decisions.add))
    try:
        found, _ = learn(broken)
    except KeyboardInterrupt:
        found, _ = learn(broken)

    assert [one.kind for one in Decisions(broken.state_dir)][-1] == "expand"
    assert digest(found.state) == digest(expected.state)
    assert found.health["facts"] == expected.health["facts"]


async def test_an_entry_whose_exception_ends_the_worker_is_set_aside_at_the_fourth_start(
    settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = settings()
    await append_all(made, batches(6))
    observe = ToyEngine.observe

    def fails(self: ToyEngine, origin: Origin, x: Array, labels: Labels | None) -> ObserveReport:
        if origin[0] == 4:
            raise RuntimeError("a bug")
        return observe(self, origin, x, labels)

    monkeypatch.setattr(ToyEngine, "observe", fails)
    for _ in range(3):
        with pytest.raises(RuntimeError, match="a bug"):
            learn_all(made)

    assert learn_all(made).progress.quarantined == 1


async def test_a_step_abandoned_at_its_very_end_is_done_again_from_the_checkpoint(
    settings: MakeSettings, monkeypatch: pytest.MonkeyPatch, part: Learning
) -> None:
    await append_all(settings(), batches(6))
    observe = ToyEngine.observe

    def late(self: ToyEngine, origin: Origin, x: Array, labels: Labels | None) -> ObserveReport:
        report = observe(self, origin, x, labels)
        if origin[0] == 4:
            raise StepAbandoned
        return report

    with monkeypatch.context() as patched:
        patched.setattr(ToyEngine, "observe", late)
        with pytest.raises(StepAbandoned):
            learn_waiting(part)

    assert not part.unsaved
    assert learn_all(settings()).state.values["step"] == 6


# In the middle of telling and publishing


async def test_what_was_not_told_before_going_back_is_told_after(
    settings: MakeSettings, monkeypatch: pytest.MonkeyPatch, part: Learning
) -> None:
    made = settings()
    receipts = await append_all(made, batches(4))
    learn_waiting(part)
    with monkeypatch.context() as patched:
        patched.setattr(SnapshotWriter, "publish", full)
        with pytest.raises(OSError, match="No space"):
            part.save()

    part.go_back(Decision(kind="skip", after=4, until=4, reason="r", checkpoint=1, command="c"))

    appender = Appender(str(made.redis_url), made)
    found = [await appender.status(receipt.batch_id) for receipt in receipts]
    await appender.close()
    assert [status.state for status in found if status is not None] == ["learned"] * 4


async def test_a_snapshot_that_could_not_be_named_does_not_keep_the_next_from_coming(
    settings: MakeSettings, monkeypatch: pytest.MonkeyPatch, part: Learning
) -> None:
    made = settings()
    await append_all(made, batches(4))
    learn_waiting(part)
    with monkeypatch.context() as patched:
        patched.setattr(directory, "replace_file", full)
        with pytest.raises(OSError, match="No space"):
            part.publish()

    part.publish()

    assert SnapshotReader(made.state_dir).newest_version() == 1


def test_a_file_that_cannot_be_replaced_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", full)

    with pytest.raises(OSError, match="No space"):
        directory.replace_file(tmp_path / "current", b"1")

    assert list(tmp_path.iterdir()) == []


# In the middle of a command


async def test_a_command_that_cannot_load_a_checkpoint_does_not_begin_the_learner_anew(
    settings: MakeSettings, part: Learning
) -> None:
    made, redis = settings(), connect(str(settings().redis_url))
    await append_all(made, batches(4))
    learn_waiting(part)
    part.save()
    kept: Any = redis.hgetall(names.replay)
    redis.delete(names.replay)
    ask(made, "resync", '{"accept_loss": 0}')

    Orders(made, part).follow()
    redis.hset(names.replay, mapping=kept)
    await append_all(made, batches(3, seed=3))
    learn_waiting(part)

    assert b"restored" in answer(made)
    assert part.progress.consumed == part.progress.learned == 7


async def test_going_back_to_a_damaged_checkpoint_is_refused_before_it_is_decided(
    settings: MakeSettings, part: Learning
) -> None:
    made = settings()
    for seed in range(2):
        await append_all(made, batches(4, seed=seed))
        learn_waiting(part)
        part.save()
    damaged = made.state_dir / "checkpoints" / "ckpt-00000001" / "served.safetensors"
    damaged.write_bytes(b"")
    ask(made, "rollback", '{"checkpoint": 1, "mode": "drop"}')

    Orders(made, part).follow()

    assert b"checkpoint 1 is damaged" in answer(made)
    assert list(Decisions(made.state_dir)) == []
    assert learn_all(made).progress.learned == 8


async def test_a_pin_for_which_there_is_no_room_does_not_hold_up_learning(
    settings: MakeSettings, monkeypatch: pytest.MonkeyPatch, part: Learning
) -> None:
    made = settings()
    await append_all(made, batches(4))
    learn_waiting(part)
    part.save()
    ask(made, "pin", '{"checkpoint": 1, "name": "a"}')
    monkeypatch.setattr(directory, "write", full)

    Orders(made, part).follow()

    assert b"No space left" in answer(made)
