"""Kill a worker before each of its durable steps: `python -m tests.chaos.points [KIND [POINT...]]`.

Every fsync, rename, link, removal, counted attempt and Redis write of a worker is a point; its name
says what it touches. First a worker is watched to learn which points there are. Then, for each
point and each n, a worker begins the same log anew, dies at the n-th time it comes there, and a
second one goes on from what is left to the end. This process imports everything once and forks the
workers. Settings come from the environment, the log lies in their Redis; one line of JSON per death
goes to standard output. KIND is `levit`, the real learner, or says what those that go on are like:
a flaw of `tests.toy_worker` makes a negative control. With POINTs, only these are tried.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from service.engine.protocol import Engines
from service.settings import Settings
from service.store import fence
from service.store.link import connect
from service.store.names import DEFAULT as names
from service.supervisor import child_environment
from service.worker import loop, process
from tests.chaos.parts import ROOT, counts, newest_checkpoint
from tests.log_entries import digest
from tests.toy_engine import ToyEngines
from tests.toy_worker import FLAWS

NTH = (1, 3)
OFTEN = 6
"""How often a point must have been passed for a later n to be reached for sure."""
END_S = 60.0
"""Longest time of one worker."""
STEP_S = 0.003
"""Time one entry takes: a few between two checkpoints."""
TOLD = "an expansion was told"
_ALONGSIDE = "XADD events"
"""Part of some writes and not of others: whether there is something to tell makes no point."""
_VARIED = re.compile(r"[0-9a-f]{32}|\d+")


class Points:
    """Counts the points a worker passes; kills it at one of them."""

    def __init__(self, settings: Settings, victim: str = "", nth: int = 0) -> None:
        self.passed: Counter[str] = Counter()
        self._root = str(settings.state_dir.absolute())
        self._victim, self._nth = victim, nth

    def come_to(self, name: str) -> None:
        """Count one more time at a point; the last one, if it is the victim's."""
        self.passed[name] += 1
        if name == self._victim and self.passed[name] == self._nth:
            os.kill(os.getpid(), signal.SIGKILL)

    def install(self) -> None:
        """Put a point before each durable step of this process, and one behind each Redis write."""
        for module, name in ((os, "fsync"), (os, "pwrite")):
            self._wrap(module, name, lambda fd, *_: str(Path(f"/proc/self/fd/{fd}").readlink()))
        for name in ("rename", "replace", "hardlink_to", "unlink"):
            self._wrap(Path, name, lambda path, *_: str(path))
        self._wrap(shutil, "rmtree", lambda path, *_: str(path))
        write = fence.Fence.write

        def wrapped(self_: fence.Fence, queue: Callable[[Any], object]) -> list[Any]:
            commands = _commands(self_, queue)
            name = f"redis {_named(commands)}"
            self.come_to(name)
            answers = write(self_, queue)
            self.come_to(f"{name}, answered")
            if any("expanded" in command for command in commands):
                self.come_to(TOLD)
            return answers

        fence.Fence.write = wrapped  # type: ignore[method-assign, assignment]

    def _wrap(self, owner: Any, name: str, path_of: Callable[..., str]) -> None:  # noqa: ANN401  a module or a class
        action = getattr(owner, name)

        def wrapped(*arguments: Any, **options: Any) -> Any:  # noqa: ANN401  whatever it takes
            path = str(Path(path_of(*arguments)).absolute()).removeprefix(self._root)
            self.come_to(f"{name} {_VARIED.sub('*', path) or '/'}")
            return action(*arguments, **options)

        setattr(owner, name, wrapped)


def _commands(connection: fence.Fence, queue: Callable[[Any], object]) -> list[tuple[Any, ...]]:
    """Return the commands that a write is made of."""
    pipe: Any = connection.redis.pipeline(transaction=True)
    queue(pipe)
    return [command for command, _ in pipe.command_stack]


def _named(commands: list[tuple[Any, ...]]) -> str:
    """Return what they are, such as `HSET progress`."""
    named = [f"{command[0]} {str(command[1]).split(':')[2]}" for command in commands]
    return " + ".join(dict.fromkeys(one for one in named if one != _ALONGSIDE))


