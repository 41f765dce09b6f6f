"""`levit keys create | list | revoke`: who may use the service; works on the state directory."""

import re
from datetime import UTC, datetime
from typing import Annotated, get_args

import typer
from rich.console import Console
from rich.table import Table

from service.cli_options import StateDir
from service.errors import Misused
from service.scopes import Scope
from service.settings import Settings
from service.store.keys import Key, create_key, read_keys, revoke_key

SCOPES_TOLD = ", ".join(get_args(Scope))
WAIT_S = 10.0
"""Longest wait of --purge for the worker."""
UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}

keys = typer.Typer(help="Who may use the service, and for what.", no_args_is_help=True)


@keys.command()
def create(
    *,
    name: Annotated[str, typer.Option(help="For people: whose key it is.")],
    scope: Annotated[list[str], typer.Option(help=f"Of {SCOPES_TOLD}; give it once for each.")],
    stream: Annotated[
        list[str] | None, typer.Option(help="A stream it may touch; unset: all.")
    ] = None,
    expires: Annotated[
        str | None, typer.Option(help="How long it counts, such as 30d, 12h, 10m; unset: for good.")
    ] = None,
    rate: Annotated[float | None, typer.Option(help="Most requests a second; unset: any.")] = None,
    burst: Annotated[
        int | None, typer.Option(help="Most at once above --rate; unset: those of a second.")
    ] = None,
    in_flight: Annotated[
        int | None, typer.Option(help="Most requests at the same time; unset: any.")
    ] = None,
    state_dir: StateDir = None,
) -> None:
    """Make a key and print it, this once: only its hash is kept. A running service takes it."""
    key, token = create_key(
        Settings.read(state_dir=state_dir).state_dir,
        name=name,
        scopes=scope,
        streams=stream or None,
        lifetime_s=None if expires is None else _seconds(expires),
        rate=rate,
        burst=burst,
        in_flight=in_flight,
    )
    typer.echo(token)
    typer.echo(
        f"key {key.id} ({key.name}) may {_listed(key.scopes)}; keep it, it is shown only now. "
        "Send it as `Authorization: Bearer KEY`, or let LEVIT_KEY hold it",
        err=True,
    )


@keys.command("list")
def list_keys(state_dir: StateDir = None) -> None:
    """List every key ever made, oldest first; never the keys themselves."""
    table = Table()
    table.add_column("id", no_wrap=True)
    for column in ("name", "state", "scopes", "streams", "expires", "a second", "at once"):
        table.add_column(column, overflow="fold")
    for key in read_keys(Settings.read(state_dir=state_dir).state_dir) or []:
        table.add_row(*_cells(key))
    Console().print(table)


@keys.command()
def revoke(
    key_id: Annotated[str, typer.Argument(help="Its id, as `levit keys list` shows it.")],
    purge: Annotated[
        bool, typer.Option("--purge", help="Take back what it has written, as far as it is kept.")
    ] = False,
    state_dir: StateDir = None,
) -> None:
    """Let a key count no more; a running service knows within a second.

    With --purge its samples leave the replay memory and the sums of every stream that it could
    write to, now or once the worker is back; also of a key that was revoked before.
    """
    settings = Settings.read(state_dir=state_dir)
    key = revoke_key(settings.state_dir, key_id, again=purge)
    typer.echo(f"key {key.id} ({key.name}) revoked")
    if purge:
        from service import purging

        for done in purging.purge(settings, key, wait_s=WAIT_S):
            typer.echo(done.told)


def _seconds(text: str) -> int:
    found = re.fullmatch(r"([1-9]\d{0,5})([smhd])", text)
    if found is None:
        raise Misused(f"--expires: expected a number and s, m, h or d, such as 30d, got {text!a}")
    return int(found[1]) * UNITS_S[found[2]]


def _cells(key: Key) -> tuple[str, ...]:
    return (
        key.id,
        key.name,
        key.state,
        _listed(key.scopes),
        "all" if key.streams is None else _listed(key.streams),
        "-" if key.expires is None else _date(key.expires),
        "-" if key.rate is None else f"{key.rate:g}",
        "-" if key.in_flight is None else str(key.in_flight),
    )


def _listed(names: frozenset[str]) -> str:
    return " ".join(sorted(names))


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")
