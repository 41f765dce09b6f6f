"""Who has seen a change: where several sources write, the novelty of one alone expands nothing.

A source is a writer while it wrote within the last entries, and a witness while its own last
samples are unusual. An alarm that one writer alone has witnessed waits for a second one; when none
comes it is dropped, and counted. So one key that sends noise cannot make experts for everybody,
and a change that two keys see one after the other expands once. Ours.
Dimension key: B batch.
"""

from dataclasses import dataclass, replace
from typing import Any, Self

from torch import Tensor

LATELY = 200
"""Entries within which a writer has written."""
PATIENCE = 100
"""Entries for which an alarm waits for a second witness; fewer, so that who rang it is a writer."""
UNUSUAL = 0.05
"""p-value up to which a sample is unusual."""
WITNESS = 0.25
"""Share of its last samples that are unusual from which a source is a witness; chance is 0.05."""
_KEEP = 0.95  # what a sample weighs against the source's next one: a memory of 20
_MOST = 16  # sources remembered; the one that was silent longest makes room


@dataclass(frozen=True, slots=True)
class _Writer:
    source: int
    entry: int
    weight: float
    unusual: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Witnesses:
    """What each source lately sent; never changed, so an undo is to keep the old one."""

    writers: tuple[_Writer, ...] = ()
    """By when they wrote, the newest last."""
    since: int | None = None
    """Entry at which an alarm began to wait."""
    refused: int = 0
    """Alarms that were dropped."""

    def heard(self, source: int, entry: int, p_B: Tensor) -> Self:
        """Return what is known after a mini-batch.

        Args:
            source: who sent it.
            entry: number of the entry, growing.
            p_B: p-values of its samples.
        """
        known = {one.source: one for one in self.writers}
        before = known.pop(source, _Writer(source, entry, 0.0, 0.0))
        weight, unusual = before.weight, before.unusual
        for new in (p_B <= UNUSUAL).tolist():
            weight, unusual = _KEEP * weight + 1, _KEEP * unusual + new
        writers = (*known.values(), _Writer(source, entry, weight, unusual))
        return replace(self, writers=writers[-_MOST:])

    @property
    def alone(self) -> bool:
        """Whether several write, and one at most of them has seen something unusual."""
        newest = self.writers[-1].entry if self.writers else 0
        lately = [one for one in self.writers if one.entry > newest - LATELY]
        witnesses = sum(one.unusual >= WITNESS * one.weight for one in lately)
        return len(lately) > 1 and witnesses < 2

    def waited(self) -> tuple[bool, Self]:
        """Return whether an alarm of one alone is to be dropped now, and what is known then."""
        newest = self.writers[-1].entry
        since = newest if self.since is None else self.since
        if newest - since < PATIENCE:
            return False, replace(self, since=since)
        return True, replace(self, since=None, refused=self.refused + 1)

    def restarted(self) -> Self:
        """Return what is known when no alarm waits."""
        return replace(self, since=None)

    def values(self) -> dict[str, Any]:
        """Return the state; JSON keeps every bit of it."""
        writers = [[one.source, one.entry, one.weight, one.unusual] for one in self.writers]
        return {"writers": writers, "since": self.since, "refused": self.refused}

    @classmethod
    def restored(cls, values: dict[str, Any]) -> Self:
        """Return what the state was taken from; KeyError if something is missing."""
        writers = tuple(_Writer(*one) for one in values["writers"])
        return cls(writers=writers, since=values["since"], refused=values["refused"])
