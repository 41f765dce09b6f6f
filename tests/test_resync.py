"""A loss of the log: counted exactly, accepted only as it is, and then gone on from."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from service.errors import CorruptState, Misused
from service.metrics import WorkerMetrics
from service.settings import Settings
from service.store import directory
from service.store.archive import Archive, Mark
from service.store.entry import BatchStatus
from service.store.fence import Fence
from service.store.link import connect
from service.store.names import DEFAULT as names
from service.store.numbering import stream_facts
from service.store.read import Log
from service.store.resync import REASON, Loss, check_joined, settle, survey
from service.store.submission import Submission
from service.worker import loop
from service.worker.checkpoints import Checkpoints
from service.worker.learning import Learning
from service.worker.recent import RecentBatches
from service.worker.step import Progress
from tests.conftest import MakeSettings
from tests.log_entries import append_all, batches, claimed, digest
from tests.toy_engine import ToyEngines
from tests.toy_learning import learn_all, newest

STREAM = batches(60)
OLDEST, SAVED, REACHED, ACCEPTED = 10, 25, 30, 50
"""Entries in the oldest kept checkpoint, in the backup, in the newest checkpoint, and in all."""
FUTURE = "9999999999999-0"
"""A position that clocks reach in the year 2286: ids drawn later follow it."""


@pytest.fixture(autouse=True)
def _steady(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a checkpoint be made when there is nothing left to learn, and only then."""
    monkeypatch.setattr(loop, "BLOCK_MS", 1)
    monkeypatch.setattr("tests.toy_engine.EXPANSION_ODDS", 2**40)


@dataclass
class Damaged:
    """A stream that was learned up to an entry, and what was done to its log behind that."""

    server: Any  # its types are a union over protocols
    settings: Settings
    positions: list[str]
    """Of all entries; the first has number 1."""
    backup: bytes
    """The log as it was after `SAVED` entries."""
    more: list[Submission]
    """What is accepted after the damage."""

    def delete(self, *numbers: int) -> None:
        self.server.xdel(names.log, *(self.positions[number - 1] for number in numbers))

    def restore(self) -> None:
        self.server.restore(names.log, 0, self.backup, replace=True)
        self.server.set(names.accepted, SAVED)


Damage = Callable[[Damaged], object]


@dataclass(frozen=True)
class Case:
    damage: Damage
    lost: tuple[int, ...]
    """Numbers of the entries that are never learned."""
    ahead: int
    behind: int
    more: int = 0
    """Batches accepted after the damage."""
    future: bool = False
    """Whether the log was written while the clock was far ahead."""


UNREAD = tuple(range(REACHED + 1, ACCEPTED + 1))
CASES = {
    "entries ahead deleted": Case(lambda d: d.delete(33, 41), (33, 41), 2, 0),
    "the next entry deleted": Case(lambda d: d.delete(31), (31,), 1, 0),
    "the newest entry deleted": Case(lambda d: d.delete(50), (50,), 1, 0),
    "all entries ahead deleted": Case(lambda d: d.delete(*UNREAD), UNREAD, 20, 0, more=3),
    "entries behind deleted": Case(lambda d: d.delete(12, 13), (), 0, 2, more=1),
    "both deleted": Case(lambda d: d.delete(30, 31), (31,), 1, 1),
    "cut by MAXLEN": Case(
        lambda d: d.server.xtrim(names.log, maxlen=15, approximate=False),
        tuple(range(31, 36)),
        5,
        20,
    ),
    "the log deleted": Case(lambda d: d.server.delete(names.log), UNREAD, 20, 20),
    "the log begun anew": Case(lambda d: d.server.delete(names.log), UNREAD, 20, 20, more=6),
    "the log begun anew, soon longer than before": Case(
        lambda d: d.server.delete(names.log), UNREAD, 20, 20, more=60
    ),
    "the log begun anew under lower ids": Case(
        lambda d: d.server.delete(names.log), UNREAD, 20, 20, more=6, future=True
    ),
    "the end lost": Case(lambda d: d.restore(), UNREAD, 0, 5),
    "the end lost, then more": Case(lambda d: d.restore(), UNREAD, 0, 5, more=3),
    "the end lost, soon longer than before": Case(lambda d: d.restore(), UNREAD, 0, 5, more=40),
    "the end lost, then more under the same ids": Case(
        lambda d: d.restore(), UNREAD, 0, 5, more=3, future=True
    ),
}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


