"""`levit`: the command line. Wiring only; what is slow to import is imported in the commands.

Exit codes: 0 done · 1 the service could not do it · 2 the user's mistake · 65 corrupt state ·
75 the state directory is in use. A failure is one line on standard error.
"""

import re
import signal
import sys
from http import HTTPStatus
from pathlib import Path
from typing import Annotated

import typer

from service import cli_admin, cli_client, cli_keys, cli_log
from service.cli_options import StateDir
from service.client import ApiError
from service.datafile import BadDataFile
from service.engine.load import load_engines
from service.errors import (
    CorruptState,
    DemoFailed,
    IncompleteHistory,
    Misused,
    ServiceError,
    SettingsError,
    StateDirectoryBusy,
)
from service.settings import PREFIX, Settings

EXIT_CODES: dict[type[Exception], int] = {
    ApiError: 1,
    ServiceError: 1,
    DemoFailed: 1,
    IncompleteHistory: 1,
    OSError: 1,
    SettingsError: 2,
    Misused: 2,
    BadDataFile: 2,
    CorruptState: 65,
    StateDirectoryBusy: 75,
}
DEMO_EXTRA = "install it with: pip install 'levit-stream[demo]'"

app = typer.Typer(
    help="An online, task-free streaming learner as a service; `levit serve` starts it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (cli_client.observe, cli_client.predict, cli_client.experts, cli_client.watch):
    app.command()(command)
app.command()(cli_client.report)
app.add_typer(cli_client.streams, name="streams")

app.add_typer(cli_log.log, name="log")
app.command()(cli_log.replay)

app.add_typer(cli_keys.keys, name="keys")
app.add_typer(cli_admin.quarantine, name="quarantine")
app.add_typer(cli_admin.checkpoints, name="checkpoints")
app.add_typer(cli_admin.snapshots, name="snapshots")
app.command()(cli_admin.resync)

Insecure = Annotated[
    bool,
    typer.Option("--insecure", help="Serve on loopback while there are no keys (LEVIT_INSECURE)."),
]
Host = Annotated[str | None, typer.Option(help="Address the API listens on (LEVIT_HOST).")]
Port = Annotated[int | None, typer.Option(help="Port of the API (LEVIT_PORT).")]
Input = Annotated[
    str | None,
    typer.Option(help="What a sample is, such as image:28x28x1; unset: the first batch says."),
]


@app.command()
def serve(
    state_dir: StateDir = None,
    insecure: Insecure = False,
    host: Host = None,
    port: Port = None,
    input: Input = None,
) -> None:
    """Run everything on this machine: Redis where none is given, the worker and the API."""
    from service import supervisor

    settings = Settings.read(
        state_dir=state_dir, insecure=insecure or None, host=host, port=port, input=input
    )
    raise typer.Exit(supervisor.serve(settings))


@app.command()
def api(
    state_dir: StateDir = None,
    insecure: Insecure = False,
    host: Host = None,
    port: Port = None,
) -> None:
    """Run one API process: accepts observations, answers predictions."""
    from service.api.app import serve
    from service.engine.remote import InferenceProcesses

    settings = Settings.read(state_dir=state_dir, insecure=insecure or None, host=host, port=port)
    with InferenceProcesses(settings.api_threads) as inference:
        serve(settings, inference.start)


@app.command()
def worker(state_dir: StateDir = None) -> None:
    """Run the worker: the only process that learns, one per state directory."""
    from service.worker import process

    settings = Settings.read(state_dir=state_dir)
    raise typer.Exit(process.run(settings, load_engines(settings.learner_threads)))


@app.command()
def demo(
    data: Annotated[
        str, typer.Option(help="digits, a name in LEVIT_DATA such as mnist, or an .npz file.")
    ] = "digits",
    url: Annotated[
        str | None, typer.Option(help="Stream into this service; unset: a fresh one is started.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many samples.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Samples in one request; unset: as the data wants.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The picture; numbers go beside it.")] = Path(
        "demo.png"
    ),
) -> None:
    """Stream real data class by class into a service and show what it learned."""
    try:
        from service.demo.run import run
    except ImportError as absent:
        raise SettingsError(f"the demo needs {absent.name}; {DEMO_EXTRA}") from None

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # kill is as clean as Ctrl-C
    run(data, url=url, limit=limit, batch_size=batch_size, out=out)


@app.command(
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def bench(context: typer.Context) -> None:
    """Measure methods on streams under the strict protocol; `levit bench --help` says how."""
    from bench.cli import app as bench_app

    bench_app(context.args, prog_name="levit bench")


@app.command()
def config() -> None:
    """Print every setting: its value here, its default, what it means."""
    settings = Settings.read()
    for name, field in Settings.model_fields.items():
        value, default = _shown(getattr(settings, name)), _shown(field.default)
        typer.echo(f"{PREFIX}{name.upper()} = {value}   (default: {default})")
        typer.echo(f"    {' '.join((field.description or '').split())}")


def _shown(value: object) -> str:
    """Return a setting's value as it is typed; a password in an address is hidden."""
    if value is None:
        return "unset"
    if isinstance(value, bool):
        return str(value).lower()
    return re.sub(r"//([^:@/]*):[^@/]*@", r"//\1:***@", str(value))


def main() -> None:
    """Run `levit`; an error made on purpose becomes one line and its exit code."""
    try:
        app()
    except tuple(EXIT_CODES) as error:
        typer.echo(f"levit: {error}", err=True)
        sys.exit(_exit_code(error))


def _exit_code(error: Exception) -> int:
    if isinstance(error, ApiError):
        refused = HTTPStatus.BAD_REQUEST <= error.status < HTTPStatus.INTERNAL_SERVER_ERROR
        return 2 if refused else 1
    return next(code for kind, code in EXIT_CODES.items() if isinstance(error, kind))
