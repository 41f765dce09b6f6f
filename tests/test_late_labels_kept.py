"""Late labels with a real worker on a real Redis: crashes, replays, rollbacks, forks and outcomes
change nothing; and the files of checkpoints in which waiting samples lie."""

import random
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as bounded
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from service import retrain
from service.engine.protocol import Label, Tensors
from service.metrics import WorkerMetrics
from service.settings import Settings
from service.store import directory, forks
from service.store.append import Appender
from service.store.decisions import Decision, Decisions
from service.store.directory import StoredDirectory
from service.store.entry import BatchStatus
from service.store.history import History
from service.store.link import connect
from service.store.names import DEFAULT as names
from service.worker import loop
from service.worker.checkpoints import Checkpoint, Checkpoints
from service.worker.learning import Learning
from service.worker.loop import Pace
from service.worker.waiting import WaitingState
from service.worker.waiting_files import WaitingFiles, read_waiting, waiting_files
from tests.conftest import MakeSettings
from tests.late_streams import append_with_late_labels, images
from tests.log_entries import append_all, batches, digest, late, submission
from tests.toy_engine import ToyEngines
from tests.toy_learning import learn_all

BOUNDS = {"label_window": 20, "label_window_bytes": 3000}


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let checkpoints come at every fifth look, whatever they cost."""
    looks = iter(range(10**9))
    monkeypatch.setattr(Pace, "due", property(lambda _: next(looks) % 5 == 0))
    monkeypatch.setattr(Pace, "affordable", True)
    monkeypatch.setattr(loop, "BLOCK_MS", 1)


def everything(checkpoint: Checkpoint) -> tuple[object, ...]:
    """Return what two learners that read the same log must agree in."""
    window = checkpoint.waiting
    arrays = {name: array.tobytes() for name, array in window.arrays.items()}
    return digest(checkpoint.state), dict(window.facts), arrays, dict(window.payloads)


def replayed(made: Settings) -> retrain.Replayed:
    past = retrain.remember(made)
    with closing(History(made.state_dir, str(made.redis_url))) as history:
        last = retrain.last_number(past, history)
        return retrain.replay(past, history.entries(0, last), ToyEngines(), history.entries)


async def outcome(made: Settings, batch_id: str) -> BatchStatus:
    appender = Appender(str(made.redis_url), made)
    try:
        status = await appender.status(batch_id)
    finally:
        await appender.close()
    assert status is not None
    return status


# The same learner, whatever happens


@pytest.mark.parametrize("seed", range(2))
async def test_a_worker_that_dies_again_and_again_ends_in_the_same_state(
    settings: MakeSettings, tmp_path: Path, seed: int
) -> None:
    whole, broken = settings(**BOUNDS), settings(**BOUNDS, state_dir=tmp_path / "other")
    await append_with_late_labels(whole, 60)
    expected = everything(learn_all(whole))
    connect(str(whole.redis_url)).flushall()
    await append_with_late_labels(broken, 60)
    moments = random.Random(seed)  # noqa: S311  no secret

    for _ in range(20):
        lives_shortly(broken, moments)

    assert everything(learn_all(broken)) == expected


def lives_shortly(made: Settings, moments: random.Random) -> None:
    """Let a worker learn a few entries, and die behind any one of them, before a checkpoint or
    after it."""
    metrics = WorkerMetrics(CollectorRegistry())
    with closing(Learning(made, ToyEngines(), str(made.redis_url), metrics)) as learning:
        learning.restore()
        for raw in learning.read(count=moments.randrange(1, 8), block_ms=1):
            learning.learn(raw)
            if moments.random() < 0.3:
                learning.save()


async def test_a_replay_joins_the_same_labels(settings: MakeSettings) -> None:
    made = settings(**BOUNDS)
    await append_with_late_labels(made, 60)
    checkpoint = learn_all(made)

    again = replayed(made)

    assert checkpoint.waiting.facts["counts"]["joined"] > 20
    assert checkpoint.waiting.facts["counts"]["late"] > 0
    assert len(again.met) > 1
    assert all(equal for _, equal in again.met)
    assert again.sha256 == digest(checkpoint.state)


async def test_a_replay_with_another_window_differs(settings: MakeSettings) -> None:
    made = settings(label_window=20)
    await append_with_late_labels(made, 60)
    checkpoint = learn_all(made)
    past = retrain.remember(made)
    other = retrain.Past(
        settings=past.settings.model_copy(update={"label_window": 1}),
        kept=past.kept,
        decisions=past.decisions,
        other_environment={},
    )

    with closing(History(made.state_dir, str(made.redis_url))) as history:
        again = retrain.replay(
            other, history.entries(0, past.kept[-1].number), ToyEngines(), history.entries
        )

    assert again.sha256 != digest(checkpoint.state)


async def test_a_rollback_brings_back_the_samples_that_waited(settings: MakeSettings) -> None:
    made = settings(checkpoints_kept=20)
    await append_with_late_labels(made, 30)
    learn_all(made)
    mark = list(Checkpoints(made).newest_first())[3]
    consumed = Checkpoints(made).read(mark).progress.consumed
    back = Decision(
        kind="skip",
        after=consumed,
        until=consumed + 2,
        reason="rolled back",
        checkpoint=int(mark.name.removeprefix("ckpt-")),
    )
    Decisions(made.state_dir).add(back)

    gone_back = learn_all(made)

    assert replayed(made).sha256 == digest(gone_back.state)


async def test_a_fork_joins_labels_to_what_was_observed_before_it(
    settings: MakeSettings, other_server: str, tmp_path: Path
) -> None:
    made = settings()
    receipts = await append_all(made, [*batches(4), submission(images(7))])
    learn_all(made)
    chosen = str(Checkpoints(made).newest_seq)
    forks.fork(made.state_dir, chosen, tmp_path / "fork", str(made.redis_url))
    fork = settings(state_dir=tmp_path / "fork", redis_url=other_server)

    learn_all(fork)
    [given_] = await append_all(fork, [late({f"{receipts[-1].batch_id}:1": 2})])
    learn_all(fork)

    assert (await outcome(fork, given_.batch_id)).labels == counts(joined=1)


# What clients are told


async def test_the_outcome_of_each_label_can_be_read_afterwards(settings: MakeSettings) -> None:
    made = settings()
    receipts = await append_all(made, [submission(images(1)), *batches(1)])
    first, second = (one.batch_id for one in receipts)
    given_: dict[str, Label] = {f"{first}:0": 2, f"{'0' * 32}:0": 2, f"{second}:0": 1}
    [labels] = await append_all(made, [late(given_)])

    queued = await outcome(made, labels.batch_id)
    learn_all(made)
    told = await outcome(made, labels.batch_id)

    assert (queued.state, queued.labels) == ("queued", None)
    assert (told.state, told.n, told.step) == ("learned", 3, 3)
    assert told.labels == counts(joined=1, unknown=1, doubled=1)
    assert told.results == "jud"


async def test_a_retry_of_labels_is_one_entry_with_one_outcome(settings: MakeSettings) -> None:
    made = settings()
    [batch] = await append_all(made, [submission(images(1))])
    labels = late({f"{batch.batch_id}:0": 2}, key="k" * 20)

    first, second = await append_all(made, [labels, labels])
    checkpoint = learn_all(made)

    assert second.replayed
    assert first.batch_id == second.batch_id
    assert checkpoint.progress.consumed == 2
    assert (await outcome(made, first.batch_id)).labels == counts(joined=1)


async def test_a_retry_of_labels_without_records_is_recognised(settings: MakeSettings) -> None:
    made = settings()
    [batch] = await append_all(made, [submission(images(1))])
    labels = late({f"{batch.batch_id}:0": 2}, key="k" * 20)
    [first] = await append_all(made, [labels])
    redis: Any = connect(str(made.redis_url))
    redis.delete(names.idempotency(str(labels.client_key)), names.batch(first.batch_id))
    await append_all(made, [labels])

    checkpoint = learn_all(made)

    assert checkpoint.progress.repeated == 1
    assert checkpoint.waiting.facts["counts"] == counts(joined=1)


def counts(**found: int) -> dict[str, int]:
    return {"joined": 0, "late": 0, "unknown": 0, "doubled": 0} | found


# The files


def files_of(payloads: dict[int, bytes], earlier: StoredDirectory | None, seq: int) -> WaitingFiles:
    """Return the files where every entry is known, and those with a payload wait."""
    known = range(1, max(payloads, default=0) + 1)
    arrays: Tensors = {
        "numbers": np.array(known, np.int64),
        "ids": np.array(known, np.int64).repeat(2).view(np.uint8).reshape(-1, 16),
        "keys": np.zeros((len(known), 8), np.uint8),
        "kinds": np.zeros(len(known), np.uint8),
        "samples": np.ones(len(known), np.int64),
        "waiting": np.array([number in payloads for number in known], np.uint8),
    }
    return waiting_files(WaitingState(facts={}, arrays=arrays, payloads=payloads), earlier, seq)


def written(
    path: Path, payloads: dict[int, bytes], earlier: StoredDirectory | None, seq: int
) -> StoredDirectory:
    files = files_of(payloads, earlier, seq)
    return directory.write(path / str(seq), files.contents, files.facts, linked=files.linked)


@bounded(deadline=None, max_examples=20)
@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 60)), min_size=1, max_size=25),
    st.randoms(use_true_random=False),
)
def test_files_hold_what_waits_and_little_else(
    tmp_path_factory: pytest.TempPathFactory, moves: list[tuple[int, int]], chance: random.Random
) -> None:
    path = tmp_path_factory.mktemp("files")
    payloads: dict[int, bytes] = {}
    stored: StoredDirectory | None = None
    number = 0
    for seq, (more, less) in enumerate(moves, 1):
        for _ in range(more):
            number += 1
            payloads[number] = bytes([number % 256]) * chance.randrange(200, 3000)
        for gone in chance.sample(sorted(payloads), min(less, len(payloads))):
            del payloads[gone]

        stored = written(path, payloads, stored, seq)

        assert read_waiting(stored).payloads == payloads
        worth = sum(map(len, payloads.values()))
        headers = 200 * (number + 2)
        assert stored.size <= 2 * worth + headers
        assert len(stored.files) <= 3 + max(1, worth // 200).bit_length()


def test_what_a_file_holds_already_is_linked_to(tmp_path: Path) -> None:
    payloads = {number: bytes([number]) * 1000 for number in range(1, 65)}
    first = written(tmp_path, payloads, None, 1)
    payloads[65] = b"x" * 1000

    second = written(tmp_path, payloads, first, 2)

    name = "waiting-00000001.safetensors"
    assert (second.path / name).stat().st_ino == (first.path / name).stat().st_ino
    assert second.files["waiting-00000002.safetensors"].size < 1200


def test_each_payload_is_written_a_few_times_only(tmp_path: Path) -> None:
    stored, payloads, written_bytes = None, dict[int, bytes](), 0
    for number in range(1, 257):
        payloads[number] = bytes([number % 256]) * 1000
        files = files_of(payloads, stored, number)
        written_bytes += sum(len(one) for name, one in files.contents.items() if "-" in name)
        stored = written(tmp_path, payloads, stored, number)

    assert written_bytes < 1100 * 256 * 10  # log2 of 256, and two
