"""A purged key: what it wrote leaves the learner for good, whatever crashes, and nothing else."""

import asyncio
import random
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from service import purging, retrain
from service.metrics import WorkerMetrics
from service.purging import IDEMPOTENCY_KEY, Purge, purge
from service.settings import Settings
from service.store.append import Appender, batch_id_of
from service.store.decisions import Decision, Decisions
from service.store.declared import settings_of
from service.store.entry import BatchStatus
from service.store.history import History
from service.store.keys import Key, create_key, revoke_key
from service.store.link import connect
from service.store.names import STREAMS
from service.store.submission import Submission
from service.worker import loop
from service.worker.canary import Canary
from service.worker.checkpoints import Checkpoint, Checkpoints
from service.worker.learning import Learning
from service.worker.loop import Pace
from service.worker.writers import Writers
from tests.conftest import MakeSettings
from tests.log_entries import append_all, batches, digest, late, refused_batch
from tests.test_cli import levit
from tests.toy_engine import ToyEngines
from tests.toy_learning import learn_all

GOOD = "a" * 12


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let checkpoints come at every fifth look, and no expansion clear the memory."""
    looks = iter(range(10**9))
    monkeypatch.setattr(Pace, "due", property(lambda _: next(looks) % 5 == 0))
    monkeypatch.setattr(Pace, "affordable", True)
    monkeypatch.setattr(loop, "BLOCK_MS", 1)
    monkeypatch.setattr("tests.toy_engine.MOST_FROZEN", 0)


@pytest.fixture
def bad(state_dir: Path) -> Key:
    """A key that was revoked."""
    key, _ = create_key(state_dir, name="bad", scopes=["observe"])
    return revoke_key(state_dir, key.id)


def of_both(bad: Key, count: int, *, seed: int = 0) -> list[Submission]:
    """Return batches of four samples, every third of the bad key; some have no labels."""
    return [
        replace(one, key_id=bad.id if number % 3 == 1 else GOOD, idempotency_key=f"{number:020}")
        for number, one in enumerate(batches(count, seed=seed))
    ]


def labelled(stream: list[Submission], key: Key) -> int:
    return sum(one.n for one in stream if one.key_id == key.id and one.distinct_labels)


def writers(checkpoint: Checkpoint) -> list[int]:
    """Return who wrote the members of the replay memory, by number."""
    return [writer for _, writer in checkpoint.state.values["writers"]]


async def ordered(settings: Settings, key: Key) -> None:
    """Order a purge, and do not wait for it."""
    assert settings.redis_url is not None
    appender = Appender(settings.redis_url, settings)
    try:
        await appender.append(purging._order(key))
    finally:
        await appender.close()


async def told(settings: Settings, key: Key) -> BatchStatus:
    appender = Appender(str(settings.redis_url), settings)
    try:
        status = await appender.status(batch_id_of(f"{key.id}:{IDEMPOTENCY_KEY}"))
    finally:
        await appender.close()
    assert status is not None
    return status


async def test_everything_that_is_kept_is_taken_back_and_nothing_of_others(
    settings: MakeSettings, bad: Key
) -> None:
    made, stream = settings(), of_both(bad, 40)
    await append_all(made, stream)
    assert 1 in writers(learn_all(made))
    await ordered(made, bad)

    after = learn_all(made)

    status = await told(made, bad)
    assert status.state == "learned"
    assert status.purged is not None
    assert status.purged["replay"] > 0
    assert status.purged["unlearned"] == labelled(stream, bad)
    assert status.purged["remaining"] == 0
    assert set(writers(after)) == {0}


async def test_what_is_kept_no_longer_is_counted(settings: MakeSettings, bad: Key) -> None:
    made, stream = settings(log_archive=False, checkpoints_kept=1), of_both(bad, 40)
    await append_all(made, stream[:30])
    learn_all(made)
    await append_all(made, stream[30:])
    await ordered(made, bad)

    learn_all(made)

    purged = (await told(made, bad)).purged
    assert purged is not None
    assert purged["unlearned"] + purged["remaining"] == labelled(stream, bad)
    assert purged["remaining"] > labelled(stream[:20], bad) > 0


@pytest.mark.parametrize("kept", [True, False])
async def test_what_was_decided_is_decided_anew_only_where_the_entries_are_gone(
    settings: MakeSettings, bad: Key, *, kept: bool
) -> None:
    made = settings(log_archive=kept, checkpoints_kept=1)
    await append_all(made, of_both(bad, 40))
    learn_all(made)
    await ordered(made, bad)
    before = Decision(kind="unlearn", after=0, until=41, reason="a purge before a crash")
    Decisions(made.state_dir).add(before)

    learn_all(made)

    found = Decisions(made.state_dir).unlearns(41)
    assert found is not None
    assert (found == 0) == kept


async def test_a_worker_that_dies_again_and_again_purges_the_same(
    settings: MakeSettings, bad: Key, tmp_path: Path
) -> None:
    whole, broken = settings(), settings(state_dir=tmp_path / "other")
    expected = await _purged_in_the_middle(whole, bad, lives=0)
    connect(str(whole.redis_url)).flushall()

    assert await _purged_in_the_middle(broken, bad, lives=15) == expected


async def _purged_in_the_middle(made: Settings, bad: Key, *, lives: int) -> tuple[object, ...]:
    stream, moments = of_both(bad, 60), random.Random(3)  # noqa: S311  no secret
    await append_all(made, stream[:30])
    await ordered(made, bad)
    await append_all(made, stream[30:])
    for _ in range(lives):
        _lives_shortly(made, moments)
    checkpoint = learn_all(made)
    return digest(checkpoint.state), checkpoint.writers, (await told(made, bad)).purged


def _lives_shortly(made: Settings, moments: random.Random) -> None:
    metrics = WorkerMetrics(CollectorRegistry())
    with closing(Learning(made, ToyEngines(), str(made.redis_url), metrics)) as learning:
        learning.restore()
        for raw in learning.read(count=moments.randrange(1, 9), block_ms=1):
            learning.learn(raw)
            if moments.random() < 0.3:
                learning.save()


async def test_a_replay_purges_the_same(settings: MakeSettings, bad: Key) -> None:
    made = settings()
    await _purged_in_the_middle(made, bad, lives=5)

    met = _replayed(made).met

    assert met
    assert all(equal for _, equal in met)


async def test_a_replay_that_forgets_what_was_decided_differs(
    settings: MakeSettings, bad: Key, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control."""
    made = settings()
    await _purged_in_the_middle(made, bad, lives=0)
    monkeypatch.setattr(Decisions, "unlearns", lambda *_: None)

    assert not all(equal for _, equal in _replayed(made).met)


