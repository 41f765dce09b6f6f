"""Files that are made or read one at a time while a directory is written, to spare memory."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial

from service.store.directory import StoredDirectory


class OnDemand(Mapping[str, bytes]):
    """Contents by name, each made anew whenever it is asked for."""

    def __init__(self, makers: Mapping[str, Callable[[], bytes]]) -> None:
        """Take the functions that make them, by name; each must give the same bytes every time."""
        self._makers = makers

    def __getitem__(self, name: str) -> bytes:
        """Return the content of that name."""
        return self._makers[name]()

    def __iter__(self) -> Iterator[str]:
        """Yield the names."""
        return iter(self._makers)

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._makers)


def copied(stored: StoredDirectory) -> OnDemand:
    """Return the files of a directory, each checked when it is read."""
    return OnDemand({name: partial(stored.read, name) for name in stored.files})
