"""The keys that count now, for a process that never stops to read them."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog

from service.api.quota import Quota
from service.errors import CorruptState, Unavailable
from service.store.keys import FILE, Key, Ring, read_keys

LOOK_S: Final = 0.5
"""Time between looks at the file, so also the longest that a revoked key goes on working."""

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class Keyring:
    """Follows the file of keys; what cannot be read opens nothing."""

    def __init__(
        self, state_dir: Path, *, insecure: bool, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Read the keys.

        Args:
            state_dir: where the file lies.
            insecure: whether everybody may come in while there was never a key.
            clock: seconds.
        """
        self._state_dir = state_dir
        self._may_be_open = insecure
        self._clock = clock
        self._ring = Ring([])
        self._quotas: dict[str, Quota] = {}
        self._seen: tuple[int, int, int] | None = None
        self._problem: str | None = None
        self._look_at = clock() + LOOK_S
        self._read()

    @property
    def open(self) -> bool:
        """Whether everybody may come in: no key was ever seen, and that was asked for."""
        self._look()
        return self._may_be_open

    @property
    def problem(self) -> str | None:
        """Why no key can be checked; None when all is well."""
        self._look()
        return self._problem

    def find(self, token: str) -> Key | None:
        """Return the key of a token, or None when it does not count.

        Raises:
            Unavailable: `keys_unreadable`.
        """
        self._look()
        if self._problem is not None:
            raise Unavailable(
                "keys_unreadable",
                "the service cannot read its keys; its log says why",
                retry_after_s=5,
            )
        return self._ring.find(token)

    def quota_of(self, key: Key) -> Quota:
        """Return what a key has used."""
        if key.id not in self._quotas:
            self._quotas[key.id] = Quota(self._clock)
        return self._quotas[key.id]

    def _look(self) -> None:
        now = self._clock()
        if now >= self._look_at:
            self._look_at = now + LOOK_S
            if self._problem is not None or self._facts() != self._seen:
                self._read()

    def _facts(self) -> tuple[int, int, int] | None:
        try:
            found = os.stat(self._state_dir / FILE)  # noqa: PTH116  a path each time, twice a second
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size

    def _read(self) -> None:
        self._seen, before = self._facts(), self._problem
        try:
            keys = read_keys(self._state_dir)
            self._problem = self._absence if keys is None else None
        except CorruptState as damaged:
            keys, self._problem = [], str(damaged)
        self._may_be_open = self._may_be_open and keys is None
        self._ring = Ring(keys or [])
        self._quotas = {one: used for one, used in self._quotas.items() if one in self._ring}
        if self._problem is None and keys is not None:
            log.info("keys_read", active=sum(key.state == "active" for key in keys))
        elif self._problem != before:
            log.error("keys_unreadable", problem=self._problem)

    @property
    def _absence(self) -> str | None:
        return None if self._may_be_open else f"{self._state_dir / FILE} is gone"