def _replayed(made: Settings) -> retrain.Replayed:
    past = retrain.remember(made)
    with closing(History(made.state_dir, str(made.redis_url))) as history:
        last = retrain.last_number(past, history)
        entries = history.entries(0, last)
        return retrain.replay(past, entries, ToyEngines(), history.entries)


async def test_of_a_purged_key_nothing_is_learned_any_more(
    settings: MakeSettings, bad: Key
) -> None:
    made, stream = settings(), of_both(bad, 12)
    await append_all(made, stream)
    await ordered(made, bad)
    await append_all(made, stream := of_both(bad, 24)[12:])

    after = learn_all(made)

    theirs = sum(one.key_id == bad.id for one in stream)
    assert after.progress.quarantined == theirs > 0
    assert 1 not in writers(after)


async def test_labels_that_come_later_teach_no_sample_of_a_purged_key(
    settings: MakeSettings, bad: Key
) -> None:
    made = settings()
    plain = batches(3)[2]
    assert not plain.distinct_labels
    first, second = await append_all(
        made, [replace(plain, key_id=bad.id), replace(plain, key_id=GOOD)]
    )
    await ordered(made, bad)
    (receipt,) = await append_all(
        made, [late({f"{first.batch_id}:0": 1, f"{second.batch_id}:0": 1})]
    )

    learn_all(made)

    appender = Appender(str(made.redis_url), made)
    status = await appender.status(receipt.batch_id)
    await appender.close()
    assert status is not None
    assert status.outcomes == ["late", "joined"]


async def test_samples_that_a_purged_key_has_labelled_are_unlearned(
    settings: MakeSettings, bad: Key
) -> None:
    made = settings()
    plain = replace(batches(3)[2], key_id=GOOD)
    (receipt,) = await append_all(made, [plain])
    given = {f"{receipt.batch_id}:{index}": 1 for index in range(3)}
    await append_all(made, [replace(late(given), key_id=bad.id)])
    await ordered(made, bad)

    learn_all(made)

    purged = (await told(made, bad)).purged
    assert purged == {"replay": 3, "unlearned": 3, "remaining": 0}


async def test_what_the_learner_refused_is_not_unlearned(settings: MakeSettings, bad: Key) -> None:
    made, stream = settings(), of_both(bad, 6)
    odd = refused_batch()
    await append_all(made, [*stream, replace(odd, key_id=bad.id)])
    await ordered(made, bad)

    learn_all(made)

    purged = (await told(made, bad)).purged
    assert purged is not None
    assert (purged["unlearned"], purged["remaining"]) == (labelled(stream, bad), 0)