async def damaged(settings: Settings, case: Case) -> Damaged:
    assert settings.redis_url is not None
    server = connect(settings.redis_url)
    if case.future:
        server.xadd(names.log, {"a": "b"}, id=FUTURE)
        server.xdel(names.log, FUTURE)
        server.execute_command("XSETID", names.log, FUTURE, "ENTRIESADDED", 0)
    positions: list[str] = []
    backup = b""
    for start, end in ((0, 10), (10, 20), (20, 25), (25, 30), (30, 50)):
        positions += [str(r.position) for r in await append_all(settings, STREAM[start:end])]
        if end == SAVED:
            backup = bytes(server.dump(names.log) or b"")
        elif end <= REACHED:
            learn_all(settings)
    assert (Checkpoints(settings).oldest.consumed, backup != b"") == (OLDEST, True)
    more = batches(case.more, seed=1)
    found = Damaged(server, settings, positions, backup, more)
    case.damage(found)
    await append_all(settings, more)
    return found


def look(settings: Settings, fence: Fence) -> Loss:
    """Return the loss as the worker would find it that has restored the newest checkpoint."""
    recent, reached = RecentBatches(), newest(settings)
    recent.load(reached.recent)
    return survey(
        fence,
        _mark(Checkpoints(settings).oldest),
        _mark(reached.progress),
        lambda batch_id: recent.step_of(batch_id) is not None,
    )


def give_up(settings: Settings, accepted: int) -> Loss:
    """Accept a loss, as the worker would."""
    fence = claimed(str(settings.redis_url))
    loss = look(settings, fence)
    loss.check(accepted)
    if loss.closes_way_back:
        Archive(settings.state_dir, None).begin_anew()
        alone = Checkpoints(settings.model_copy(update={"checkpoints_kept": 1}))
        checkpoint = alone.read(next(alone.newest_first()))
        progress = replace(checkpoint.progress, position=loss.position)
        alone.write(replace(checkpoint, progress=progress), healthy_until=0)
    settle(fence, loss)
    return loss


def _mark(progress: Progress) -> Mark:
    return Mark(progress.consumed, progress.position)


def survivors(case: Case) -> list[Submission]:
    kept = [one for number, one in enumerate(STREAM[:ACCEPTED], 1) if number not in case.lost]
    return [*kept, *batches(case.more, seed=1)]


@pytest.fixture
def made(settings: MakeSettings) -> Settings:
    return settings()


@each_case
async def test_what_is_left_is_learned_as_if_the_rest_had_never_been(
    settings: MakeSettings, either_server: str, tmp_path: Path, case: Case
) -> None:
    made = settings(redis_url=either_server)
    other = settings(redis_url=either_server, state_dir=tmp_path / "other")
    found = await damaged(made, case)

    loss = give_up(made, case.ahead + case.behind)
    learned = learn_all(made)
    found.server.flushall()
    await append_all(other, survivors(case))
    expected = learn_all(other)

    assert (loss.ahead, loss.behind) == (case.ahead, case.behind)
    assert digest(learned.state) == digest(expected.state)
    assert replace(learned.progress, position="") == replace(expected.progress, position="")


@each_case
async def test_afterwards_the_books_are_right_for_those_who_come_later(
    made: Settings, case: Case
) -> None:
    await damaged(made, case)

    give_up(made, case.ahead + case.behind)

    (receipt,) = await append_all(made, [STREAM[-1]])
    fence = claimed(str(made.redis_url))
    oldest, reached = Checkpoints(made).oldest, newest(made).progress
    check_joined(fence, _mark(oldest), _mark(reached))
    assert Log(fence).gap(oldest.consumed, reached.consumed) == 0
    again = look(made, fence)
    assert (again.total, again.batches, again.closes_way_back) == (0, (), False)
    learned = learn_all(made)
    assert learned.progress.position == receipt.position
    assert learned.progress.consumed == REACHED + receipt.backlog


@each_case
async def test_any_other_number_is_refused_and_changes_nothing(made: Settings, case: Case) -> None:
    found = await damaged(made, case)
    before = {key: found.server.dump(key) for key in found.server.scan_iter()}

    for wrong in (case.ahead + case.behind + 1, case.ahead + case.behind - 1):
        with pytest.raises(Misused, match=f"expected {case.ahead + case.behind}, the entries"):
            give_up(made, wrong)

    after = {key: found.server.dump(key) for key in found.server.scan_iter()}
    assert {k: v for k, v in after.items() if k != names.epoch.encode()} == {
        k: v for k, v in before.items() if k != names.epoch.encode()
    }


@each_case
async def test_every_loss_is_noticed_before_anything_is_trimmed(made: Settings, case: Case) -> None:
    found = await damaged(made, case)
    fence = claimed(str(made.redis_url))
    oldest, reached = Checkpoints(made).oldest, newest(made).progress
    log = Log(fence)

    def notice() -> None:
        check_joined(fence, _mark(oldest), _mark(reached))
        log.trim(oldest.position)
        if gap := log.gap(oldest.consumed, reached.consumed):
            raise CorruptState(f"gap {gap}")

    before = found.server.xlen(names.log)
    with pytest.raises(CorruptState):
        notice()
    assert found.server.xlen(names.log) == before


