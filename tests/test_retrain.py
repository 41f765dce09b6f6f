"""`levit replay`: the past learned once more ends in the bytes that were kept, or says so.

A real worker on a real Redis with the toy engine, whose bytes tell what was lost or doubled.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from safetensors.numpy import load_file
from typer.testing import CliRunner, Result

from service import cli, cli_log, retrain
from service.engine.digest import digest
from service.errors import CorruptState, IncompleteHistory
from service.metrics import WorkerMetrics
from service.settings import Settings
from service.store import directory, segments
from service.store.decisions import Decision, Decisions
from service.store.history import History
from service.store.link import connect
from service.store.names import DEFAULT as names
from service.store.submission import Receipt
from service.worker import loop
from service.worker.checkpoints import Checkpoint, Checkpoints
from service.worker.loop import Pace
from tests.conftest import MakeSettings
from tests.log_entries import append_all, batches, refused_batch
from tests.toy_engine import ToyEngines
from tests.toy_learning import StopsWhenIdle

Levit = Callable[..., Result]


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let checkpoints come at every tenth look, whatever they cost, and files be small."""
    looks = iter(range(10**9))
    monkeypatch.setattr(Pace, "due", property(lambda _: next(looks) % 10 == 0))
    monkeypatch.setattr(Pace, "affordable", True)
    monkeypatch.setattr(loop, "BLOCK_MS", 1)
    monkeypatch.setattr(segments, "SEGMENT_BYTES", 20_000)


def learn(made: Settings) -> Checkpoint:
    """Let a worker learn the log; return its last checkpoint."""
    worker = StopsWhenIdle(made, ToyEngines(), WorkerMetrics(CollectorRegistry()))
    try:
        worker.run()
    finally:
        worker.close()
    checkpoints = Checkpoints(made)
    return checkpoints.read(next(checkpoints.newest_first()))


def append_again(made: Settings, receipt: Receipt) -> None:
    """Put a batch into the log once more, as a retry does whose records are gone."""
    redis: Any = connect(str(made.redis_url))
    (_, fields), *_ = redis.xrange(names.log, receipt.position, receipt.position)
    redis.xadd(names.log, fields)
    redis.close()


@pytest.fixture
async def lived(settings: MakeSettings) -> tuple[Settings, Checkpoint]:
    """A state directory with all that can happen: refusals, repeats, skips and a rollback."""
    made = settings()
    stream = batches(60)
    receipts = await append_all(made, [*stream[:20], refused_batch(), *stream[20:40]])
    append_again(made, receipts[3])
    Decisions(made.state_dir).add(Decision(kind="skip", after=29, until=31, reason="it kills"))
    learn(made)
    await append_all(made, stream[40:50])
    learn(made)
    mark = next(Checkpoints(made).newest_first())
    consumed = Checkpoints(made).read(mark).progress.consumed
    await append_all(made, stream[50:])
    learn(made)
    back = Decision(
        kind="skip",
        after=consumed + 2,
        until=consumed + 5,
        reason="rolled back",
        checkpoint=int(mark.name.removeprefix("ckpt-")),
    )
    Decisions(made.state_dir).add(back)
    Decisions(made.state_dir).add(
        Decision(kind="expand", after=consumed + 8, until=consumed + 8, reason="asked")
    )
    return made, learn(made)


def replayed(made: Settings, until: int | None = None) -> retrain.Replayed:
    past = retrain.remember(made)
    history = History(made.state_dir, str(made.redis_url))
    try:
        last = until or retrain.last_number(past, history)
        return retrain.replay(past, history.entries(0, last), ToyEngines(), history.entries)
    finally:
        history.close()


def everything_in(path: Path) -> dict[str, str]:
    """Return the hash of every file."""
    files = [one for one in path.rglob("*") if one.is_file()]
    return {str(one): hashlib.sha256(one.read_bytes()).hexdigest() for one in files}


# The same bytes


def test_the_fixture_has_archived_and_trimmed_most_of_its_log(
    lived: tuple[Settings, Checkpoint], redis_server: str
) -> None:
    made, checkpoint = lived
    redis: Any = connect(redis_server)

    assert checkpoint.progress.consumed == 62
    assert checkpoint.progress.repeated == 1
    assert checkpoint.progress.quarantined == 1 + 2 + 3
    assert redis.xlen(names.log) < 50
    assert len(segments.segments(made.state_dir / "archive")) >= 1
    redis.close()


def test_replay_ends_in_the_state_of_the_worker(lived: tuple[Settings, Checkpoint]) -> None:
    made, checkpoint = lived

    done = replayed(made)

    assert done.progress == checkpoint.progress
    assert done.sha256 == digest(checkpoint.state)
    assert len(done.summary.experts) == len(checkpoint.summary["experts"])
    assert [equal for _, equal in done.met] == [True] * len(done.met)
    assert done.met[-1][0].number == 62
    for name, array in checkpoint.recent.items():
        assert done.recent[name].tolist() == array.tolist()


