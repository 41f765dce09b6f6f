"""The options of `levit bench`."""

import json
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from bench import report, run
from bench.command import NotMeasured
from bench.methods import METHODS, Option
from bench.streams import STREAMS
from bench.suites import SUITES, Choice
from service.errors import SettingsError

OUT = Path("bench-results")

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

Suite = Annotated[str | None, typer.Option(help="Rows that belong together; see --list.")]
Streams = Annotated[
    list[str] | None, typer.Option("--stream", help="By name, or an .npz; repeatable.")
]
Methods = Annotated[list[str] | None, typer.Option("--method", help="By name; repeatable.")]
Given = Annotated[
    list[str] | None,
    typer.Option("--option", help="NAME=VALUE for the methods that have it; repeatable."),
]
Capacity = Annotated[int | None, typer.Option(min=0, help="Samples kept for replay.")]
Budget = Annotated[float | None, typer.Option(min=0, help="Sample-gradients per arriving sample.")]
Seeds = Annotated[int | None, typer.Option(min=1, help="Seeds 0 to N - 1 of every row.")]
Samples = Annotated[int | None, typer.Option(min=1, help="At most so many arrive.")]
Batch = Annotated[int | None, typer.Option(min=1, help="Samples in a mini-batch; usually 10.")]
ByClass = Annotated[
    bool, typer.Option("--by-class", help="An .npz class after class, not in its own order.")
]
Threads = Annotated[int, typer.Option(min=1, help="CPU threads of each row.")]
Jobs = Annotated[int, typer.Option(min=1, help="Rows that run at the same time.")]
Again = Annotated[bool, typer.Option("--again", help="Also run rows that are finished.")]
Report = Annotated[bool, typer.Option("--report", help="Run nothing; rewrite the tables.")]
List = Annotated[bool, typer.Option("--list", help="Show suites, streams and methods.")]
Out = Annotated[Path, typer.Option(help="Results, one file a row; tables and pictures.")]
Markdown = Annotated[
    Path | None, typer.Option(help="Where the tables go; unset: RESULTS.md in --out.")
]


@app.command()
def bench(  # noqa: PLR0913  a command's options are its arguments
    *,
    suite: Suite = None,
    stream: Streams = None,
    method: Methods = None,
    option: Given = None,
    capacity: Capacity = None,
    budget: Budget = None,
    seeds: Seeds = None,
    samples: Samples = None,
    batch: Batch = None,
    by_class: ByClass = False,
    threads: Threads = 1,
    jobs: Jobs = 1,
    again: Again = False,
    report_only: Report = False,
    list_names: List = False,
    out: Out = OUT,
    markdown: Markdown = None,
) -> None:
    """Measure methods on streams under the strict protocol; rows that are finished are kept."""
    console = Console(stderr=True)
    if list_names:
        show_names()
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # kill is as clean as Ctrl-C
    problem = ""
    if not report_only:
        named = {"capacity": capacity, "budget": budget}
        options = parsed(option or ()) | {k: v for k, v in named.items() if v is not None}
        choice = Choice(
            suite=suite,
            streams=stream or (),
            methods=method or (),
            options=options,
            seeds=seeds,
            samples=samples,
            batch=batch,
            threads=threads,
            order="class" if by_class else "file",
        )
        problem = _run(choice, out, console, again=again, jobs=jobs)
    report.write(out, markdown or out / "RESULTS.md", console)
    if problem:
        console.print(f"levit bench: {problem}", markup=False, soft_wrap=True)
        raise typer.Exit(1)


def _run(choice: Choice, out: Path, console: Console, *, again: bool, jobs: int) -> str:
    """Run rows; return what went wrong, or nothing."""
    try:
        run.bench(choice, out, console, again=again, jobs=jobs)
    except NotMeasured as failed:
        return str(failed)
    return ""


def parsed(words: Sequence[str]) -> dict[str, Option]:
    """Return NAME=VALUE words as options: numbers, true, false (also True, False) and null as such.

    Everything else is text.

    Raises:
        SettingsError: a word has no name or no value.
    """
    options: dict[str, Option] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not (name and equals and value):
            raise SettingsError(f"--option: expected NAME=VALUE, got {word}")
        try:
            options[name] = json.loads(value.lower() if value in ("True", "False") else value)
        except ValueError:
            options[name] = value
    return options


def show_names() -> None:
    """Print every suite, stream and method."""
    for title, names in (("suites", SUITES), ("streams", STREAMS), ("methods", METHODS)):
        typer.echo(f"{title}: {' '.join(names)}")
