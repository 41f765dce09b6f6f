"""Every Redis name and every lifetime of what lies under it.

All names of one learner share the prefix `levit:{STREAM}:`; there is one stream until a later
version declares several. Nothing below is a lock: nothing rests on a time to live.
"""

STREAM = "default"
_BASE = f"levit:{STREAM}:"

LOG = _BASE + "log"
"""Stream: the ingest log, one entry per accepted mini-batch, in order of arrival."""
ACCEPTED = _BASE + "accepted"
"""Counter: entries ever appended; raised in the same MULTI as the XADD, so it is also the
number of the newest entry."""
SCHEMA = _BASE + "schema"
"""JSON `{input, labels}`: what a sample is and the kind of its labels; set by the batch that
first shows it, in the same MULTI."""
CLASSES = _BASE + "classes"
"""Set of all labels ever accepted, to hold `max_classes`."""
PROGRESS = _BASE + "progress"
"""Hash `position, consumed, checkpoint`: up to where the newest checkpoint reaches, and its number;
set in the same MULTI as what it tells."""
REPLAY = _BASE + "replay"
"""Hash `{entry}:{index}` -> one sample of the replay buffer."""
QUARANTINE = _BASE + "quarantine"
"""Hash position -> the entry that was set aside, and why: a line of JSON, then its payload."""
EPOCH = _BASE + "epoch"
"""Counter: workers that ever started; a worker writes only while it is the newest (fencing)."""
IDENTITY = _BASE + "identity"
"""Hexadecimal name of this log, drawn once; a checkpoint of another log is refused."""
WORKER = _BASE + "worker"
"""Hash `state, problem, epoch`: `learning`, or `stopped` and what a human must look at."""
COMMANDS = _BASE + "commands"
"""Stream: what administrators ask of the worker; it deletes what it has answered."""
DONE = _BASE + "done"
"""Sorted set by time, Unix seconds: the finished batches whose records are kept, each as its batch
id and, behind a space, its Idempotency-Key if it had one."""


def batch(batch_id: str) -> str:
    """Name of the record that GET /observations/{batch_id} reads; JSON."""
    return f"{_BASE}batch:{batch_id}"


def idempotency(client_key: str) -> str:
    """Name of the record of one Idempotency-Key."""
    return f"{_BASE}idempotency:{client_key}"


def answer(command_id: str) -> str:
    """Name of the worker's answer to one command; JSON, kept for `ANSWER_LIFETIME_S`."""
    return f"{_BASE}answer:{command_id}"


ANSWER_LIFETIME_S = 3600
"""How long the worker's answer to a command can be read."""
RECORD_LIFETIME_S = 86_400
"""How long a retry with the same Idempotency-Key is recognised and the outcome of a batch is told:
one day, less where the records would fill Redis; see `store.records`."""