def test_replay_that_ignores_the_decisions_ends_elsewhere(
    lived: tuple[Settings, Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Decisions, "skips", lambda *_, **__: None)

    done = replayed(lived[0])

    assert done.sha256 != digest(lived[1].state)
    assert not done.met[-1][1]


def test_replay_that_learns_repeats_ends_elsewhere(
    lived: tuple[Settings, Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.worker.recent.RecentBatches.step_of", lambda *_: None)

    assert not replayed(lived[0]).met[-1][1]


def test_replay_with_another_seed_ends_elsewhere(lived: tuple[Settings, Checkpoint]) -> None:
    made, _ = lived
    past = retrain.remember(made)
    other = replace(past, settings=past.settings.model_copy(update={"seed": 1}))
    history = History(made.state_dir, str(made.redis_url))

    done = retrain.replay(other, history.entries(0, 62), ToyEngines(), history.entries)

    assert not done.met[-1][1]
    history.close()


def test_the_recorded_settings_win_over_those_of_this_process(
    lived: tuple[Settings, Checkpoint],
) -> None:
    made, _ = lived
    elsewhere = made.model_copy(update={"seed": 7, "worker_threads": 9, "preset": "paper"})

    past = retrain.remember(elsewhere)

    assert past.settings.learner == made.learner
    assert past.settings.learner_threads == made.learner_threads
    assert past.other_environment == {}


def test_a_checkpoint_that_a_later_decision_concerns_is_not_compared(
    settings: MakeSettings, lived: tuple[Settings, Checkpoint]
) -> None:
    made, _ = lived
    met = retrain.remember(made).kept
    assert met

    Decisions(made.state_dir).add(Decision(kind="skip", after=60, until=62, reason="too late"))

    assert all(one.number <= 60 for one in retrain.remember(made).kept)


async def test_a_damaged_checkpoint_is_not_compared(lived: tuple[Settings, Checkpoint]) -> None:
    made, _ = lived
    before = retrain.remember(made).kept
    newest = sorted((made.state_dir / "checkpoints").iterdir())[-1]
    (newest / "training.safetensors").write_bytes(b"damaged")

    assert retrain.remember(made).kept == before[:-1]


# The command


@pytest.fixture
def levit(monkeypatch: pytest.MonkeyPatch, redis_server: str) -> Levit:
    """Run a command of `levit` in this process, with the toy engine."""
    monkeypatch.setattr(cli_log, "load_engines", lambda _: ToyEngines())
    monkeypatch.setenv("LEVIT_REDIS_URL", redis_server)

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(cli.app, arguments, catch_exceptions=True)

    return run


def test_the_command_says_what_it_found_and_changes_nothing(
    lived: tuple[Settings, Checkpoint], levit: Levit
) -> None:
    made, checkpoint = lived
    before = everything_in(made.state_dir)

    result = levit("replay", "--state-dir", str(made.state_dir))

    assert result.exit_code == 0
    said = dict(line.split(maxsplit=1) for line in result.stdout.splitlines()[:3])
    assert said["entries"].startswith("62, the last at position ")
    assert f"sha256     {digest(checkpoint.state)}" in result.stdout
    assert "after entry 62: equal, bit by bit" in result.stdout
    assert everything_in(made.state_dir) == before


def test_a_difference_is_exit_code_1(
    lived: tuple[Settings, Checkpoint], levit: Levit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Decisions, "expands", lambda *_: False)

    result = levit("replay", "--state-dir", str(lived[0].state_dir))

    assert result.exit_code == 1
    assert "after entry 62: DIFFERENT" in result.stdout


def test_a_part_of_the_past_has_nothing_to_compare_with(
    lived: tuple[Settings, Checkpoint], levit: Levit
) -> None:
    result = levit("replay", "--state-dir", str(lived[0].state_dir), "--until", "5")

    assert result.exit_code == 0
    assert "learned    5" in result.stdout
    assert "nothing to compare with" in result.stdout


def test_the_state_is_written_in_files_as_of_a_checkpoint(
    lived: tuple[Settings, Checkpoint], levit: Levit, tmp_path: Path
) -> None:
    made, checkpoint = lived

    out = tmp_path / "out"
    result = levit("replay", "--state-dir", str(made.state_dir), "--out", str(out))

    assert result.exit_code == 0
    stored = directory.open_directory(out)
    assert stored.facts["progress"]["consumed"] == 62
    for name in stored.files:
        stored.read(name)
    chain = load_file(out / "training.safetensors")["chain"]
    assert chain.tolist() == checkpoint.state.training["chain"].tolist()


@pytest.mark.parametrize("place", ["exists", "inside"])
def test_the_state_is_not_written_over_anything(
    lived: tuple[Settings, Checkpoint], levit: Levit, tmp_path: Path, place: str
) -> None:
    made, _ = lived
    out = tmp_path if place == "exists" else made.state_dir / "replay"

    result = levit("replay", "--state-dir", str(made.state_dir), "--out", str(out))

    assert type(result.exception).__name__ == "SettingsError"
    assert str(out) in str(result.exception)


# Refusing


def test_without_an_archive_a_trimmed_log_is_refused(
    lived: tuple[Settings, Checkpoint], levit: Levit
) -> None:
    made, _ = lived
    for path in segments.segments(made.state_dir / "archive"):
        path.unlink()

    result = levit("replay", "--state-dir", str(made.state_dir))

    assert isinstance(result.exception, IncompleteHistory)
    assert "entries 1 to " in str(result.exception)
    assert " at position 1" in str(result.exception)


def test_a_flipped_byte_in_the_archive_is_refused(lived: tuple[Settings, Checkpoint]) -> None:
    made, _ = lived
    path = segments.segments(made.state_dir / "archive")[0]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)

    with pytest.raises(CorruptState, match=f"entry [0-9]+ in .*{path.name}"):
        replayed(made)


def test_a_decision_that_was_taken_out_is_refused(lived: tuple[Settings, Checkpoint]) -> None:
    made, _ = lived
    path = made.state_dir / "decisions.jsonl"
    first, *others = path.read_bytes().splitlines(keepends=True)
    assert json.loads(first)["kind"] == "skip"
    path.write_bytes(b"".join(others))

    with pytest.raises(CorruptState, match="line 1 of"):
        retrain.remember(made)


async def test_an_empty_log_is_refused(settings: MakeSettings) -> None:
    with pytest.raises(IncompleteHistory, match="no entry"):
        replayed(settings())
