"""What a disk may hold after a power cut: recorded operations, and the states they allow.

A file's bytes are safe once it was fsynced, a name once its directory was. What was not, may be
there, not be there, or be there in part, in whatever order, as ALICE (Pillai et al., OSDI 2014)
has it; one operation on names happens whole or not at all. This is more than one file system
allows. Temporary names are left out: every writer removes them and no reader looks at them.
"""

import builtins
import io
import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

Node = int
Tree = dict[str, bytes | None]
"""Path -> content, None for a directory."""
ROOT: Node = 0
MOST_SUBSETS = 6
"""Operations on names under way at once of which every subset is tried; of more, the likely."""


@dataclass(frozen=True)
class Names:
    """One operation on names: entries of directories that come and go together."""

    changes: tuple[tuple[Node, str, Node | None], ...]


@dataclass(frozen=True)
class Data:
    """A file's bytes as they are from here on, until the next."""

    node: Node
    content: bytes


@dataclass(frozen=True)
class Sync:
    """An fsync of a file or directory."""

    node: Node


@dataclass(frozen=True)
class Reported:
    """What the writer has called done."""

    what: Any


@dataclass
class Trace:
    """The operations below a directory, in their order; see `recorded`."""

    root: Path
    events: list[Names | Data | Sync | Reported] = field(default_factory=list)
    _names: dict[Node, dict[str, Node]] = field(default_factory=lambda: {ROOT: {}})
    _content: dict[Node, bytes] = field(default_factory=dict)
    _count: int = 0

    def reported(self, what: object) -> None:
        """Note that the writer has called something done."""
        self.events.append(Reported(what))

    def states(self) -> Iterator[tuple[Any, Tree]]:
        """Yield what a cut between any two operations may leave, and what was reported last."""
        seen = set()
        for end in range(len(self.events) + 1):
            told = [event.what for event in self.events[:end] if isinstance(event, Reported)]
            for tree in _states(self.events[:end]):
                key = (len(told), tuple(sorted(tree.items(), key=lambda item: item[0])))
                if key not in seen:
                    seen.add(key)
                    yield told[-1] if told else None, tree

    def fsyncs(self) -> Iterator[int]:
        """Yield the places of the fsyncs that have something to make safe."""
        unsafe: set[Node] = set()
        for at, event in enumerate(self.events):
            match event:
                case Data(node):
                    unsafe.add(node)
                case Names(changes):
                    unsafe |= {directory for directory, _, _ in changes}
                case Sync(node) if node in unsafe:
                    unsafe.remove(node)
                    yield at

    def note_names(self, *changes: tuple[Path, Node | None]) -> None:
        listed = tuple((self.node(path.parent), path.name, node) for path, node in changes)
        for directory, name, node in listed:
            if node is None:
                self._names[directory].pop(name, None)
            else:
                self._names[directory][name] = node
        self.events.append(Names(listed))

    def note_data(self, path: Path) -> None:
        """Note what a file holds, if that has changed."""
        node, content = self.node(path), path.read_bytes()
        if self._content.get(node) != content:
            self._content[node] = content
            self.events.append(Data(node, content))

    def made(self, path: Path, *, is_directory: bool = False) -> None:
        self._count += 1
        if is_directory:
            self._names[self._count] = {}
        else:
            self._content[self._count] = b""
            self.events.append(Data(self._count, b""))
        self.note_names((path, self._count))

    def node(self, path: Path) -> Node:
        node = ROOT
        for name in path.relative_to(self.root).parts:
            node = self._names[node][name]
        return node

    def has(self, path: Path) -> bool:
        return path != self.root and path.is_relative_to(self.root)


@contextmanager
def recorded(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Trace]:
    """Record what is done below an empty directory, by whatever uses `os` and `pathlib`."""
    trace = Trace(root)
    with monkeypatch.context() as patched:
        for name in ("fsync", "mkdir", "rename", "replace", "link", "unlink", "rmdir", "truncate"):
            patched.setattr(os, name, _recording(trace, name, getattr(os, name)))
        patched.setattr(io, "open", _recording_open(trace, io.open))
        patched.setattr(shutil, "rmtree", _rmtree)
        yield trace


def materialise(tree: Tree, root: Path) -> None:
    """Make a directory hold a state."""
    for path, content in sorted(tree.items()):
        if content is None:
            (root / path).mkdir()
        else:
            (root / path).write_bytes(content)


