"""Every Redis name and every lifetime of what lies under it.

All names of one stream share the prefix `levit:{stream}:`; `Names` holds those of one stream, so
that whoever has them can touch no other. Nothing below is a lock: nothing rests on a time to live.
"""

from typing import Final

PREFIX: Final = "levit:"
DEFAULT_STREAM: Final = "default"
"""The stream of the routes without a stream in their path."""
STREAMS: Final = PREFIX + "streams"
"""Hash: name of a declared stream -> JSON of its declaration; the default one is never in it."""
ANSWER_LIFETIME_S: Final = 3600
"""How long the worker's answer to a command can be read."""
RECORD_LIFETIME_S: Final = 86_400
"""How long a retry with the same Idempotency-Key is recognised and the outcome of a batch is told:
one day, less where the records would fill Redis; see `store.records`."""


class Names:
    """The names of one stream."""

    def __init__(self, stream: str = DEFAULT_STREAM) -> None:
        """Name everything of `stream`, which is a name that was checked."""
        self._base = base = f"{PREFIX}{stream}:"
        self.log: Final = base + "log"
        """Stream: the ingest log, one entry per accepted mini-batch, in order of arrival."""
        self.accepted: Final = base + "accepted"
        """Counter: entries ever appended; raised in the same MULTI as the XADD, so it is also the
        number of the newest entry."""
        self.schema: Final = base + "schema"
        """JSON `{input, labels}`: what a sample is and the kind of its labels; set by the batch
        that first shows it, in the same MULTI."""
        self.classes: Final = base + "classes"
        """Set of all labels ever accepted, to hold `max_classes`."""
        self.progress: Final = base + "progress"
        """Hash `position, consumed, checkpoint, told`: up to where the newest checkpoint reaches,
        its number, and how far `events` tell; set in the same MULTI as what it tells."""
        self.replay: Final = base + "replay"
        """Hash `{entry}:{index}` -> one sample of the replay buffer."""
        self.quarantine: Final = base + "quarantine"
        """Hash position -> the entry that was set aside, and why: a line of JSON, then its
        payload."""
        self.epoch: Final = base + "epoch"
        """Counter: workers that ever started; a worker writes only while it is the newest
        (fencing)."""
        self.identity: Final = base + "identity"
        """Hexadecimal name of this log, drawn once; a checkpoint of another log is refused."""
        self.worker: Final = base + "worker"
        """Hash `state, problem, epoch`: `learning`, or `stopped` and what a human must look at."""
        self.events: Final = base + "events"
        """Stream: what happened, `kind` and `facts` (JSON); the newest 10,000."""
        self.commands: Final = base + "commands"
        """Stream: what administrators ask of the worker; it deletes what it has answered."""
        self.done: Final = base + "done"
        """Sorted set by time, Unix seconds: the finished batches whose records are kept, each as
        its batch id and, behind a space, its client and Idempotency-Key if it had one."""

    def batch(self, batch_id: str) -> str:
        """Name of the record that GET /observations/{batch_id} reads; JSON."""
        return f"{self._base}batch:{batch_id}"

    def idempotency(self, client_key: str) -> str:
        """Name of the record of one Idempotency-Key, as `entry.client_key` has it."""
        return f"{self._base}idempotency:{client_key}"

    def answer(self, command_id: str) -> str:
        """Name of the worker's answer to one command; JSON, kept for `ANSWER_LIFETIME_S`."""
        return f"{self._base}answer:{command_id}"


DEFAULT: Final = Names()
"""Those of the stream `default`."""
