"""Samples that wait for their label, as far back as the window reaches; what late labels meet.

Each of the last `label_window` entries is known by its batch id, with one bit a sample: whether it
still waits. While any does, the entry's payload is kept as it lies in the log, so that what is
learned at last is the very bytes that arrived; beyond `label_window_bytes` the oldest are let go.
All of it follows from log and settings alone, so a replay joins the same samples. In a checkpoint
the payloads lie in files of their own, to which later checkpoints link; see `waiting_files`.
Dimension key: E entries, M joined samples.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from service.engine.protocol import Array, Label, Labels, Tensors
from service.errors import SettingsError
from service.settings import PREFIX, Settings
from service.store.entry import Entry, LabelOutcome, decode_payload, plain_label
from service.worker.recent import RecentBatches

BOUNDS = ("label_window", "label_window_bytes")
"""Settings that decide which samples can still be joined."""
_KINDS = ("observed", "predicted", "labels", "purge")


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """What an entry gives to learn."""

    entry: Entry
    """As it lies in the log."""
    taught: Entry
    """The same; where it brings late labels, with the samples that they are for."""
    results: Sequence[LabelOutcome] = ()
    """What becomes of each late label, in their order."""
    right: Sequence[bool | None] | None = None
    """Of each late label that is joined: whether the answer that was given was right, None where
    none was given. None where samples arrive, not labels."""
    past: Iterable[Entry] = ()
    """The entries before a purge that are kept; empty otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingState:
    """The window as a checkpoint has it."""

    facts: Mapping[str, Any]
    """JSON-able."""
    arrays: Tensors
    """`numbers` int64 [E], `ids` uint8 [E, 16], `keys` uint8 [E, 8], hashes of the writers' ids,
    `kinds` uint8 [E], `samples` int64 [E], and `waiting`, the bits, uint8: for each entry as many
    bytes as its samples take."""
    payloads: Mapping[int, bytes]
    """By entry number, oldest first."""


@dataclass(slots=True)
class _Known:
    number: int
    kind: str
    samples: int
    waiting: int
    """Bit i is set while sample i waits."""
    key: bytes
    """Of its writer; see `_hash`."""


