"""The Python client of those who run the service: quarantine, checkpoints, snapshots.

What changes something is sent once: when its answer is lost, look whether it was done.
"""

from collections.abc import Iterator
from typing import Any, Literal

from service.client import Client

PAGE = 100
"""Batches asked for at once."""


class Admin(Client):
    """A client that may administer; documents are as README's table of routes shows them."""

    def quarantined(self) -> Iterator[dict[str, Any]]:
        """Yield every batch that is set aside, oldest first.

        Raises:
            ApiError: the service was away longer than `retry_s`.
        """
        after: str | None = "0-0"
        while after is not None:
            said = self.document(f"/quarantine?limit={PAGE}&after={after}")
            yield from said["quarantined"]
            after = said["after"]

    def show_quarantined(self, batch_id: str) -> dict[str, Any]:
        """Return one batch that is set aside, with what its samples are and their labels.

        Raises:
            ApiError: `unknown_batch`, `not_quarantined` or as `quarantined`.
        """
        return self.document(f"/quarantine/{batch_id}")

    def settle(self, batch_id: str, verb: Literal["retry", "drop"]) -> dict[str, Any]:
        """Append a batch that is set aside to the log again, or throw it away; return its status.

        Raises:
            ApiError: as `show_quarantined`, or the answer was lost.
        """
        return self.command(f"/quarantine/{batch_id}/{verb}", {})

    def checkpoints(self) -> list[dict[str, Any]]:
        """Return the checkpoints, newest first.

        Raises:
            ApiError: the service was away longer than `retry_s`.
        """
        found: list[dict[str, Any]] = self.document("/checkpoints")["checkpoints"]
        return found

    def pins(self) -> list[dict[str, Any]]:
        """Return the checkpoints that are kept for good, oldest first.

        Raises:
            ApiError: the service was away longer than `retry_s`.
        """
        found: list[dict[str, Any]] = self.document("/checkpoints")["pins"]
        return found

    def snapshots(self) -> list[dict[str, Any]]:
        """Return the published snapshots, newest first.

        Raises:
            ApiError: the service was away longer than `retry_s`.
        """
        found: list[dict[str, Any]] = self.document("/snapshots")["snapshots"]
        return found

    def roll_back(self, seq: int, *, drop: bool = False) -> str:
        """Let the learner go back to a checkpoint; return what the worker has done.

        Args:
            seq: of the checkpoint.
            drop: set later entries aside, rather than learn them again.

        Raises:
            ApiError: `unknown_checkpoint`, `command_refused`, `worker_silent`, or no answer.
        """
        mode = "drop" if drop else "retrain"
        return str(self.command(f"/checkpoints/{seq}/rollback", {"mode": mode})["detail"])

    def pin(self, seq: int, name: str) -> str:
        """Keep a copy of a checkpoint for good; return what the worker has done.

        Raises:
            ApiError: as `roll_back`, or the name is none.
        """
        return str(self.command(f"/checkpoints/{seq}/pin", {"name": name})["detail"])

    def resync(self, accept_loss: int) -> str:
        """Let the worker go on although entries are lost; return what it has done.

        Raises:
            ApiError: as `roll_back`.
        """
        return str(self.command("/resync", {"accept_loss": accept_loss})["detail"])
