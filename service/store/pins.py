"""Pins: checkpoints kept for good, each with everything it takes to go on from it.

    pins/<name>/{the files of the checkpoint, replay-<i>.safetensors ..., manifest.json}

A checkpoint only names the samples of the replay memory, which lie in Redis; a pin holds them, too,
and schema and classes of its stream stand in its manifest. So it outlives log and Redis, and holds
up neither. The checkpoint's own files never change: here they are hard links.
"""

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load

from service.engine.protocol import Array, Label, Labels, MemberId, Members
from service.errors import CorruptState, Misused
from service.store import directory
from service.store.copies import OnDemand, copied
from service.store.directory import StoredDirectory
from service.store.entry import decode_payload, encode
from service.store.fence import Fence
from service.store.link import redis_errors
from service.store.replay import CHUNK, ReplayStore

FORMAT = 1
DIRECTORY = "pins"
NAME = re.compile("[a-z0-9-]{1,40}")
MEMBERS = "members.safetensors"
"""The file of a checkpoint that names the samples of the replay memory."""
_REPLAY = "replay-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """One pin, as it is listed."""

    name: str
    seq: int
    """Of the checkpoint."""
    number: int
    """Of the last entry that the checkpoint has consumed."""
    position: str
    """Id of that entry in the log."""
    bytes: int
    """Of all its files, also those it shares with checkpoints."""
    pinned_at: float
    """Unix seconds."""


def pin(state_dir: Path, seq: int, name: str, fence: Fence) -> Pin:
    """Keep a checkpoint under a name; when this returns the pin is on disk, whole.

    Raises:
        Misused: there is no such checkpoint, or the name is taken or none.
        CorruptState: the checkpoint, or a sample it names, is not what was written.
        Unavailable: Redis is away; nothing was pinned.
        OSError: the disk is full or refuses; nothing was pinned.
    """
    root = state_dir / DIRECTORY
    if not NAME.fullmatch(name):
        raise Misused(f"expected a name of 1 to 40 of a-z, 0-9 and -, got {name!a}")
    if (root / name).exists():
        raise Misused(f"the name {name} is taken by another pin")
    checkpoint = open_checkpoint(state_dir, seq)
    if not root.exists():
        root.mkdir()
        directory.fsync_directory(state_dir)
    directory.remove_temporaries(root)
    linked = dict.fromkeys(checkpoint.files, checkpoint)
    for file in checkpoint.files:
        checkpoint.read(file)  # a copy of what is damaged would be none
    return _listed(_write(root / name, checkpoint, fence, linked=linked))


def pins(state_dir: Path) -> list[Pin]:
    """Return the pins that can be read, oldest first."""
    found = [_listed(stored) for stored in _readable(state_dir / DIRECTORY)]
    return sorted(found, key=lambda one: one.pinned_at)


def unpin(state_dir: Path, name: str) -> None:
    """Drop a pin.

    Raises:
        Misused: there is none of that name.
    """
    if not NAME.fullmatch(name) or not (state_dir / DIRECTORY / name).exists():
        raise Misused(f"expected the name of a pin, got {name!a}")
    directory.remove(state_dir / DIRECTORY / name)


def open_checkpoint(state_dir: Path, seq: int) -> StoredDirectory:
    """Return a checkpoint's files; they are checked when they are read.

    Raises:
        Misused: there is none of that number.
        CorruptState: its manifest is not what was written.
    """
    path = state_dir / "checkpoints" / f"ckpt-{seq:08}"
    if not path.exists():
        raise Misused(f"expected the number of a kept checkpoint, got {seq}")
    return directory.open_directory(path)


def open_pin(path: Path) -> StoredDirectory:
    """Return a pin's files; they are checked when they are read.

    Raises:
        CorruptState: its manifest is not what was written.
    """
    stored = directory.open_directory(path)
    if (stored.facts.get("format"), stored.facts.get("kind")) != (FORMAT, "pin"):
        raise CorruptState(f"{path} is no pin of format {FORMAT}")
    return stored


def copy_checkpoint(path: Path, checkpoint: StoredDirectory, fence: Fence) -> StoredDirectory:
    """Return a pin at `path` that shares no file with the checkpoint it is of.

    Raises:
        CorruptState, Unavailable, OSError: as `pin`.
    """
    return _write(path, checkpoint, fence, linked={})


def checkpoint_files(pinned: StoredDirectory) -> list[str]:
    """Return the names of the files that are the checkpoint's."""
    return [name for name in pinned.files if not name.startswith(_REPLAY)]


