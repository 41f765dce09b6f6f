"""The worker as a process: killed, stopped, started twice. The state it ends in is what counts.

The toy engine's bytes change with any entry lost, doubled or reordered; the negative controls show
that these tests can fail.
"""

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from service.engine.protocol import EngineState, Tensors
from service.settings import Settings
from service.store.entry import decode_payload
from service.store.link import connect
from service.store.names import DEFAULT as names
from service.store.server import EmbeddedServer, bundled_binary
from service.supervisor import child_environment
from service.timeline import Timeline
from service.worker.checkpoints import Checkpoint, Checkpoints
from tests.conftest import MakeSettings
from tests.log_entries import SCHEMA, append_all, batches, digest
from tests.toy_engine import ToyEngines

pytestmark = [pytest.mark.crash, pytest.mark.timeout(120)]

STREAM = batches(300, n=3)
OFTEN = {"checkpoint_interval_s": 0.02, "snapshot_interval_s": 0.02}


@contextmanager
def worker(
    settings: Settings, *, step_s: float = 0.0, flaw: str = "none"
) -> Iterator[subprocess.Popen[bytes]]:
    """A worker process that has started; killed at the end if it still runs."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.toy_worker", str(step_s), flaw],
        env=child_environment(settings),
        stderr=subprocess.PIPE,
        cwd=Path(__file__).parent.parent,
    ) as process:
        assert process.stderr is not None
        first_line = process.stderr.readline()
        assert b'"started"' in first_line or b"another worker" in first_line, first_line
        try:
            yield process
        finally:
            process.kill()


def newest(settings: Settings) -> Checkpoint | None:
    checkpoints = Checkpoints(settings)
    path = next(checkpoints.newest_first(), None)
    return None if path is None else checkpoints.read(path)


def consumed(settings: Settings) -> int:
    redis = connect(str(settings.redis_url))
    told = redis.hget(names.progress, "consumed")
    redis.close()
    return int(str(told.decode() if isinstance(told, bytes) else 0))


def wait_until_consumed(settings: Settings, entries: int, process: subprocess.Popen[bytes]) -> None:
    while consumed(settings) < entries:
        assert process.poll() is None
        time.sleep(0.01)


def finish(settings: Settings, *, flaw: str = "none") -> str:
    """Let a worker learn what is left; return the digest of its state."""
    with worker(settings, flaw=flaw) as process:
        wait_until_consumed(settings, len(STREAM), process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    checkpoint = newest(settings)
    assert checkpoint is not None
    return whole(checkpoint.state, checkpoint.timeline)


def whole(state: EngineState, timeline: Tensors) -> str:
    """Return the digest of a state and of its time line, but for the times."""
    counted = {name: timeline[name].tolist() for name in sorted(timeline) if name != "at_ms"}
    return f"{digest(state)} {counted}"


@pytest.fixture(scope="module")
def expected() -> str:
    """The digest of an engine that was given STREAM directly: no log, no worker, no crash."""
    engine, timeline = ToyEngines().create(Settings(), SCHEMA), Timeline()
    for number, one in enumerate(STREAM, start=1):
        timeline.add(0, one.n, engine.observe((number, 0), *decode_payload(one.payload)))
    return whole(engine.dump(), timeline.dump())


def kill_at_random_moments(settings: Settings, *, flaw: str = "none", kills: int = 8) -> None:
    """Kill so many workers in the middle of the stream, at least three of which came further."""
    moments = random.Random(0)  # noqa: S311  no secret
    further = 0
    while kills > 0 or further < 3:
        kills -= 1
        before = consumed(settings)
        with worker(settings, step_s=0.006, flaw=flaw) as process:
            time.sleep(moments.uniform(0.05, 0.3))
            process.kill()
            assert process.wait(5) == -signal.SIGKILL
        further += consumed(settings) > before
    assert consumed(settings) < len(STREAM)


async def test_killed_at_random_moments_it_ends_in_the_state_of_an_uninterrupted_run(
    settings: MakeSettings, expected: str
) -> None:
    made = settings(**OFTEN)
    await append_all(made, STREAM)

    kill_at_random_moments(made)

    assert finish(made) == expected


@pytest.mark.parametrize("flaw", ["generator", "memory", "timeline"])
async def test_a_worker_that_forgets_something_ends_in_another_state(
    settings: MakeSettings, expected: str, flaw: str
) -> None:
    made = settings(**OFTEN)
    await append_all(made, STREAM)

    kill_at_random_moments(made, flaw=flaw, kills=3)

    assert finish(made, flaw=flaw) != expected


async def test_on_sigterm_it_ends_the_entry_saves_and_exits_0(settings: MakeSettings) -> None:
    made = settings(checkpoint_interval_s=1000)
    await append_all(made, STREAM[:20])

    with worker(made, step_s=0.2) as process:
        await asyncio.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0

    checkpoint = newest(made)
    assert checkpoint is not None
    assert 1 <= checkpoint.progress.consumed <= 6
    assert checkpoint.state.values["step"] == checkpoint.progress.consumed == consumed(made)


async def test_a_second_worker_exits_75_and_a_killed_one_makes_room_at_once(
    settings: MakeSettings,
) -> None:
    made = settings()

    with worker(made) as first:
        with worker(made) as second:
            assert second.wait(5) == 75
        os.kill(first.pid, signal.SIGKILL)
        first.wait(5)
    with worker(made) as third:
        third.send_signal(signal.SIGTERM)
        assert third.wait(5) == 0


async def test_a_redis_that_is_killed_and_comes_back_is_waited_for(tmp_path: Path) -> None:
    made = Settings(state_dir=tmp_path, worker_metrics_port=0)
    server = EmbeddedServer(made, bundled_binary())
    server.start()
    with_url = made.model_copy(update={"redis_url": server.url})
    await append_all(with_url, STREAM[:20])

    with worker(with_url) as process:
        wait_until_consumed(with_url, 20, process)
        os.kill(connect(server.url).info("server")["process_id"], signal.SIGKILL)
        await asyncio.sleep(0.5)
        server.start()
        await append_all(with_url, STREAM[20:30])
        wait_until_consumed(with_url, 30, process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    server.stop()

    checkpoint = newest(with_url)
    assert checkpoint is not None
    assert checkpoint.state.values["step"] == 30


async def test_on_sigterm_without_redis_it_still_exits_0(tmp_path: Path) -> None:
    made = Settings(state_dir=tmp_path, worker_metrics_port=0)

    with worker(made) as process:
        await asyncio.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


async def test_with_a_gap_in_the_log_it_stops_learning_and_exits_65_when_asked(
    settings: MakeSettings, redis_server: str
) -> None:
    made = settings()
    await append_all(made, STREAM[:10])
    connect(redis_server).xtrim(names.log, maxlen=5, approximate=False)

    with worker(made) as process:
        await asyncio.sleep(0.5)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(5) == 65

    assert newest(made) is None
    assert consumed(made) == 0
