"""`levit quarantine | checkpoints | snapshots | resync`: the service as its administrators see it.

Most of it is a request to the running service, which `--url` names; `unpin`, `fork` and `export`
work on the files of a state directory.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.progress import Progress
from rich.table import Table

from service.admin import Admin
from service.cli_options import RETRY_S, StateDir, Url, address, files_of, key
from service.client import ApiError
from service.errors import Misused
from service.shown import cell, printable

ANSWER_S = 60.0
"""Longest wait for an answer: the service itself waits half of this for the worker."""

quarantine = typer.Typer(
    help="Batches that were set aside, each with its reason.", no_args_is_help=True
)
checkpoints = typer.Typer(help="What the learner can go back to.", no_args_is_help=True)
snapshots = typer.Typer(help="What predictions are served from.", no_args_is_help=True)

BatchIds = Annotated[list[str] | None, typer.Argument(help="Their batch ids.", show_default=False)]
All = Annotated[bool, typer.Option("--all", help="All that are set aside now.")]
Seq = Annotated[int, typer.Argument(min=1, help="Number of the checkpoint.")]


@quarantine.command("list")
def list_quarantine(
    limit: Annotated[int, typer.Option(min=1, help="Most batches to list.")] = 100,
    url: Url = None,
) -> None:
    """List batches that were set aside, oldest first."""
    with _admin(url) as admin:
        rows = [row for row, _ in zip(admin.quarantined(), range(limit), strict=False)]
    _print_table(rows, ("number", "batch_id", "position", "n", "bytes", "reason"))


@quarantine.command("show")
def show_quarantined(batch_id: str, url: Url = None) -> None:
    """Show one batch that was set aside: its reason, what its samples are, their labels."""
    with _admin(url) as admin:
        found = admin.show_quarantined(batch_id)
    for name, value in found.items():
        typer.echo(f"{name}\t{printable(_cell(name, value))}")


@quarantine.command()
def retry(batch_ids: BatchIds = None, every: All = False, url: Url = None) -> None:
    """Append batches to the log again, each under its id, to be learned after all."""
    _settle(batch_ids, "retry", every=every, url=url)


@quarantine.command()
def drop(batch_ids: BatchIds = None, every: All = False, url: Url = None) -> None:
    """Throw batches away for good."""
    _settle(batch_ids, "drop", every=every, url=url)


@checkpoints.command("list")
def list_checkpoints(url: Url = None) -> None:
    """List the checkpoints, newest first, and those that are kept for good."""
    with _admin(url) as admin:
        rows, pins = admin.checkpoints(), admin.pins()
    columns = ("seq", "number", "position", "learned", "quarantined", "experts", "bytes", "age_s")
    _print_table(rows, (*columns, "pins"))
    if pins:
        _print_table(pins, ("name", "seq", "number", "position", "bytes"))


@checkpoints.command()
def rollback(
    seq: Seq,
    dropped: Annotated[
        bool,
        typer.Option("--drop/--retrain", help="Set later entries aside, or learn them once more."),
    ] = False,
    url: Url = None,
) -> None:
    """Let the learner go back to a checkpoint."""
    with _admin(url) as admin:
        typer.echo(admin.roll_back(seq, drop=dropped))


@checkpoints.command()
def pin(
    seq: Seq,
    name: Annotated[str, typer.Argument(help="1 to 40 of a-z, 0-9 and -.")],
    url: Url = None,
) -> None:
    """Keep a copy of a checkpoint, and of all it needs, for good."""
    with _admin(url) as admin:
        typer.echo(admin.pin(seq, name))


@checkpoints.command()
def unpin(
    name: Annotated[str, typer.Argument(help="Of the pin.")], state_dir: StateDir = None
) -> None:
    """Drop a checkpoint that was kept for good; reads and writes files of this machine."""
    from service.store import pins

    pins.unpin(files_of(state_dir).state_dir, name)
    typer.echo(f"pin {name} dropped")


@checkpoints.command()
def fork(
    chosen: Annotated[str, typer.Argument(help="Name of a pin, or number of a checkpoint.")],
    destination: Annotated[Path, typer.Argument(help="The new state directory.")],
    state_dir: StateDir = None,
) -> None:
    """Begin a learner of its own from a pin or checkpoint; reads files of this machine."""
    from service.store import forks
    from service.store.names import Names
    from service.store.server import server_url

    settings = files_of(state_dir)
    url, names = server_url(settings), Names(settings.stream)
    number = forks.fork(settings.state_dir, chosen, destination, url, names)
    typer.echo(f"{destination} goes on from entry {number}: levit serve --state-dir {destination}")


@snapshots.command()
def export(
    destination: Annotated[Path, typer.Argument(help="A directory to create.")],
    version: Annotated[int | None, typer.Option(min=1, help="Unset: the served one.")] = None,
    state_dir: StateDir = None,
) -> None:
    """Copy a served model to a directory from which `levit api` answers."""
    from service.store import forks

    settings = files_of(state_dir)
    found = forks.export_snapshot(settings.state_dir, version, destination)
    typer.echo(f"snapshot {found} copied to {destination}")


@snapshots.command("list")
def list_snapshots(url: Url = None) -> None:
    """List the published snapshots, newest first."""
    with _admin(url) as admin:
        rows = admin.snapshots()
    columns = ("version", "position", "step", "quarantined", "experts", "bytes", "age_s")
    _print_table(rows, columns)


def resync(
    accept_loss: Annotated[int, typer.Option(min=0, help="Entries that are given up for lost.")],
    url: Url = None,
) -> None:
    """Let a worker that has stopped go on, although entries of the log are lost."""
    with _admin(url) as admin:
        typer.echo(admin.resync(accept_loss))


def _admin(url: str | None) -> Admin:
    return Admin(address(url), ANSWER_S, key=key(), retry_s=RETRY_S)


def _settle(
    batch_ids: Sequence[str] | None, verb: Literal["retry", "drop"], *, every: bool, url: str | None
) -> None:
    """Release or drop batches; with --all, one that is gone meanwhile is passed over.

    Raises:
        Misused: neither ids nor --all were given, or both.
    """
    if bool(batch_ids) == every:
        raise Misused("expected batch ids or --all, got " + ("both" if every else "neither"))
    settled = 0
    bar = Progress(console=Console(stderr=True), transient=True)
    with _admin(url) as admin, bar as progress:
        chosen = [one["batch_id"] for one in admin.quarantined()] if every else batch_ids or []
        for batch_id in progress.track(chosen, description=verb):
            settled += _settle_one(admin, batch_id, verb, pass_over=every)
    done = "released; they are queued" if verb == "retry" else "dropped"
    typer.echo(f"{settled} {'batch' if settled == 1 else 'batches'} {done}")


def _settle_one(
    admin: Admin, batch_id: str, verb: Literal["retry", "drop"], *, pass_over: bool
) -> bool:
    try:
        admin.settle(batch_id, verb)
    except ApiError as refused:
        if pass_over and refused.code == "not_quarantined":
            return False
        raise
    return True


def _print_table(rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> None:
    table = Table(*columns)
    for row in rows:
        table.add_row(*(cell(_cell(column, row[column])) for column in columns))
    Console().print(table)


def _cell(column: str, value: Any) -> str:  # noqa: ANN401  whatever JSON says
    """Return a value as people read it."""
    match column, value:
        case _, None:
            text = "-"
        case "bytes", int():
            text = decimal(value)
        case "age_s", _:
            text = str(timedelta(seconds=round(value)))
        case _, list():
            text = " ".join(_cell("", one) for one in value)
        case _:
            text = str(value)
    return text