def samples(pinned: StoredDirectory) -> Iterator[Mapping[MemberId, tuple[Array, Label | None]]]:
    """Yield the samples of the replay memory, some at a time, each under its id.

    Raises:
        CorruptState: a file is not what was written.
    """
    ids = iter(_members(pinned))
    for name in sorted(set(pinned.files) - set(checkpoint_files(pinned)), key=_part_of):
        x, labels = decode_payload(pinned.read(name))
        yield {next(ids): (sample, _label(labels, i)) for i, sample in enumerate(x)}


def _write(
    path: Path,
    checkpoint: StoredDirectory,
    fence: Fence,
    *,
    linked: Mapping[str, StoredDirectory],
) -> StoredDirectory:
    replay, ids = ReplayStore(fence), _members(checkpoint)
    makers: dict[str, Callable[[], bytes]] = {
        name: partial(_payload, replay, ids[at : at + CHUNK]) for at, name in _parts(ids)
    }
    if not linked:
        makers |= {name: partial(copied(checkpoint).__getitem__, name) for name in checkpoint.files}
    facts = {
        "format": FORMAT,
        "kind": "pin",
        "pinned_at": time.time(),
        "stream": _stream(fence),
        "checkpoint": dict(checkpoint.facts),
    }
    return directory.write(path, OnDemand(makers), facts, linked=linked)


def _stream(fence: Fence) -> dict[str, Any]:
    with redis_errors():
        schema: Any = fence.redis.get(fence.names.schema)
        classes: Any = fence.redis.smembers(fence.names.classes)
    if schema is None:
        raise CorruptState("redis has lost what a sample of the stream is")
    return {"schema": schema.decode(), "classes": sorted(label.decode() for label in classes)}


def _readable(root: Path) -> Iterator[StoredDirectory]:
    for path in root.glob("[a-z0-9-]*"):
        try:
            yield open_pin(path)
        except CorruptState:
            continue


def _listed(stored: StoredDirectory) -> Pin:
    checkpoint = stored.facts["checkpoint"]
    return Pin(
        name=stored.path.name,
        seq=checkpoint["seq"],
        number=checkpoint["progress"]["consumed"],
        position=checkpoint["progress"]["position"],
        bytes=stored.size,
        pinned_at=stored.facts["pinned_at"],
    )


def _members(stored: StoredDirectory) -> list[MemberId]:
    rows = load(stored.read(MEMBERS))["members"].tolist()
    return [(number, index) for number, index in rows]


def _parts(ids: Sequence[MemberId]) -> Iterator[tuple[int, str]]:
    """Yield where each file of samples begins among the ids, and its name."""
    for at in range(0, len(ids), CHUNK):
        yield at, f"{_REPLAY}{at // CHUNK}.safetensors"


def _part_of(name: str) -> int:
    return int(name.removeprefix(_REPLAY).removesuffix(".safetensors"))


def _payload(replay: ReplayStore, ids: Sequence[MemberId]) -> bytes:
    members = replay.fetch(ids)
    return encode(np.stack(members.x), _labels(members))


def _labels(members: Members) -> Labels:
    if any(isinstance(label, str) for label in members.labels):
        return [str(label or "") for label in members.labels]
    return np.array([-1 if label is None else label for label in members.labels], np.int64)


def _label(labels: Labels | None, index: int) -> Label | None:
    label = None if labels is None else labels[index]
    if label is None or isinstance(label, str):
        return label or None
    return None if label < 0 else int(label)
