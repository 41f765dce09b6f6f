"""What a purge can still unlearn: the entries before it that archive and log have kept.

From which on they are kept is a matter of bytes and of time, so it is decided, on disk, before
anything is unlearned: a replay unlearns the same.
"""

from dataclasses import replace

from service.settings import Settings
from service.store.decisions import Decision
from service.store.history import History
from service.store.names import Names
from service.worker.judge import Judge
from service.worker.waiting import Lesson


class Hindsight:
    """Reads the past of one stream once more."""

    def __init__(self, settings: Settings, url: str) -> None:
        self._history = History(settings.state_dir, url, Names(settings.stream))
        self._archived = settings.log_archive

    def looked_back(self, lesson: Lesson, judge: Judge) -> Lesson:
        """Return a lesson with the entries that it is to unlearn, where it is a purge.

        Raises:
            OSError, Unavailable: disk or Redis refuses; nothing was decided.
        """
        if lesson.entry.kind != "purge":
            return lesson
        number, first = lesson.entry.number, self._history.first(archived=self._archived)
        after = judge.decisions.unlearns(number)
        if after is None or after + 1 < first:
            after, reason = first - 1, f"a key is purged; entries from {first} on are kept"
            judge.decide(Decision(kind="unlearn", after=after, until=number, reason=reason))
        return replace(lesson, past=self._history.entries(after, number - 1))

    def close(self) -> None:
        """Close the connection."""
        self._history.close()
