"""Samples of the past on which a model that learns must not get worse.

A uniform sample of all labelled samples (those with the lowest hashes). One has a say from its
second look on, if it was answered right at the first: a wrong label that the model resisted says
nothing about harm. Asked is only about classes that are well settled and about samples older than
the newest entries, and answers are compared among these classes alone: a class that joins takes no
share from them.
Dimension key: C samples, K classes.
"""

import hashlib
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from service.engine.protocol import Array, Engine, Label, MemberId, Prediction, Tensors
from service.store.entry import Entry

MOST = 64
"""Most samples kept."""
MOST_BYTES = 4 * 2**20
"""Most bytes of them, as every checkpoint holds them; but never fewer than `FEWEST` samples."""
FEWEST = 20
"""Samples with a say that are needed to measure anything."""
AGE = 50
"""Entries after which a sample may be asked about."""
SETTLED = 500
"""Labelled samples after which a class counts as settled."""


@dataclass(slots=True)
class _Held:
    hash: bytes
    x: Array
    label: Label
    key_id: str
    known: bool | None = None
    """Whether it was answered right when it was asked first; None before."""


@dataclass(frozen=True, slots=True)
class Measure:
    """How a model answers the canary."""

    accuracy: float
    """0 to 1."""
    loss: float
    """Mean negative log-probability of the true class, nats."""
    samples: int
    """How many had a say."""


class Canary:
    """The samples and when each class came."""

    def __init__(self) -> None:
        self._held: dict[MemberId, _Held] = {}
        self._first_seen: dict[Label, int] = {}
        self._labelled = 0

    def add(self, entry: Entry) -> None:
        """Let the labelled samples of an entry that was learned have their chance."""
        most = max(FEWEST, min(MOST, MOST_BYTES // max(1, entry.x[:1].nbytes)))
        highest = max((one.hash for one in self._held.values()), default=b"")
        before = len(self._held)
        for index in range(entry.n):
            label = entry.label(index)
            if label is None:
                continue
            self._first_seen.setdefault(label, self._labelled)
            self._labelled += 1
            hashed = _hash(entry.number, index)
            if before < most or hashed < highest:
                x = entry.x[index].copy()
                self._held[entry.number, index] = _Held(hashed, x, label, entry.key_id)
        if len(self._held) > most:
            lowest = sorted(self._held.items(), key=lambda item: item[1].hash)[:most]
            self._held = dict(lowest)

    @property
    def settled(self) -> bool:
        """Whether no class is so new that the answers must still change."""
        newest = max(self._first_seen.values(), default=0)
        return self._labelled - newest >= SETTLED

    def measure(self, engine: Engine, number: int) -> Measure | None:
        """Return how `engine` answers at the entry of that number; None while too few can be asked.

        Costs one forward pass of at most `MOST` samples.
        """
        classes = self._settled_classes()
        old = [one for id_, one in self._held.items() if id_[0] <= number - AGE]
        asked = [one for one in old if one.label in classes and one.known is not False]
        if not asked:
            return None
        prediction = engine.recall(np.stack([one.x for one in asked]))
        p_CK, true_C = _among(prediction, classes, [one.label for one in asked])
        right_C = p_CK.argmax(1) == true_C
        have_a_say_C = np.array([bool(one.known) for one in asked])
        for one, right in zip(asked, right_C.tolist(), strict=True):
            one.known = one.known or right
        if have_a_say_C.sum() < FEWEST:
            return None
        p_C = p_CK[np.arange(len(true_C)), true_C][have_a_say_C]
        loss = -np.log(np.maximum(p_C, 1e-12)).mean()
        accuracy = float(right_C[have_a_say_C].mean())
        return Measure(accuracy, float(loss), int(have_a_say_C.sum()))

    def right(self, engine: Engine, entry: Entry) -> tuple[int, int]:
        """Return how many samples of settled classes `engine` answers right, and of how many."""
        classes = self._settled_classes()
        known = [i for i in range(entry.n) if entry.label(i) in classes]
        if not known:
            return 0, 0
        prediction = engine.recall(np.ascontiguousarray(entry.x[known]))
        p_CK, true_C = _among(prediction, classes, [entry.label(i) for i in known])
        return int((p_CK.argmax(1) == true_C).sum()), len(known)

    def arrays(self) -> Tensors:
        """Return the samples' values, one array each, by place."""
        return {str(place): one.x for place, one in enumerate(self._held.values())}

    def facts(self) -> dict[str, Any]:
        """Return everything else, JSON-able."""
        return {
            "ids": list(self._held),
            "labels": [one.label for one in self._held.values()],
            "keys": [one.key_id for one in self._held.values()],
            "known": [one.known for one in self._held.values()],
            "first_seen": list(self._first_seen.items()),
            "labelled": self._labelled,
        }

    def load(self, facts: Mapping[str, Any], arrays: Tensors) -> None:
        """Become what was dumped."""
        listed = zip(*(facts[name] for name in ("ids", "labels", "keys", "known")), strict=True)
        self._held = {
            (number, index): _Held(_hash(number, index), arrays[str(place)], *facts_)
            for place, ((number, index), *facts_) in enumerate(listed)
        }
        self._first_seen = dict(facts["first_seen"])
        self._labelled = facts["labelled"]

    def drop(self, key_id: str) -> None:
        """Drop the samples of a key."""
        self._held = {id_: one for id_, one in self._held.items() if one.key_id != key_id}

    def forget(self) -> None:
        """Drop all samples: they belong to a world that is gone."""
        self._held = {}

    def _settled_classes(self) -> set[Label | None]:
        seen = self._first_seen.items()
        return {label for label, first in seen if self._labelled - first >= SETTLED}


def _hash(number: int, index: int) -> bytes:
    return hashlib.blake2b(f"{number}:{index}".encode(), digest_size=8).digest()


def _among(
    prediction: Prediction, classes: Container[Label | None], labels: Sequence[Label | None]
) -> tuple[Array, Array]:
    """Return the probabilities over some classes, [C, K], and the true one's column, [C]."""
    columns = [k for k, label in enumerate(prediction.classes) if label in classes]
    column_of: dict[Label | None, int] = {
        prediction.classes[k]: column for column, k in enumerate(columns)
    }
    p_CK = prediction.probabilities[:, columns].astype(np.float64)
    p_CK /= np.maximum(p_CK.sum(1, keepdims=True), 1e-12)
    return p_CK, np.array([column_of[label] for label in labels])
