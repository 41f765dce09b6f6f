"""`python -m tests.chaos`: the long runs; exit code 1 where a promise was broken."""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from service.store.server import find_binary
from tests.chaos import report, soak
from tests.chaos.crash_loop import Plan, crash_loop
from tests.chaos.throughput import throughput

ACKS_PER_KILL = 65


def main() -> int:
    """Run what was asked for; return the exit code."""
    options = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    options.add_argument("--kills", type=int, default=0, help="SIGKILLs of worker, API and Redis")
    options.add_argument("--soak", type=float, default=0, help="seconds of undisturbed load")
    options.add_argument("--throughput", type=float, default=0, help="seconds of batches of 196 KB")
    options.add_argument("--seed", type=int, default=0, help="of batches, victims and moments")
    options.add_argument("--redis", type=Path, default=None, help="the server; unset: as `levit`")
    options.add_argument("--keep", action="store_true", help="leave the files for a look")
    chosen = options.parse_args()
    if not chosen.kills and not chosen.soak and not chosen.throughput:
        options.error("expected --kills, --soak or --throughput")
    console = Console(stderr=True)
    home = Path(tempfile.mkdtemp(prefix="chaos-"))
    binary = chosen.redis or find_binary()
    console.print(f"files in {home}, redis is {binary}")
    violations = []
    if chosen.kills:
        violations += _kill(chosen.kills, chosen.seed, home / "kills", binary)
    if chosen.soak:
        violations += _soak(chosen.soak, chosen.seed, home / "soak", binary)
    if chosen.throughput:
        found = throughput(chosen.throughput, home / "throughput", binary)
        report.say(str(found))
        violations += found.violations
    if not chosen.keep and not violations:
        shutil.rmtree(home)
    return 1 if violations else 0


def _kill(kills: int, seed: int, home: Path, binary: Path) -> list[str]:
    with _progress() as bar:
        killed = bar.add_task("kills", total=kills)
        acked = bar.add_task("acknowledged", total=ACKS_PER_KILL * kills)

        def told(done: int, acks: int) -> None:
            bar.update(killed, completed=done)
            bar.update(acked, completed=acks)

        plan = Plan(kills=kills, seed=seed, fewest_acks=ACKS_PER_KILL * kills)
        found = crash_loop(plan, home, binary, told=told)
    Console().print(report.table(found))
    return found.violations


def _soak(seconds: float, seed: int, home: Path, binary: Path) -> list[str]:
    with _progress() as bar:
        passed = bar.add_task("seconds", total=seconds)
        found = soak.soak(
            seconds, home, binary, seed=seed, told=lambda s: bar.update(passed, completed=s)
        )
    Console().print(soak.table(found))
    return found.violations


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True))


if __name__ == "__main__":
    sys.exit(main())
