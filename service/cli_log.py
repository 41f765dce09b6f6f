"""`levit log export` and `levit replay`: the past as a file, and the past once more.

Both only read, beside a running worker.
"""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from service.cli_options import files_of
from service.engine.load import load_engines
from service.settings import Settings

if TYPE_CHECKING:
    from service.store.history import History

StateDir = Annotated[
    Path | None, typer.Option(help="Directory of everything durable (LEVIT_STATE_DIR).")
]
Until = Annotated[int | None, typer.Option(min=1, help="Number of the last entry.")]

log = typer.Typer(help="The log of everything that was accepted.", no_args_is_help=True)


@log.command()
def export(
    out: Annotated[Path, typer.Argument(help="The file to write, .npz or .parquet.")],
    after: Annotated[int, typer.Option(min=0, help="Leave out the entries up to this one.")] = 0,
    until: Until = None,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT if it exists.")] = False,
    state_dir: StateDir = None,
) -> None:
    """Write accepted samples in their order, with labels, and what was decided about them.

    An .npz has x, y and entry per sample, and number, position, batch_id, kind, skipped and reason
    per entry; a .parquet has all of it per sample.
    """
    from service import export as exporter
    from service.store.decisions import Decisions
    from service.store.entry import Entry

    exporter.check_out(out, force=force)
    settings = files_of(state_dir)
    with closing(_history(settings)) as history, _bar() as bar:
        last = until or history.last()

        def walk(description: str) -> Iterator[Entry]:
            """Yield the entries and show how far it is."""
            entries = history.entries(after, last)
            return iter(bar.track(entries, total=max(0, last - after), description=description))

        found = exporter.export(out, walk, Decisions(settings.state_dir))
    typer.echo(f"{found.samples} samples of {found.entries} entries written to {out}")


def replay(
    until: Until = None,
    out: Annotated[
        Path | None, typer.Option(help="Directory to write the state to, as of a checkpoint.")
    ] = None,
    state_dir: StateDir = None,
) -> None:
    """Learn the whole log once more and compare with the checkpoints that are kept.

    Ends at the newest checkpoint, or at --until. Exit code 1 where a state differs.
    """
    from service import retrain

    settings = files_of(state_dir)
    if out is not None:
        retrain.check_new(out, settings.state_dir)
    past = retrain.remember(settings)
    engines = load_engines(past.settings.learner_threads)
    with closing(_history(settings)) as history, _bar() as bar:
        last = until or retrain.last_number(past, history)
        entries = bar.track(history.entries(0, last), total=last, description="replay")
        done = retrain.replay(past, entries, engines, history.entries)
    if out is not None:
        retrain.write(done, past, out)
    for line in retrain.told(done, past):
        typer.echo(line)
    if not all(equal for _, equal in done.met):
        raise typer.Exit(1)


def _history(settings: Settings) -> "History":
    from service.store.history import History
    from service.store.names import Names
    from service.store.server import server_url

    return History(settings.state_dir, server_url(settings), Names(settings.stream))


def _bar() -> Progress:
    console = Console(stderr=True)
    return Progress(console=console, transient=True, disable=not console.is_terminal)