class Waiting:
    """The window of a learner."""

    def __init__(self, settings: Settings) -> None:
        """Know nothing yet; `settings` say how far the window reaches."""
        self._bounds: dict[str, int] = {name: getattr(settings, name) for name in BOUNDS}
        self._known: dict[str, _Known] = {}  # by batch id, oldest first, as the next one
        self._payloads: dict[str, bytes] = {}
        self._nbytes = 0
        self.counts = {"joined": 0, "late": 0, "unknown": 0, "doubled": 0}
        """Late labels by what became of them, since the start."""

    @property
    def samples(self) -> int:
        """How many samples wait."""
        return sum(self._known[batch_id].waiting.bit_count() for batch_id in self._payloads)

    def lesson(self, entry: Entry, recent: RecentBatches) -> Lesson:
        """Return what there is to learn from an entry; changes nothing.

        Args:
            entry: the next of the log.
            recent: tells batches that are out of reach from those that never were.
        """
        if entry.kind != "labels":
            return Lesson(entry=entry, taught=entry)
        results = [self._outcome(*_parsed(id_), recent) for id_ in entry.given]
        pairs = zip(entry.given.items(), results, strict=True)
        joined = {id_: label for (id_, label), result in pairs if result == "joined"}
        x, right = self._samples(entry, joined)
        taught = replace(entry, n=len(joined), x=x, labels=_as_labels(list(joined.values())))
        return Lesson(entry=entry, taught=taught, results=results, right=right)

    def learned(self, lesson: Lesson) -> None:
        """Take an entry into account that was learned."""
        entry = lesson.entry
        for id_, result in zip(entry.given, lesson.results, strict=True):
            self.counts[result] += 1
            if result == "joined":
                self._close(*_parsed(id_))
        samples = len(entry.x)
        waiting = sum(1 << i for i in range(samples) if entry.label(i) is None)
        key = _hash(entry.key_id)
        self._known[entry.batch_id] = _Known(entry.number, entry.kind, samples, waiting, key)
        if waiting:
            self._payloads[entry.batch_id] = entry.payload
            self._nbytes += len(entry.payload)

    def passed(self, number: int) -> None:
        """Let go of what the entry behind the one of that number cannot reach."""
        while self._known:
            oldest = next(iter(self._known))
            if self._known[oldest].number > number - self._bounds["label_window"]:
                break
            self._let_go(oldest)
        while self._nbytes > self._bounds["label_window_bytes"]:
            self._let_go(next(iter(self._payloads)))

    def forget(self, key_id: str) -> None:
        """Let go of all that a key has written."""
        theirs = _hash(key_id)
        for batch_id in [id_ for id_, one in self._known.items() if one.key == theirs]:
            self._let_go(batch_id)

    def dump(self) -> WaitingState:
        """Return all of it; the payloads are shared."""
        known = list(self._known.values())
        ids = b"".join(map(bytes.fromhex, self._known))
        bits = b"".join(one.waiting.to_bytes(_bytes(one.samples), "little") for one in known)
        arrays: Tensors = {
            "numbers": np.array([one.number for one in known], np.int64),
            "ids": np.frombuffer(ids, np.uint8).reshape(-1, 16),
            "keys": np.frombuffer(b"".join(one.key for one in known), np.uint8).reshape(-1, 8),
            "kinds": np.array([_KINDS.index(one.kind) for one in known], np.uint8),
            "samples": np.array([one.samples for one in known], np.int64),
            "waiting": np.frombuffer(bits, np.uint8),
        }
        payloads = {self._known[id_].number: content for id_, content in self._payloads.items()}
        facts = {"bounds": self._bounds, "counts": dict(self.counts)}
        return WaitingState(facts=facts, arrays=arrays, payloads=payloads)

    def load(self, state: WaitingState) -> None:
        """Become what was dumped.

        Raises:
            SettingsError: the window reached as far as other settings said.
        """
        for name, made_with in state.facts["bounds"].items():
            if (now := self._bounds[name]) != made_with:
                raise SettingsError(
                    f"{PREFIX}{name.upper()}: the state directory was made with {made_with}, the "
                    f"settings say {now}; restore the setting or start with another LEVIT_STATE_DIR"
                )
        self.counts = dict(state.facts["counts"])
        self._known = dict(_known(state.arrays))
        names = {one.number: batch_id for batch_id, one in self._known.items()}
        self._payloads = {names[number]: content for number, content in state.payloads.items()}
        self._nbytes = sum(map(len, self._payloads.values()))

    def _outcome(self, batch_id: str, index: int, recent: RecentBatches) -> LabelOutcome:
        one = self._known.get(batch_id)
        if one is None:
            return "unknown" if recent.step_of(batch_id) is None else "late"
        if index >= one.samples:
            return "unknown"
        return "joined" if one.waiting >> index & 1 else "doubled"

    def _samples(
        self, entry: Entry, joined: Mapping[str, Label]
    ) -> tuple[Array, list[bool | None]]:
        """Return the samples [M, ...] that labels are joined to, and `Lesson.right`."""
        opened: dict[str, tuple[Array, Labels | None]] = {}
        rows: list[Array] = []
        right: list[bool | None] = []
        for sample_id, label in joined.items():
            batch_id, index = _parsed(sample_id)
            if batch_id not in opened:
                opened[batch_id] = decode_payload(self._payloads[batch_id])
            x, answers = opened[batch_id]
            rows.append(entry.schema.canonical(x)[index])
            answered = self._known[batch_id].kind == "predicted"
            right.append(plain_label(answers, index) == label if answered else None)
        return _stacked(rows) if rows else entry.x, right

    def _close(self, batch_id: str, index: int) -> None:
        one = self._known[batch_id]
        one.waiting &= ~(1 << index)
        if not one.waiting:
            self._nbytes -= len(self._payloads.pop(batch_id))

    def _let_go(self, batch_id: str) -> None:
        del self._known[batch_id]
        self._nbytes -= len(self._payloads.pop(batch_id, b""))


def waiting_numbers(arrays: Tensors) -> list[int]:
    """Return the numbers of the entries with samples that wait, oldest first."""
    return [one.number for _, one in _known(arrays) if one.waiting]


def _parsed(sample_id: str) -> tuple[str, int]:
    batch_id, _, index = sample_id.partition(":")
    return batch_id, int(index)


def _stacked(rows: Sequence[Array]) -> Array:
    """Return samples [M, ...]; uint8 ones become floats from 0 to 1 where others are."""
    if len({row.dtype for row in rows}) > 1:
        unit = np.float32(255)
        rows = [row / unit if row.dtype == np.uint8 else row for row in rows]
    return np.stack(rows)


def _as_labels(labels: Sequence[Label]) -> Labels | None:
    if not labels:
        return None
    strings = [label for label in labels if isinstance(label, str)]
    return strings or np.array(labels, np.int64)


def _hash(key_id: str) -> bytes:
    return hashlib.blake2b(key_id.encode(), digest_size=8).digest()


def _bytes(samples: int) -> int:
    return -(-samples // 8)


def _known(arrays: Tensors) -> Iterator[tuple[str, _Known]]:
    """Yield each entry by its batch id."""
    bits, at = arrays["waiting"].tobytes(), 0
    columns = (arrays[name].tolist() for name in ("numbers", "kinds", "samples"))
    facts = zip(arrays["ids"], arrays["keys"], zip(*columns, strict=True), strict=True)
    for row, key, (number, kind, samples) in facts:
        end = at + _bytes(samples)
        waiting = int.from_bytes(bits[at:end], "little")
        yield row.tobytes().hex(), _Known(number, _KINDS[kind], samples, waiting, key.tobytes())
        at = end
