"""Forks: a new state directory that goes on from a pin, and a served model copied elsewhere.

    <destination>/{pins/origin/..., checkpoints/ckpt-00000001/...}

A fork is a log of its own: it has another identity, begins with an empty Redis, and numbers its
entries on behind those that the checkpoint has consumed. The worker that starts there first puts
into Redis what the checkpoint needs (`adopt`). `origin` stays a pin of the fork.
"""

import shutil
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from redis.client import Pipeline

from service.errors import CorruptState, Misused
from service.store import directory, pins
from service.store.copies import copied
from service.store.directory import TEMPORARY, StoredDirectory
from service.store.fence import Fence
from service.store.link import redis_errors
from service.store.names import DEFAULT, Names
from service.store.numbering import renumber
from service.store.replay import ReplayStore
from service.store.snapshots import POINTER, SnapshotReader
from service.store.stream_ids import START
from service.store.stream_schema import StreamSchema

ORIGIN = "origin"
"""Name of the pin that a fork began with; also the fact by which its checkpoint is known."""


def fork(source: Path, chosen: str, destination: Path, url: str, names: Names = DEFAULT) -> int:
    """Return the number of the last entry that a new state directory has learned.

    Args:
        source: the state directory to fork from; nothing in it is changed.
        chosen: name of a pin, or else number of a kept checkpoint, in digits.
        destination: the new state directory; whole, or not there.
        url: of the Redis server of `source`; not asked where a pin is chosen.
        names: of the stream of `source`.

    Raises:
        Misused: there is no such pin or checkpoint, or the destination is there already.
        CorruptState: what was chosen is not what was written.
        Unavailable: Redis is away.
        OSError: the disk is full or refuses.
    """
    fence = Fence(url, names)  # claims nothing: it only reads
    with closing(fence), _new_directory(destination) as temporary:
        for name in (pins.DIRECTORY, "checkpoints"):
            (temporary / name).mkdir()
        origin = _origin(source, chosen, temporary / pins.DIRECTORY / ORIGIN, fence)
        checkpoint = dict(origin.facts["checkpoint"])
        progress = {**checkpoint["progress"], "position": START}
        facts = {
            **checkpoint,
            "seq": 1,
            "progress": progress,
            "identity": uuid.uuid4().hex,
            "decisions": 0,
            "writer_epoch": 0,
            ORIGIN: checkpoint["identity"],
        }
        linked = dict.fromkeys(pins.checkpoint_files(origin), origin)
        directory.write(temporary / "checkpoints" / "ckpt-00000001", {}, facts, linked=linked)
    return int(progress["consumed"])


def adopt(fence: Fence, state_dir: Path) -> bool:
    """Put into Redis what a fork needs, where its newest checkpoint is still the first.

    To be called at every start of a worker, before anything is restored. A crash in the middle
    leaves a log without a name, so the next call does it again; done once, it changes nothing.
    Batches that were accepted meanwhile are the first entries of the fork.

    Returns:
        Whether there was anything to do.

    Raises:
        CorruptState: `origin` is not what was written, or Redis holds batches that do not fit.
        StateDirectoryBusy: a later worker has started.
        Unavailable: Redis is away; may be called again.
    """
    checkpoint = _forked_checkpoint(state_dir)
    if checkpoint is None:
        return False
    with redis_errors():
        if fence.redis.exists(fence.names.identity):
            return False
    origin = pins.open_pin(state_dir / pins.DIRECTORY / ORIGIN)
    replay = ReplayStore(fence)
    for members in pins.samples(origin):
        replay.put(members)
    stream, consumed = origin.facts["stream"], int(checkpoint.facts["progress"]["consumed"])

    def count(_added: int, present: int) -> int:
        """Number what is there on behind what the checkpoint has consumed."""
        _check_schema(fence, stream["schema"])
        return consumed + present

    queue = partial(_settle, fence.names, stream, consumed, checkpoint.facts["identity"])
    renumber(fence, count, queue, above=START)
    return True