class Bench:
    """One log that is begun anew for each death."""

    def __init__(self, settings: Settings, engines: Engines, *, after: Engines) -> None:
        """Take the log that is there.

        Args:
            settings: of all workers.
            engines: of those that die.
            after: of those that go on; they may be faster.
        """
        self._settings = settings
        self._engines = engines
        self._after = after
        self._redis: Any = connect(str(settings.redis_url))
        self._dumps = {name: self._redis.dump(name) for name in self._redis.scan_iter()}
        self._entries, _ = counts(str(settings.redis_url))

    def run(self, *only: str) -> Iterator[dict[str, Any]]:
        """Yield what became of each death, of all points or some.

        As `{point, nth, died, digest, expanded}`.
        """
        found = self._watch()
        yield {"point": "", "nth": 0, "died": False, **self._left()}
        for point in only or sorted(found):
            for nth in NTH:
                if nth > 1 and found[point] < OFTEN:
                    continue
                self._begin_anew()
                died = self._to_the_end(Points(self._settings, point, nth)) == -signal.SIGKILL
                assert self._to_the_end(None) == 0
                yield {"point": point, "nth": nth, "died": died, **self._left()}

    def _watch(self) -> Counter[str]:
        """Return how often an undisturbed worker comes to each point."""
        listed = self._settings.state_dir / "points.json"
        self._begin_anew()
        assert self._to_the_end(Points(self._settings), listed) == 0
        return Counter(json.loads(listed.read_bytes()))

    def _begin_anew(self) -> None:
        shutil.rmtree(self._settings.state_dir, ignore_errors=True)
        self._redis.flushall()
        for name, dump in self._dumps.items():
            self._redis.restore(name, 0, dump)

    def _left(self) -> dict[str, Any]:
        """Return what was learned, and the expansions that were told."""
        told = [(fields[b"kind"], json.loads(fields[b"facts"])) for _, fields in self._events()]
        return {
            "digest": digest(newest_checkpoint(self._settings).state),
            "expanded": [facts for kind, facts in told if kind == b"expanded"],
        }

    def _events(self) -> Any:  # noqa: ANN401  redis-py's types are a union
        return self._redis.xrange(names.events)

    def _to_the_end(self, points: Points | None, listed: Path | None = None) -> int:
        """Let a worker learn the whole log; return how it ended: its code, or minus the signal."""
        epoch = int(self._redis.get(names.epoch) or 0)
        child = self._fork(points, listed)
        deadline, asked = time.monotonic() + END_S, False
        while True:
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            _, consumed = counts(str(self._settings.redis_url))
            runs = int(self._redis.get(names.epoch) or 0) > epoch  # and so it hears signals
            if runs and not asked and (consumed == self._entries or time.monotonic() > deadline):
                os.kill(child, signal.SIGTERM)
                asked = True
            time.sleep(0.01)

    def _fork(self, points: Points | None, listed: Path | None) -> int:
        child = os.fork()
        if child:
            return child
        code = 1
        try:
            loop.SHARE = 0.5
            if points is not None:
                points.install()
            code = process.run(self._settings, self._after if points is None else self._engines)
            if points is not None and listed is not None:
                listed.write_text(json.dumps(points.passed))
        finally:
            os._exit(code)


def points_of(settings: Settings, *arguments: str) -> list[dict[str, Any]]:
    """Return what this file tells when it is run as a process with these settings."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.chaos.points", *arguments],
        env=child_environment(settings) | {"OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def engines_of(kind: str) -> tuple[Engines, Engines]:
    """Return the engines of those that die, and of those that go on."""
    if kind != "levit":
        return ToyEngines(STEP_S), FLAWS[kind](0.0)
    from service.engine.levit import LevitEngines

    real = LevitEngines(threads=1)
    return real, real


def main(kind: str = "none", *points: str) -> None:
    """Write what became of each death."""
    engines, after = engines_of(kind)
    for one in Bench(Settings.read(), engines, after=after).run(*points):
        sys.stdout.write(json.dumps(one) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
