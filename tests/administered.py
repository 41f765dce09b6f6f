"""What the worker does towards administrators, done by a test."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from service.store import directory
from service.store.aside import SetAside
from service.store.commands import Answer, Command, Commands
from service.store.entry import BatchStatus
from service.store.read import Log, Outcome
from tests.log_entries import NO_NEWS, claimed
from tests.served import logged

REASON = "loss is not finite: nan"


def set_aside(url: str, *, numbers: frozenset[int], told: int | None = None) -> None:
    """Do what the worker does: set entries aside and, up to `told`, have them in a checkpoint."""
    log = Log(claimed(url))
    entries = logged(url)
    told = len(entries) if told is None else told
    log.set_aside([SetAside.of(one, REASON) for one in entries if one.number in numbers])
    outcomes = [
        Outcome(
            number=one.number,
            idempotency_key=one.idempotency_key,
            status=BatchStatus(
                batch_id=one.batch_id,
                state="quarantined" if one.number in numbers else "learned",
                n=one.n,
                position=one.position,
                reason=REASON if one.number in numbers else None,
            ),
        )
        for one in entries[:told]
    ]
    if told:
        log.tell(entries[told - 1].position, told, outcomes, NO_NEWS)


@contextmanager
def worker(url: str, answer: Answer) -> Iterator[list[Command]]:
    """Answer commands from a thread, as the worker does; yield those that came."""
    taken: list[Command] = []
    ended = threading.Event()

    def serve() -> None:
        fence = claimed(url)
        commands = Commands(fence)
        while not ended.is_set():
            for command in commands.take():
                taken.append(command)
                commands.done(command, answer)
            time.sleep(0.01)
        fence.close()

    thread = threading.Thread(target=serve)
    thread.start()
    yield taken
    ended.set()
    thread.join()


def add_checkpoint(state_dir: Path, seq: int, *, size: int = 100) -> None:
    """Write what GET /checkpoints reads of a checkpoint."""
    root = state_dir / "checkpoints"
    root.mkdir(exist_ok=True)
    progress = {"position": f"{seq}-0", "consumed": 10 * seq, "learned": 9 * seq}
    facts = {
        "kind": "checkpoint",
        "seq": seq,
        "progress": progress | {"quarantined": seq},
        "summary": {"experts": [{}] * seq},
    }
    directory.write(root / f"ckpt-{seq:08}", {"file": b"x" * size}, facts, linked={})
