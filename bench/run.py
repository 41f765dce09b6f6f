"""`levit bench`: rows in processes of their own, their bars.

A row whose result is there is not run again, so an interrupted run goes on where it stopped.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from bench import results
from bench.command import NotMeasured
from bench.rows import Row
from bench.suites import Choice, chosen

COLUMNS = (
    TextColumn("{task.description}"),
    BarColumn(bar_width=20),
    MofNCompleteColumn(),
    TimeRemainingColumn(),
)


def bench(
    choice: Choice, directory: Path, console: Console, *, again: bool = False, jobs: int = 1
) -> None:
    """Run the rows of `choice` that have no result yet.

    Args:
        choice: which rows.
        directory: of the results; made if absent.
        console: for the bars.
        again: run rows that have a result, too.
        jobs: rows that run at the same time, each on its own threads.

    Raises:
        SettingsError: the choice names what is not there.
        NotMeasured: rows failed; the others are finished.
    """
    rows = chosen(choice)
    due = [row for row in rows if again or not results.path_of(directory, row).is_file()]
    console.print(f"{len(rows)} rows, {len(rows) - len(due)} of them finished before")
    failed = Runner(directory, console).run(due, jobs)
    if failed:
        raise NotMeasured(f"{len(failed)} of {len(due)} rows failed: {failed[0]}")


class Runner:
    """Runs rows as child processes and draws their bars."""

    def __init__(self, directory: Path, console: Console) -> None:
        """Remember where results go."""
        self._directory = directory
        self._bars = Progress(*COLUMNS, console=console)
        self._children: list[subprocess.Popen[str]] = []

    def run(self, rows: Sequence[Row], jobs: int) -> list[str]:
        """Run all rows, `jobs` at a time; return what went wrong, one line a row.

        An interrupt ends the rows that are running; what is finished stays.
        """
        failed: list[str] = []
        pool = ThreadPoolExecutor(jobs)
        with self._bars:
            whole = self._bars.add_task("rows", total=len(rows))
            futures = [pool.submit(self._run, row) for row in rows]
            try:
                for future in as_completed(futures):
                    self._bars.advance(whole)
                    if problem := future.result():
                        failed.append(problem)
                        self._bars.console.print(problem, markup=False, soft_wrap=True)
            except KeyboardInterrupt:
                self._bars.console.print(
                    "Interrupted; what is finished stays, the same command goes on"
                )
                raise
            finally:  # after an interrupt rows may still run or wait
                pool.shutdown(wait=False, cancel_futures=True)
                for child in self._children:
                    child.terminate()
        return failed

    def _run(self, row: Row) -> str:
        """Run one row; return what went wrong, or nothing."""
        bar = self._bars.add_task(row.key, total=None)
        path = results.path_of(self._directory, row)
        command = [sys.executable, "-m", "bench.child", row.to_json(), str(path)]
        threads = os.environ | {"OMP_NUM_THREADS": str(row.threads)}  # also of what is not torch
        with (
            tempfile.TemporaryFile("w+") as said,
            subprocess.Popen(  # noqa: S603  ourselves
                command, stdout=subprocess.PIPE, stderr=said, text=True, env=threads
            ) as child,
        ):
            self._children.append(child)
            self._follow(child, bar)
            code = child.wait()
            self._children.remove(child)
            said.seek(0)
            last = said.read().strip().rpartition("\n")[2]
        self._bars.remove_task(bar)
        return f"{row.key}: {last or f'ended with {code}'}" if code else ""

    def _follow(self, child: subprocess.Popen[str], bar: TaskID) -> None:
        """Move the bar as the child counts: first all samples, then those that have passed."""
        for number, line in enumerate(child.stdout or ()):
            if number == 0:
                self._bars.update(bar, total=int(line))
            else:
                self._bars.update(bar, completed=int(line))
