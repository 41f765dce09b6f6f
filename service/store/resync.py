"""How many entries the log has really lost, and how it goes on without them.

Told are two kinds: `ahead`, accepted and never learned, gone for good; and `behind`, learned from
already, whose loss only closes the way back to older checkpoints. What is left in the log is
numbered on behind the last entry learned, so position, numbers and Redis' counts agree again and
no later reader has to know of the loss. Dimension of every count: entries.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from redis.client import Pipeline

from service.errors import CorruptState, Misused
from service.store.archive import Mark
from service.store.entry import BatchStatus, Entry
from service.store.fence import Fence
from service.store.link import redis_errors
from service.store.names import RECORD_LIFETIME_S
from service.store.numbering import renumber, stream_facts
from service.store.ranges import CHUNK
from service.store.stream_ids import START, RawEntry, following, order

RECORDS = 1000
"""Records read at once."""
REASON = "lost: the log lost this batch before it was learned; send it again under another key"


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """What a look at the whole log has found."""

    ahead: int
    """Entries that were accepted, never learned, and are missing or damaged."""
    behind: int
    """Entries that were learned, are missing, and are needed to go back to older checkpoints."""
    position: str
    """Where the learner is to read on; what is kept of the log lies behind it."""
    closes_way_back: bool
    """Whether all checkpoints but the one that was restored are useless now."""
    trimmed: int
    """Number of the entry before the first that stays in the log."""
    damaged: tuple[str, ...]
    """Positions of entries ahead that are there and are not what was accepted."""
    dropped: int
    """How many entries that are there now do not stay, the damaged ones included."""
    removed: int
    """Entries added less those present, when it was looked."""
    batches: tuple[BatchStatus, ...]
    """The records of lost batches, which still call them queued."""

    @property
    def total(self) -> int:
        """Entries missing in all; what has to be accepted."""
        return self.ahead + self.behind

    def check(self, accepted: int) -> None:
        """See that the loss is the one that was accepted.

        Raises:
            Misused: naming the true figures.
        """
        if accepted != self.total:
            raise Misused(
                f"expected {self.total}, the entries that are missing ({self.ahead} were never "
                f"learned, {self.behind} were), got {accepted}"
            )


def check_joined(fence: Fence, oldest: Mark, reached: Mark) -> None:
    """See that the log is the one that `reached` lies in; cheap, to be done before any trimming.

    A log that began anew, or lost its end, takes new entries under ids that were trimmed already:
    trimming would destroy them. Once there are enough of them, counts alone look right again. Not
    noticed is one thing: a lost end under whose very ids, all of them, other entries lie now.

    Args:
        fence: of the worker.
        oldest: up to where the log may have been trimmed.
        reached: the last entry read.

    Raises:
        CorruptState: naming what does not fit.
        Unavailable: Redis is away.
    """
    accepted, (added, _, last) = _counts(fence)
    if added < max(accepted, reached.number):
        newest = max(accepted, reached.number)
        raise CorruptState(
            f"the log was begun anew or lost its end: it has had {added} entries, expected {newest}"
        )
    if order(last) < order(reached.position):
        raise CorruptState(
            f"the log was begun anew or lost its end: its last position is {last}, "
            f"entry {reached.number} was read at {reached.position}"
        )
    with redis_errors():
        if oldest.number < reached.number and not fence.redis.xrange(
            fence.names.log, reached.position, reached.position
        ):
            raise CorruptState(
                f"the log lacks entry {reached.number} at {reached.position}, which was read"
            )


@dataclass(frozen=True, slots=True)
class _Row:
    position: str
    batch_id: str
    learned: bool
    whole: bool


def survey(fence: Fence, oldest: Mark, reached: Mark, learned: Callable[[str], bool]) -> Loss:
    """Read the whole log and return what it lacks; changes nothing.

    Args:
        fence: of the worker.
        oldest: the last entry that has left the log on purpose, or may: the oldest kept checkpoint,
            or the end of the archive where that has not come so far.
        reached: up to where the checkpoint that was restored has come.
        learned: says of a batch id whether it is among those learned last.

    Raises:
        Unavailable: Redis is away.
    """
    queued = _queued(fence)  # first: whatever is queued by now is in the log, or lost
    accepted, (added, length, last) = _counts(fence)
    # A log that began anew, or lost its end, may have new entries under ids of before.
    anew = added < max(accepted, reached.number) or order(last) < order(reached.position)

    def was_learned(position: str, batch_id: str) -> bool:
        """Say whether the learner has been past an entry."""
        if order(position) > order(reached.position):
            return False
        return not anew or learned(batch_id) or _is_set_aside(fence, position)

    rows = list(_rows(fence, last, was_learned))
    past, ahead = [r for r in rows if r.learned], [r for r in rows if not r.learned]
    whole = sum(row.whole for row in ahead)
    needed = [r for r in past if r.whole and order(r.position) > order(oldest.position)]
    behind = max(0, reached.number - oldest.number - len(needed))
    rewound = bool(ahead) and order(ahead[0].position) <= order(reached.position)
    closes = behind > 0 or rewound
    here = {row.batch_id for row in ahead if row.whole}
    damaged = tuple(row.position for row in ahead if not row.whole)
    return Loss(
        ahead=max(accepted, added, reached.number + len(ahead)) - reached.number - whole,
        behind=behind,
        position=reached.position if not rewound else past[-1].position if past else START,
        closes_way_back=closes,
        trimmed=reached.number if closes else reached.number - len(past),
        damaged=damaged,
        dropped=len(damaged) + (len(past) if closes else 0),
        removed=added - length,
        batches=tuple(
            one
            for batch_id, one in queued.items()
            if batch_id not in here and not learned(batch_id)  # learned and not told yet
        ),
    )


def settle(fence: Fence, loss: Loss) -> None:
    """Number what is left in the log on, and tell what is lost; to be done once, after `survey`.

    A crash in the middle leaves a loss, which a new survey finds.

    Raises:
        CorruptState: the log has lost more meanwhile; nothing was numbered.
        StateDirectoryBusy: a later worker has started.
        Unavailable: Redis is away; may be called again.
    """
    for at in range(0, len(loss.batches), RECORDS):
        _tell_lost(fence, loss.batches[at : at + RECORDS])

    def count(added: int, present: int) -> int:
        """Number what stays on behind what was learned."""
        if added - present != loss.removed:
            raise CorruptState("the log has changed while its loss was counted; count once more")
        return loss.trimmed + present - loss.dropped

    def queue(pipe: Pipeline) -> None:
        """Remove what does not stay."""
        if loss.damaged:
            pipe.xdel(fence.names.log, *loss.damaged)
        if loss.closes_way_back:
            pipe.xtrim(fence.names.log, minid=following(loss.position), approximate=False)

    renumber(fence, count, queue, above=loss.position)


def _counts(fence: Fence) -> tuple[int, tuple[int, int, str]]:
    redis: Any = fence.redis
    with redis_errors():
        accepted = int(redis.get(fence.names.accepted) or 0)  # first: never ahead of the log then
        return accepted, stream_facts(fence.redis, fence.names)


def _rows(fence: Fence, last: str, was_learned: Callable[[str, str], bool]) -> Iterator[_Row]:
    """Yield the entries up to a position; behind one that was not learned, none was."""
    learned = True
    for position, fields in _entries(fence, last):
        batch_id = fields.get(b"batch_id", b"").decode(errors="replace")
        learned = learned and was_learned(position, batch_id)
        yield _Row(position, batch_id, learned, _is_whole(position, fields))


def _entries(fence: Fence, last: str) -> Iterator[RawEntry]:
    after = "-"
    while True:
        with redis_errors():
            chunk: Any = fence.redis.xrange(fence.names.log, after, last, count=CHUNK)
        if not chunk:
            return
        for position, fields in chunk:
            yield position.decode(), fields
        after = f"({chunk[-1][0].decode()}"


def _is_whole(position: str, fields: dict[bytes, bytes]) -> bool:
    try:
        Entry.from_fields(0, position, fields)
    except CorruptState:
        return False
    return True


def _is_set_aside(fence: Fence, position: str) -> bool:
    with redis_errors():
        return bool(fence.redis.hexists(fence.names.quarantine, position))


def _queued(fence: Fence) -> dict[str, BatchStatus]:
    """Return the records of the batches that wait to be learned, by batch id."""
    found: dict[str, BatchStatus] = {}
    with redis_errors():
        keys: list[bytes] = list(fence.redis.scan_iter(match=fence.names.batch("*"), count=RECORDS))
        for at in range(0, len(keys), RECORDS):
            records: Any = fence.redis.mget(keys[at : at + RECORDS])
            listed = [BatchStatus.from_record(record) for record in records if record]
            found |= {status.batch_id: status for status in listed if status.state == "queued"}
    return found


def _tell_lost(fence: Fence, statuses: Sequence[BatchStatus]) -> None:
    def queue(pipe: Pipeline) -> None:
        for status in statuses:
            lost = replace(status, state="quarantined", reason=REASON)
            record, lifetime_s = lost.to_record(), RECORD_LIFETIME_S
            pipe.set(fence.names.batch(lost.batch_id), record, ex=lifetime_s)

    fence.write(queue)