async def test_going_back_does_not_take_a_purge_back(settings: MakeSettings, bad: Key) -> None:
    made = settings()
    await append_all(made, of_both(bad, 12))
    learn_all(made)
    await ordered(made, bad)
    before = learn_all(made)
    seq = Checkpoints(made).marks(12)[0]
    decided = Decision(kind="skip", after=12, until=13, reason="rolled_back", checkpoint=seq)
    Decisions(made.state_dir).add(decided)

    after = learn_all(made)

    assert after.progress.consumed == before.progress.consumed == 13
    assert after.progress.quarantined == 0
    assert set(writers(after)) == {0}


def test_an_order_is_set_aside_by_what_concerns_itself_alone(state_dir: Path) -> None:
    """Negative control: whatever is no order goes with the others."""
    decisions = Decisions(state_dir)
    decisions.add(Decision(kind="skip", after=1, until=5, reason="back", checkpoint=1))
    decisions.add(Decision(kind="skip", after=6, until=7, reason="deadly"))

    assert [decisions.skips(n, order=True) for n in (3, 7)] == [None, "deadly"]
    assert [decisions.skips(n) for n in (3, 7)] == ["back", "deadly"]


def test_the_canary_forgets_the_samples_of_a_purged_key(settings: MakeSettings) -> None:
    canary = Canary()
    canary.load(
        {
            "ids": [(1, 0), (2, 0)],
            "labels": [1, 1],
            "keys": [GOOD, "b" * 12],
            "known": [True, None],
            "first_seen": [(1, 0)],
            "labelled": 2,
        },
        {"0": np.zeros(1), "1": np.ones(1)},
    )

    canary.drop(GOOD)

    assert canary.facts()["keys"] == ["b" * 12]


def test_writers_are_numbered_as_they_came_also_after_a_restart() -> None:
    one, other = Writers(), Writers()
    for key in (GOOD, "b" * 12, GOOD):
        one.learned(key, 2)

    other.load(one.dump())

    assert [each.number(k) for each in (one, other) for k in (GOOD, "b" * 12, "c" * 12)] == [
        0,
        1,
        2,
    ] * 2


# The command line


def test_the_command_orders_at_once_and_tells_what_became_of_it(settings: MakeSettings) -> None:
    made = settings()
    where = {"LEVIT_STATE_DIR": str(made.state_dir), "LEVIT_REDIS_URL": str(made.redis_url)}
    bad, _ = create_key(made.state_dir, name="bad", scopes=["observe"])
    stream = of_both(bad, 9)
    asyncio.run(append_all(made, stream))

    (waiting,) = purge(made, revoke_key(made.state_dir, bad.id), wait_s=0)
    learn_all(made)
    done = levit("keys", "revoke", bad.id, "--purge", **where)

    assert waiting.status is not None
    assert waiting.told == (
        "stream default: waits for the worker; "
        f"GET /observations/{waiting.status.batch_id} will tell"
    )
    assert done.stdout == (
        f"key {bad.id} (bad) revoked\nstream default: 8 samples left the replay memory, "
        f"{labelled(stream, bad)} labelled ones were unlearned, 0 remain counted\n"
    )


def test_every_stream_that_the_key_could_write_to_is_purged(settings: MakeSettings) -> None:
    made = settings()
    redis = connect(str(made.redis_url))
    for name in ("one", "two"):
        redis.hset(STREAMS, name, "{}")
        asyncio.run(append_all(settings_of(made, name, {}), batches(2)))
    keys = [
        create_key(made.state_dir, name="bad", scopes=["observe"], streams=streams)[0]
        for streams in (None, ["two"])
    ]

    found = [[one.told for one in purge(made, key, wait_s=0)] for key in keys]

    assert [[one.split(":")[0] for one in each] for each in found] == [
        ["stream default", "stream one", "stream two"],
        ["stream two"],
    ]
    assert found[0][0] == "stream default: nothing was ever written"


def test_without_redis_the_key_is_revoked_and_the_purge_is_not_ordered(state_dir: Path) -> None:
    key, _ = create_key(state_dir, name="bad", scopes=["observe"])
    where = {"LEVIT_STATE_DIR": str(state_dir), "LEVIT_REDIS_URL": "redis://127.0.0.1:1/0"}

    done = levit("keys", "revoke", key.id, "--purge", **where)

    assert done.returncode == 1
    assert done.stdout == f"key {key.id} (bad) revoked\n"
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"state": "quarantined", "reason": "deadly"}, "set aside as batch b: deadly"),
        ({"state": "learned"}, "purged before"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_else_may_become_of_a_purge_is_told(facts: dict[str, Any], said: str) -> None:
    status = BatchStatus(batch_id="b", n=0, **facts)

    assert Purge(stream="s", status=status).told == f"stream s: {said}"