def _recording(trace: Trace, name: str, action: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(*arguments: Any, **options: Any) -> Any:  # noqa: ANN401
        if name == "fsync":
            path = Path(f"/proc/self/fd/{arguments[0]}").readlink()
            if path.is_file():
                trace.note_data(path)
            result = action(*arguments)
            trace.events.append(Sync(trace.node(path)))
            return result
        paths = [Path(argument) for argument in arguments[:2] if isinstance(argument, str | Path)]
        result = action(*arguments, **options)
        if trace.has(paths[-1]):
            _note(trace, name, paths)
        return result

    return wrapped


def _note(trace: Trace, name: str, paths: list[Path]) -> None:
    match name:
        case "mkdir":
            trace.made(paths[0], is_directory=True)
        case "rename" | "replace":
            node = trace.node(paths[0])
            trace.note_names((paths[0], None), (paths[1], node))
        case "link":
            trace.note_names((paths[1], trace.node(paths[0])))
        case "unlink" | "rmdir":
            trace.note_names((paths[0], None))
        case _:
            trace.note_data(paths[0])


def _recording_open(trace: Trace, action: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:  # noqa: ANN401
        path = Path(file) if isinstance(file, str | Path) else trace.root
        fresh = not path.exists()
        opened = action(file, mode, *arguments, **options)
        if trace.has(path) and set(mode) & set("wxa+"):
            if fresh:
                trace.made(path)
            close = opened.close

            def noting_close() -> None:
                close()
                if path.exists():
                    trace.note_data(path)

            opened = _Closing(opened, noting_close)
        return opened

    return wrapped


class _Closing:
    """A file that says when it is closed."""

    def __init__(self, file: Any, close: Callable[[], None]) -> None:  # noqa: ANN401
        self._file = file
        self.close = close

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self._file, name)

    def __enter__(self) -> "_Closing":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _rmtree(path: Path, ignore_errors: bool = False) -> None:
    for child in sorted(Path(path).iterdir()):
        if child.is_dir():
            _rmtree(child)
        else:
            child.unlink()
    Path(path).rmdir()


def _states(events: list[Any]) -> Iterator[Tree]:
    synced: dict[Node, int] = {}
    for at, event in enumerate(events):
        if isinstance(event, Sync):
            synced[event.node] = at
    names = [(at, event) for at, event in enumerate(events) if isinstance(event, Names)]
    open_ = [
        at
        for at, event in names
        if any(synced.get(directory, -1) < at for directory, _, _ in event.changes)
    ]
    contents = list(_contents(events, synced))
    for left_out in _subsets(open_):
        entries: dict[Node, dict[str, Node]] = {}
        for at, event in names:
            if at not in left_out:
                for directory, name, node in event.changes:
                    _put(entries.setdefault(directory, {}), name, node)
        directories = {n for _, e in names for _, _, n in e.changes if n is not None}
        directories -= {event.node for event in events if isinstance(event, Data)}
        for content in contents:
            yield dict(_walk(ROOT, "", entries, content, directories))


def _put(entries: dict[str, Node], name: str, node: Node | None) -> None:
    if node is None:
        entries.pop(name, None)
    else:
        entries[name] = node


def _walk(
    node: Node,
    path: str,
    entries: dict[Node, dict[str, Node]],
    content: dict[Node, bytes],
    directories: set[Node],
) -> Iterator[tuple[str, bytes | None]]:
    for name, child in entries.get(node, {}).items():
        if name.startswith(".tmp-"):
            continue
        where = f"{path}{name}"
        if child in directories and child not in content:
            yield where, None
            yield from _walk(child, f"{where}/", entries, content, directories)
        else:
            yield where, content.get(child, b"")


def _contents(events: list[Any], synced: dict[Node, int]) -> Iterator[dict[Node, bytes]]:
    """Yield what the files may hold: of those not fsynced, every combination."""
    choices: dict[Node, list[bytes]] = {}
    for at, event in enumerate(events):
        if isinstance(event, Data):
            safe = synced.get(event.node, -1) > at
            before = choices.get(event.node, [b""])
            if safe:
                choices[event.node] = [event.content]
            else:
                torn = [part for content in before[:1] for part in _torn(content, event.content)]
                choices[event.node] = [*dict.fromkeys([*before, *torn])]
    nodes = list(choices)
    for combination in itertools.product(*choices.values()):
        yield dict(zip(nodes, combination, strict=True))


def _torn(before: bytes, after: bytes) -> list[bytes]:
    """Return what a write that was not fsynced may leave: all, a part, or room without bytes."""
    pairs = enumerate(zip(before, after, strict=False))
    same = next((at for at, (old, new) in pairs if old != new), min(len(before), len(after)))
    middle = (same + len(after)) // 2
    zeros = bytes(len(after) - middle)
    return [
        after,
        after[:middle],
        after[:middle] + zeros,
        after[:same] + bytes(len(after) - same),
        after[:same] + bytes(middle - same) + after[middle:],
    ]


def _subsets(items: list[int]) -> Iterator[set[int]]:
    if len(items) <= MOST_SUBSETS:
        for count in range(len(items) + 1):
            yield from map(set, itertools.combinations(items, count))
        return
    yield from ({*items[at:]} for at in range(len(items) + 1))
    yield from ({*items[:at]} for at in range(1, len(items)))
    yield from ({item} for item in items)
    yield from ({*items} - {item} for item in items)


assert builtins.open is io.open  # pathlib opens by io.open, which is what is recorded
