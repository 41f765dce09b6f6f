"""The keys that have written to a stream; the learner knows them by number.

In the order in which they were first learned from, so that a replay numbers them alike. Of a key
that was purged nothing is learned any more. Which entries the learner refused is known here too:
what was not learned must not be unlearned.
"""

from collections.abc import Mapping
from typing import Any

from service.store.entry import Entry


class Writers:
    """Keys by id, each with how many labelled samples of it the learner counts."""

    def __init__(self) -> None:
        self._labelled: dict[str, int] = {}
        self._purged: dict[str, int] = {}  # each with the number of the entry that did it
        self.refused: set[int] = set()
        """Numbers of the entries that the learner refused."""

    def number(self, key_id: str) -> int:
        """Return the number of a key, 0 for the first; changes nothing."""
        known = list(self._labelled)
        return known.index(key_id) if key_id in self._labelled else len(known)

    def learned(self, key_id: str, labelled: int) -> None:
        """Count what was learned from a key."""
        self._labelled[key_id] = self._labelled.get(key_id, 0) + labelled

    def purged(self, entry: Entry, unlearned: int) -> int:
        """Take a purge into account; return how many labelled samples are still counted."""
        self._purged[entry.key_id] = entry.number
        remaining = self._labelled.get(entry.key_id, 0) - unlearned
        if entry.key_id in self._labelled:
            self._labelled[entry.key_id] = remaining
        return remaining

    def bars(self, entry: Entry) -> bool:
        """Say whether an entry is of a key that was purged before it."""
        return self._purged.get(entry.key_id, entry.number) < entry.number

    def dump(self) -> dict[str, Any]:
        """Return it all, JSON-able."""
        return {
            "labelled": list(self._labelled.items()),
            "purged": list(self._purged.items()),
            "refused": sorted(self.refused),
        }

    def load(self, dumped: Mapping[str, Any]) -> None:
        """Become what was dumped."""
        self._labelled, self._purged = dict(dumped["labelled"]), dict(dumped["purged"])
        self.refused = set(dumped["refused"])
