"""The worker's loop: what it learns, saves, publishes, tells, and when it refuses to go on."""

import socket
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from service.engine.protocol import Engines
from service.errors import CorruptState, Unavailable
from service.metrics import WorkerMetrics
from service.settings import Settings
from service.store import directory
from service.store.append import Appender
from service.store.entry import BatchStatus
from service.store.fence import Fence
from service.store.link import connect
from service.store.names import DEFAULT as names
from service.store.read import Log
from service.store.replay import ReplayStore
from service.store.snapshots import SnapshotReader
from service.store.stream_ids import START, RawEntry
from service.worker import loop, members, process
from service.worker.checkpoints import Checkpoint, Checkpoints
from service.worker.learning import Learning, Turn
from service.worker.loop import Pace, Worker
from tests.conftest import MakeSettings
from tests.log_entries import append_all, batches, digest, refused_batch
from tests.toy_engine import ToyEngines
from tests.toy_learning import StopsWhenIdle
from tests.toy_worker import ForgetsTheGenerator, ForgetsTheMemory


def newest(settings: Settings) -> Checkpoint:
    checkpoints = Checkpoints(settings)
    return checkpoints.read(next(checkpoints.newest_first()))


def newest_path(settings: Settings) -> Path:
    return next(Checkpoints(settings).newest_first())


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let checkpoints take half the time, as tests are all beginnings and ends."""
    monkeypatch.setattr(loop, "SHARE", 0.5)


def entries_in(url: str) -> list[RawEntry]:
    return Log(Fence(url)).read(START, count=1000, block_ms=10)


def learn_all(settings: Settings, engines: Engines | None = None) -> Checkpoint:
    """Let a worker learn the log in this process; return its last checkpoint."""
    registry = CollectorRegistry()
    worker = StopsWhenIdle(settings, engines or ToyEngines(), WorkerMetrics(registry))
    try:
        worker.run()
    finally:
        worker.close()
    return newest(settings)


async def statuses(settings: Settings, batch_ids: list[str]) -> list[BatchStatus | None]:
    assert settings.redis_url is not None
    appender = Appender(settings.redis_url, settings)
    found = [await appender.status(batch_id) for batch_id in batch_ids]
    await appender.close()
    return found


# Learning and telling


async def test_every_entry_is_learned_once_and_told(settings: MakeSettings) -> None:
    made = settings()
    receipts = await append_all(made, batches(40))

    checkpoint = learn_all(made)

    assert checkpoint.progress.consumed == checkpoint.progress.learned == 40
    assert checkpoint.progress.position == receipts[-1].position
    assert checkpoint.state.values["step"] == 40
    told = await statuses(made, [receipt.batch_id for receipt in receipts])
    assert [status.step for status in told if status is not None] == list(range(1, 41))
    assert {status.state for status in told if status is not None} == {"learned"}


async def test_everything_learned_is_published(settings: MakeSettings) -> None:
    made = settings()
    receipts = await append_all(made, batches(10))

    checkpoint = learn_all(made)

    reader = SnapshotReader(made.state_dir)
    version = reader.newest_version()
    assert version is not None
    loaded = reader.load(version)
    assert (loaded.info.step, loaded.info.position) == (10, receipts[-1].position)
    np.testing.assert_array_equal(loaded.state.served["sums"], checkpoint.state.served["sums"])


async def test_a_refused_entry_is_set_aside_and_the_rest_is_learned(
    settings: MakeSettings, redis_server: str
) -> None:
    made = settings()
    stream = batches(12)
    receipts = await append_all(made, [*stream[:6], refused_batch(), *stream[6:]])

    checkpoint = learn_all(made)

    told = await statuses(made, [receipts[6].batch_id])
    assert told == [
        BatchStatus(
            batch_id=receipts[6].batch_id,
            state="quarantined",
            n=2,
            position=receipts[6].position,
            reason="loss is not finite: nan",
        )
    ]
    assert (checkpoint.progress.learned, checkpoint.progress.quarantined) == (12, 1)
    assert connect(redis_server).hkeys(names.quarantine) == [str(receipts[6].position).encode()]


async def test_a_refused_entry_leaves_the_state_unchanged(
    settings: MakeSettings, tmp_path: Path
) -> None:
    stream = batches(6)
    without = settings(state_dir=tmp_path / "without")
    await append_all(without, stream)
    expected = digest(learn_all(without).state)
    connect(str(without.redis_url)).flushall()
    made = settings()

    await append_all(made, [*stream, refused_batch()])

    assert digest(learn_all(made).state) == expected


async def test_the_position_is_the_number_of_the_entry_for_the_engine(
    settings: MakeSettings,
) -> None:
    made = settings()
    await append_all(made, [refused_batch(), *batches(1)])

    checkpoint = learn_all(made)

    assert set(checkpoint.state.members[:, 0].tolist()) == {2}


# Checkpoints and what hangs on them


async def test_a_restarted_worker_ends_in_the_state_of_one_that_never_stopped(
    settings: MakeSettings, tmp_path: Path
) -> None:
    stream = batches(60)
    whole = settings(state_dir=tmp_path / "whole")
    await append_all(whole, stream)
    expected = digest(learn_all(whole).state)
    connect(str(whole.redis_url)).flushall()
    made = settings()

    for start in range(0, 60, 7):
        await append_all(made, stream[start : start + 7])
        learn_all(made)

    assert digest(newest(made).state) == expected


@pytest.mark.parametrize("flawed", [ForgetsTheGenerator(), ForgetsTheMemory()])
async def test_a_restart_that_forgets_something_ends_elsewhere(
    settings: MakeSettings, tmp_path: Path, flawed: ToyEngines
) -> None:
    stream = batches(14)
    whole = settings(state_dir=tmp_path / "whole")
    await append_all(whole, stream)
    expected = digest(learn_all(whole).state)
    connect(str(whole.redis_url)).flushall()
    made = settings()

    await append_all(made, stream[:7])
    learn_all(made, flawed)
    await append_all(made, stream[7:])

    assert digest(learn_all(made, flawed).state) != expected


async def test_expansions_are_saved_at_once(settings: MakeSettings) -> None:
    made = settings(checkpoints_kept=100, checkpoint_interval_s=1000)
    await append_all(made, batches(60))

    learn_all(made)

    checkpoints = Checkpoints(made)
    frozen = [len(checkpoints.read(path).state.frozen) for path in checkpoints.newest_first()]
    assert max(frozen) >= 2
    assert sorted(set(frozen)) == list(range(min(frozen), max(frozen) + 1))


async def test_the_log_is_never_trimmed_beyond_the_oldest_kept_checkpoint(
    settings: MakeSettings, redis_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pace, "due", True)
    made = settings(checkpoints_kept=2)
    receipts = await append_all(made, batches(12))

    learn_all(made)

    left = [position for position, _ in entries_in(redis_server)]
    oldest = Checkpoints(made).oldest
    assert 0 < oldest.consumed < 12
    assert left == [receipt.position for receipt in receipts[oldest.consumed :]]


async def test_members_are_kept_while_a_kept_checkpoint_names_them(
    settings: MakeSettings, redis_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pace, "due", True)
    made = settings(checkpoints_kept=2)
    await append_all(made, batches(40))

    learn_all(made)

    assert ReplayStore(Fence(redis_server)).ids() == Checkpoints(made).members


async def test_evicted_samples_do_not_pile_up_between_checkpoints(
    settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(members, "BUFFERED_BYTES", 2000)
    made = settings(checkpoint_interval_s=1000)
    await append_all(made, batches(60))
    most = 0
    learn = Learning.learn

    def watched(self: Learning, raw: RawEntry) -> Turn:
        nonlocal most
        turn = learn(self, raw)
        most = max(most, self._members.new.nbytes)
        return turn

    monkeypatch.setattr(Learning, "learn", watched)
    checkpoint = learn_all(made)

    assert 0 < most <= 2 * 24 * 64 + 4 * 64
    assert checkpoint.progress.learned == 60


def damage(path: Path) -> None:
    served = path / "served.safetensors"
    served.write_bytes(served.read_bytes()[:-1])


async def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    settings: MakeSettings, tmp_path: Path
) -> None:
    stream = batches(30)
    whole = settings(state_dir=tmp_path / "whole")
    await append_all(whole, stream)
    expected = digest(learn_all(whole).state)
    connect(str(whole.redis_url)).flushall()
    made = settings()
    for start in range(0, 30, 10):
        await append_all(made, stream[start : start + 10])
        learn_all(made)

    damage(newest_path(made))
    checkpoint = learn_all(made)

    assert digest(checkpoint.state) == expected
    assert checkpoint.progress.consumed == 30


async def test_a_lost_replay_member_falls_back_to_a_checkpoint_without_it(
    settings: MakeSettings, redis_server: str
) -> None:
    made = settings()
    stream = batches(20)
    await append_all(made, stream[:10])
    learn_all(made)
    await append_all(made, stream[10:])
    expected = learn_all(made)
    number, index = expected.state.members[-1].tolist()

    connect(redis_server).hdel(names.replay, f"{number}:{index}")

    assert digest(learn_all(made).state) == digest(expected.state)


async def test_with_every_checkpoint_damaged_it_does_not_begin_anew(
    settings: MakeSettings,
) -> None:
    made = settings()
    await append_all(made, batches(5))
    learn_all(made)

    damage(newest_path(made))

    with pytest.raises(CorruptState, match="none of 1 checkpoints can be restored"):
        learn_all(made)
    assert newest_path(made).exists()


async def test_over_an_emptied_redis_it_does_not_begin_anew(
    settings: MakeSettings, redis_server: str
) -> None:
    made = settings()
    await append_all(made, batches(5))
    learn_all(made)
    connect(redis_server).flushall()

    await append_all(made, batches(20))

    with pytest.raises(CorruptState, match="none of 1 checkpoints can be restored"):
        learn_all(made)


# Damage to the log


@pytest.mark.parametrize(
    ("harm", "gap"),
    [
        (lambda redis: redis.xtrim(names.log, maxlen=3, approximate=False), 6),
        (lambda redis: redis.delete(names.log), 9),
    ],
    ids=["XTRIM MAXLEN", "DEL"],
)
async def test_a_log_that_lost_entries_is_not_learned(
    settings: MakeSettings, redis_server: str, harm: Callable[..., object], gap: int
) -> None:
    made = settings(checkpoints_kept=1)
    await append_all(made, batches(4))
    before = learn_all(made)
    await append_all(made, batches(9, seed=1))
    harm(connect(redis_server))
    registry = CollectorRegistry()
    worker = Worker(made, ToyEngines(), WorkerMetrics(registry))

    with pytest.raises(CorruptState, match=f"--accept-loss {gap}`"):
        worker.run()

    worker.close()
    assert registry.get_sample_value("levit_stream_gap_entries", {"stream": "default"}) == gap
    assert digest(newest(made).state) == digest(before.state)


async def test_entries_lost_while_learning_are_in_no_checkpoint(
    settings: MakeSettings, redis_server: str
) -> None:
    made = settings(checkpoints_kept=1)
    await append_all(made, batches(4))
    learn_all(made)
    await append_all(made, batches(6, seed=1))
    registry = CollectorRegistry()
    part = Learning(made, ToyEngines(), redis_server, WorkerMetrics(registry))
    part.restore()
    for raw in part.read(count=2, block_ms=10):
        part.learn(raw)

    connect(redis_server).xdel(names.log, entries_in(redis_server)[3][0])

    with pytest.raises(CorruptState, match="--accept-loss 1`"):
        part.save()
    part.close()
    assert newest(made).progress.consumed == 4


async def test_a_payload_with_a_flipped_byte_is_not_learned(
    settings: MakeSettings, redis_server: str
) -> None:
    made = settings()
    await append_all(made, batches(2))
    fields: Any = entries_in(redis_server)[0][1]
    payload = fields[b"payload"]
    damaged = fields | {b"payload": payload[:-1] + bytes([payload[-1] ^ 1])}
    connect(redis_server).xadd(names.log, damaged)

    with pytest.raises(CorruptState, match="sha256"):
        learn_all(made)

    assert Checkpoints(made).oldest.consumed <= 2


# Trouble around it


async def test_a_full_disk_is_waited_out(
    settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = settings()
    await append_all(made, batches(5))
    write, refusals = directory.write, iter(range(3))

    def full_at_first(*arguments: object, **options: object) -> directory.StoredDirectory:
        if next(refusals, None) is not None:
            raise OSError(28, "No space left on device")
        return write(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(directory, "write", full_at_first)

    assert learn_all(made).progress.consumed == 5


async def test_an_outcome_that_could_not_be_told_is_told_after_a_restart(
    settings: MakeSettings, monkeypatch: pytest.MonkeyPatch, redis_server: str
) -> None:
    made = settings()
    receipts = await append_all(made, batches(3))
    part = Learning(made, ToyEngines(), redis_server, WorkerMetrics(CollectorRegistry()))
    part.restore()
    for raw in part.read(count=8, block_ms=10):
        part.learn(raw)

    def away(*_: object, **__: object) -> None:
        raise Unavailable("redis_unavailable", "away")

    with monkeypatch.context() as patched:
        patched.setattr(part._log, "tell", away)
        with pytest.raises(Unavailable):
            part.save()
    part.close()
    [before] = await statuses(made, [receipts[0].batch_id])
    learn_all(made)
    [after] = await statuses(made, [receipts[0].batch_id])

    assert before is not None
    assert before.state == "queued"
    assert after is not None
    assert after.state == "learned"


def test_the_metrics_listener_answers_while_it_is_open(state_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    registry = CollectorRegistry()
    WorkerMetrics(registry).of("default")

    with (
        process._listener(Settings(state_dir=state_dir, worker_metrics_port=port), registry),
        urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer,
    ):
        text = answer.read().decode()

    assert 'levit_stream_gap_entries{stream="default"} 0.0' in text
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)


def test_a_taken_metrics_port_is_named_with_its_setting(state_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        settings = Settings.read(state_dir=state_dir, worker_metrics_port=port)

        with (
            pytest.raises(OSError, match=rf"LEVIT_WORKER_METRICS_PORT: .*127\.0\.0\.1:{port}"),
            process._listener(settings, CollectorRegistry()),
        ):
            pass


class Clock:
    """A monotonic clock that stands still unless it is moved."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("cost_s", "later_s", "affordable", "due"),
    [
        (2, 37.9, False, False),
        (2, 38.1, True, True),
        (0.1, 1.8, False, False),
        (0.1, 2.0, True, False),
        (0.1, 10.1, True, True),
    ],
)
def test_a_pace_keeps_its_interval_and_19_times_its_cost(
    monkeypatch: pytest.MonkeyPatch, cost_s: float, later_s: float, affordable: bool, due: bool
) -> None:
    monkeypatch.setattr(loop, "SHARE", 0.05)
    clock = Clock()
    monkeypatch.setattr(loop, "time", clock)
    pace = Pace(interval_s=10)

    with pace.measured():
        clock.now += cost_s
    clock.now += later_s

    assert (pace.affordable, pace.due) == (affordable, due)