async def test_counts_alone_do_not_notice_a_log_that_is_soon_long_again(
    made: Settings,
) -> None:
    await damaged(made, CASES["the end lost, soon longer than before"])
    oldest, reached = Checkpoints(made).oldest, newest(made).progress
    log = Log(claimed(str(made.redis_url)))

    log.trim(oldest.position)

    assert log.gap(oldest.consumed, reached.consumed) == 0


async def test_clients_of_lost_batches_read_why(made: Settings) -> None:
    found = await damaged(made, CASES["entries ahead deleted"])
    records: Any = [found.server.get(key) for key in found.server.scan_iter(names.batch("*"))]
    queued = [BatchStatus.from_record(one) for one in records if b"queued" in one]

    give_up(made, 2)
    learn_all(made)

    now = [
        BatchStatus.from_record(found.server.get(names.batch(one.batch_id)) or b"")
        for one in queued
    ]
    assert len(queued) == 20
    assert [one.reason for one in now if one.state != "learned"] == [REASON, REASON]


async def test_a_damaged_entry_can_be_given_up(
    made: Settings, settings: MakeSettings, tmp_path: Path
) -> None:
    other = settings(state_dir=tmp_path / "other")
    found = await damaged(made, Case(lambda _: None, (), 0, 0))
    [(_, fields)] = found.server.xrange(names.log, count=1)
    found.server.incr(names.accepted)
    found.server.xadd(names.log, fields | {b"payload": b"flipped"})
    await append_all(made, STREAM[ACCEPTED:])

    loss = give_up(made, 1)
    learned = learn_all(made)
    found.server.flushall()
    await append_all(other, STREAM)

    assert (loss.ahead, loss.behind, len(loss.damaged)) == (1, 0, 1)
    assert digest(learned.state) == digest(learn_all(other).state)


async def test_a_log_without_loss_stays_as_it_is(made: Settings) -> None:
    found = await damaged(made, Case(lambda _: None, (), 0, 0))
    before: Any = found.server.xinfo_stream(names.log)

    loss = give_up(made, 0)

    assert not loss.closes_way_back
    assert found.server.xinfo_stream(names.log) == before
    assert len(list(Checkpoints(made).newest_first())) == 3


async def test_older_checkpoints_stay_where_the_way_back_to_them_is_whole(
    made: Settings,
) -> None:
    await damaged(made, CASES["entries ahead deleted"])
    give_up(made, 2)
    for path in list(Checkpoints(made).newest_first())[:2]:
        directory.remove(path)

    learned = learn_all(made)

    assert learned.progress.consumed == ACCEPTED - 2


async def test_a_loss_that_grows_meanwhile_is_not_accepted(made: Settings) -> None:
    found = await damaged(made, CASES["entries ahead deleted"])
    fence = claimed(str(made.redis_url))
    loss = look(made, fence)

    found.delete(44)

    with pytest.raises(CorruptState, match="count once more"):
        settle(fence, loss)


async def test_a_batch_accepted_meanwhile_is_no_loss(made: Settings) -> None:
    found = await damaged(made, CASES["entries ahead deleted"])
    fence = claimed(str(made.redis_url))
    loss = look(made, fence)
    await append_all(made, STREAM[50:52])

    settle(fence, loss)

    assert stream_facts(found.server, names)[0] == 50
    assert learn_all(made).progress.consumed == 50


async def test_an_append_between_looking_and_writing_makes_it_look_again(
    made: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = await damaged(made, CASES["entries ahead deleted"])
    fence = claimed(str(made.redis_url))
    loss = look(made, fence)
    [(_, fields)] = found.server.xrange(names.log, count=1)
    check, raced = Fence.check, 0

    def race(self: Fence) -> None:
        nonlocal raced
        check(self)
        raced += 1
        if raced == 1:
            found.server.incr(names.accepted)
            found.server.xadd(names.log, fields)

    monkeypatch.setattr(Fence, "check", race)
    settle(fence, loss)

    assert raced == 2
    assert found.server.get(names.accepted) == b"49"
    assert stream_facts(found.server, names)[0] == 49


async def test_a_damaged_end_of_the_archive_can_be_given_up(made: Settings) -> None:
    found = await damaged(made, Case(lambda _: None, (), 0, 0))
    (segment,) = (made.state_dir / "archive").glob("*.segment")
    content = bytearray(segment.read_bytes())
    content[-1] ^= 1
    segment.write_bytes(content)

    with pytest.raises(CorruptState, match="--accept-loss 1`"):
        learn_all(made)
    worker = Learning(made, ToyEngines(), str(made.redis_url), WorkerMetrics(CollectorRegistry()))
    worker.fence.claim(0)
    worker.load()
    loss = worker.loss()
    loss.check(1)
    worker.close_way_back(loss.position)
    settle(worker.fence, loss)
    worker.close()

    assert learn_all(made).progress.consumed == ACCEPTED
    assert found.server.get(names.accepted) == b"50"