def export_snapshot(state_dir: Path, version: int | None, destination: Path) -> int:
    """Copy a published snapshot to a new directory, from which `levit api` can answer.

    Args:
        state_dir: where it was published.
        version: which; None: the one that is served.
        destination: a state directory with this snapshot alone; whole, or not there.

    Returns:
        The version.

    Raises:
        Misused: there is no such snapshot, or the destination is there already.
        CorruptState: it is not what was written, or was replaced by a newer one meanwhile.
        OSError: the disk is full or refuses.
    """
    found = version or SnapshotReader(state_dir).newest_version()
    name = f"snap-{found}"
    if not (state_dir / "snapshots" / name).exists():
        raise Misused(f"expected the version of a published snapshot, got {version or 'none'}")
    stored = directory.open_directory(state_dir / "snapshots" / name)
    with _new_directory(destination) as temporary:
        root = temporary / "snapshots"
        root.mkdir()
        directory.write(root / name, copied(stored), stored.facts, linked={})
        directory.replace_file(root / POINTER, str(found).encode())
    return int(stored.facts["version"])


def _origin(source: Path, chosen: str, path: Path, fence: Fence) -> StoredDirectory:
    if pins.NAME.fullmatch(chosen) and (source / pins.DIRECTORY / chosen).exists():
        pinned = pins.open_pin(source / pins.DIRECTORY / chosen)
        return directory.write(path, copied(pinned), pinned.facts, linked={})
    if not (chosen.isascii() and chosen.isdigit()):
        raise Misused(f"expected the name of a pin or the number of a checkpoint, got {chosen!a}")
    checkpoint = pins.open_checkpoint(source, int(chosen))
    return pins.copy_checkpoint(path, checkpoint, fence)


@contextmanager
def _new_directory(destination: Path) -> Iterator[Path]:
    """Yield a directory that takes its final name when all went well.

    Raises:
        Misused: there is something under that name already.
    """
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise Misused(f"expected a directory that is not there yet, or empty, got {destination}")
    destination.parent.mkdir(parents=True, exist_ok=True)
    temporary = destination.parent / f"{TEMPORARY}{uuid.uuid4().hex}"
    temporary.mkdir()
    try:
        yield temporary
        directory.fsync_directory(temporary)
        temporary.rename(destination)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    directory.fsync_directory(destination.parent)


def _forked_checkpoint(state_dir: Path) -> StoredDirectory | None:
    """Return the first checkpoint of a fork, or None where the newest is another."""
    paths = sorted((state_dir / "checkpoints").glob("ckpt-*"))
    try:
        newest = directory.open_directory(paths[-1])
    except (IndexError, CorruptState):  # damaged: whoever restores it says so
        return None
    return newest if ORIGIN in newest.facts else None


def _check_schema(fence: Fence, learned: str) -> None:
    """See that batches accepted before the fork's worker started are of its kind.

    Raises:
        CorruptState: naming both kinds.
    """
    with redis_errors():
        record: Any = fence.redis.get(fence.names.schema)
    if record is None:
        return
    accepted, schema = StreamSchema.from_record(record), StreamSchema.from_record(learned.encode())
    kinds = {accepted.labels, schema.labels} - {None}
    if accepted.input != schema.input or len(kinds) > 1:
        raise CorruptState(
            f"redis holds batches of {accepted.input} with {accepted.labels} labels, the fork has "
            f"learned {schema.input} with {schema.labels} labels; it needs an empty redis"
        )


def _settle(
    names: Names, stream: dict[str, Any], consumed: int, identity: str, pipe: Pipeline
) -> None:
    """Queue what makes the log the fork's; its name, last of all, says that this was done."""
    pipe.set(names.schema, stream["schema"])
    if stream["classes"]:
        pipe.sadd(names.classes, *stream["classes"])
    pipe.hset(names.progress, mapping={"position": START, "consumed": consumed})
    pipe.set(names.identity, identity)
