"""The whole past once more, through a fresh learner: does it end in the state that was kept?

What the worker does with an entry lies in `worker.step`; this walks the same steps over archive and
log, with the decisions that were taken, and compares with the checkpoints on the way. It needs no
lock, reads only, and runs beside a worker.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from safetensors.numpy import save

from service.engine.digest import digest
from service.engine.protocol import Engine, Engines, EngineState, Summary, Tensors
from service.errors import CorruptState, IncompleteHistory, SettingsError
from service.settings import Settings
from service.store import directory
from service.store.decisions import Decision, Decisions
from service.store.entry import Entry
from service.store.history import History
from service.store.snapshots import SERVED, split_frozen
from service.worker.checkpoints import (
    ARRAYS,
    MEMBERS,
    TRAINING,
    read_checkpoint,
    sequence,
)
from service.worker.environment import environment
from service.worker.step import Memory, Progress, advance, advanced

FORMAT = 1
Reread = Callable[[int, int], Iterable[Entry]]
"""Of two numbers: the entries behind the one up to and with the other; `History.entries` is one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A checkpoint that a replay must meet."""

    seq: int
    number: int
    """Of the last entry it has consumed."""
    sha256: str
    """Of its state; see `digest`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """What a state directory remembers beside the entries."""

    settings: Settings
    """Those that the newest checkpoint was made with."""
    kept: Sequence[Kept]
    """The checkpoints to meet, in order of entries; damaged and given up ones are left out."""
    decisions: Decisions
    other_environment: Mapping[str, Any]
    """What was different where the newest checkpoint was written; then bits may differ."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """What a replay ended in."""

    progress: Progress
    state: EngineState
    recent: Tensors
    """See `RecentBatches.dump`."""
    timeline: Tensors
    """See `Timeline.dump`."""
    summary: Summary
    met: Sequence[tuple[Kept, bool]]
    """The checkpoints on the way, each with whether the state was equal, bit by bit."""

    @property
    def sha256(self) -> str:
        """Of the state; see `digest`."""
        return digest(self.state)


def remember(settings: Settings) -> Past:
    """Return what the state directory remembers.

    Raises:
        CorruptState: the decisions are not what was written.
    """
    found = list(_checkpoints(settings.state_dir / "checkpoints"))
    decisions = Decisions(settings.state_dir)  # after the checkpoints, so never fewer than theirs
    kept = [
        Kept(seq=facts["seq"], number=facts["progress"]["consumed"], sha256=sha256)
        for facts, sha256 in found
        if not _given_up(facts, decisions)
    ]
    differing: dict[str, Any] = {}
    if found:
        then, made_with = found[-1][0]["environment"], found[-1][0]["settings"]
        same = {"device": then["device"], "worker_threads": then["threads"]}
        settings = settings.model_copy(update={**made_with, **same})
        now = environment(settings)
        differing = {name: then.get(name) for name, value in now.items() if then.get(name) != value}
    return Past(
        settings=settings,
        kept=sorted(kept, key=lambda one: one.number),
        decisions=decisions,
        other_environment=differing,
    )


def last_number(past: Past, history: History) -> int:
    """Return where a replay ends by itself: at the newest checkpoint, else at the newest entry.

    Raises:
        Unavailable: Redis is away.
    """
    return past.kept[-1].number if past.kept else history.last()


def replay(past: Past, entries: Iterable[Entry], engines: Engines, reread: Reread) -> Replayed:
    """Return what entries make of a fresh learner.

    Args:
        past: of `remember`.
        entries: from the first one on, as `History.entries` yields them.
        engines: on as many threads as `past.settings` say.
        reread: reads some of them again, where a key was purged.

    Raises:
        CorruptState: an entry is not what was accepted.
        IncompleteHistory: one is missing; names the first that is there.
        SettingsError: a learner setting does not fit the stream.
        Unavailable: Redis is away.
    """
    engine: Engine | None = None
    progress, memory = Progress(), Memory.fresh(past.settings)
    met: list[tuple[Kept, bool]] = []
    for entry in entries:
        if engine is None:
            engine = engines.create(past.settings, entry.schema)
        lesson = memory.lesson(entry)
        after = past.decisions.unlearns(entry.number)
        if after is not None:
            lesson = replace(lesson, past=reread(after, entry.number - 1))
        step = advance(engine, lesson, past.decisions, memory)
        progress = advanced(progress, entry, step)
        here = [one for one in past.kept if one.number == entry.number]
        if here:
            sha256 = digest(engine.dump())
            met += [(one, one.sha256 == sha256) for one in here]
    if engine is None:
        raise IncompleteHistory("there is nothing to replay: the log has no entry")
    return Replayed(
        progress=progress,
        state=engine.dump(),
        recent=memory.recent.dump(),
        timeline=memory.timeline.dump(),
        summary=engine.summary(),
        met=met,
    )


def write(replayed: Replayed, past: Past, path: Path) -> None:
    """Write the state a replay ended in to a new directory, in files as of a checkpoint.

    Raises:
        OSError: the disk is full or refuses.
    """
    state = replayed.state
    contents, _ = split_frozen(state.frozen, None)
    contents[SERVED] = save(dict(state.served))
    contents[TRAINING] = save(dict(state.training))
    contents[MEMBERS] = save({"members": state.members})
    contents[ARRAYS["recent"]] = save(dict(replayed.recent))
    contents[ARRAYS["timeline"]] = save(dict(replayed.timeline))
    facts = {
        "format": FORMAT,
        "kind": "replay",
        "progress": asdict(replayed.progress),
        "values": state.values,
        "summary": asdict(replayed.summary),
        "environment": environment(past.settings),
        "settings": past.settings.learner,
    }
    directory.write(path, contents, facts, linked={})


def told(replayed: Replayed, past: Past) -> Iterator[str]:
    """Yield what people read of a replay, line by line."""
    progress = replayed.progress
    yield f"entries    {progress.consumed}, the last at position {progress.position}"
    yield f"learned    {progress.learned}"
    yield f"set aside  {progress.quarantined}"
    yield f"repeated   {progress.repeated}"
    yield f"experts    {len(replayed.summary.experts)}"
    yield f"sha256     {replayed.sha256}"
    for one, equal in replayed.met:
        verdict = "equal, bit by bit" if equal else f"DIFFERENT: it has sha256 {one.sha256}"
        yield f"checkpoint {one.seq}, after entry {one.number}: {verdict}"
    if not replayed.met:
        yield "no checkpoint is kept of an entry up to there, so there was nothing to compare with"
    for name, then in past.other_environment.items():
        yield f"bits may differ: {name} was {then} when the newest checkpoint was written"


def check_new(path: Path, state_dir: Path) -> None:
    """Refuse a directory that is not new, or that the state directory holds.

    Raises:
        SettingsError: naming it.
    """
    if path.exists():
        raise SettingsError(f"expected a directory that does not exist yet, got {path}")
    if path.resolve().is_relative_to(state_dir.resolve()):
        raise SettingsError(f"expected a directory outside {state_dir}, got {path}")


def _checkpoints(root: Path) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Yield manifest and hash of the checkpoints that are whole, oldest first."""
    for path in sorted(root.glob("ckpt-*"), key=sequence):
        try:
            stored, checkpoint = read_checkpoint(path)
        except CorruptState:  # or gone meanwhile
            continue
        yield stored.facts, digest(checkpoint.state)


def _given_up(facts: Mapping[str, Any], decisions: Decisions) -> bool:
    """Return whether a later decision concerns what a checkpoint holds."""
    consumed = facts["progress"]["consumed"]
    later = list(decisions)[facts["decisions"] :]
    return any(_first_concerned(one) <= consumed for one in later)


def _first_concerned(decision: Decision) -> float:
    """Return the number of the first entry to which a decision makes a difference."""
    if decision.kind in {"expand", "unlearn"}:
        return decision.until
    return decision.after + 1 if decision.until > decision.after else float("inf")
