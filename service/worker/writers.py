"""The keys that have written to a stream; the learner knows them by number.

In the order in which they were first learned from, so that a replay numbers them alike.
"""

from collections.abc import Mapping
from typing import Any


class Writers:
    """Keys by id, each with how many labelled samples were learned from it."""

    def __init__(self) -> None:
        self._labelled: dict[str, int] = {}

    def number(self, key_id: str) -> int:
        """Return the number of a key, 0 for the first; changes nothing."""
        known = list(self._labelled)
        return known.index(key_id) if key_id in self._labelled else len(known)

    def labelled(self, key_id: str) -> int:
        """Return how many labelled samples were learned from a key."""
        return self._labelled.get(key_id, 0)

    def learned(self, key_id: str, labelled: int) -> None:
        """Count what was learned from a key."""
        self._labelled[key_id] = self.labelled(key_id) + labelled

    def dump(self) -> dict[str, Any]:
        """Return it all, JSON-able."""
        return {"labelled": list(self._labelled.items())}

    def load(self, dumped: Mapping[str, Any]) -> None:
        """Become what was dumped."""
        self._labelled = dict(dumped["labelled"])
