"""`levit`: the command line. Wiring only; what is slow to import is imported in the commands.

Exit codes: 0 done · 1 the service could not do it · 2 the user's mistake · 65 corrupt state ·
75 the state directory is in use. A failure is one line on standard error.
"""

import re
import signal
import sys
from collections.abc import Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from service import cli_admin, cli_log
from service.cli_options import RETRY_S, StateDir, Url, address
from service.client import ApiError, Client
from service.datafile import BadDataFile, read_arrays
from service.engine.load import load_engines
from service.engine.protocol import Array
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
WAIT_LIMIT_S = 600.0
"""How long `observe` waits for its last batch."""
DEMO_EXTRA = "install it with: pip install 'levit-stream[demo]'"

app = typer.Typer(
    help="An online, task-free streaming learner as a service; `levit serve` starts it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(cli_log.log, name="log")
app.command()(cli_log.replay)

app.add_typer(cli_admin.quarantine, name="quarantine")
app.add_typer(cli_admin.checkpoints, name="checkpoints")
app.add_typer(cli_admin.snapshots, name="snapshots")
app.command()(cli_admin.resync)

Insecure = Annotated[
    bool, typer.Option("--insecure", help="Serve without keys, on loopback only (LEVIT_INSECURE).")
]
Host = Annotated[str | None, typer.Option(help="Address the API listens on (LEVIT_HOST).")]
Port = Annotated[int | None, typer.Option(help="Port of the API (LEVIT_PORT).")]
Input = Annotated[
    str | None,
    typer.Option(help="What a sample is, such as image:28x28x1; unset: the first batch says."),
]
BatchSize = Annotated[int, typer.Option(min=1, help="Samples in one request.")]
DataFile = Annotated[Path, typer.Argument(help="An .npz with x (or x_train), or an .npy.")]


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

    settings = Settings.read(state_dir=state_dir, insecure=insecure or None, host=host, port=port)
    serve(settings, lambda: load_engines(settings.api_threads))


@app.command()
def worker(state_dir: StateDir = None) -> None:
    """Run the worker: the only process that learns, one per state directory."""
    from service.worker import process

    settings = Settings.read(state_dir=state_dir)
    raise typer.Exit(process.run(settings, load_engines(settings.learner_threads)))


@app.command()
def observe(file: DataFile, url: Url = None, batch_size: BatchSize = 100) -> None:
    """Send the samples of FILE (x, and y if it has labels) in their order; wait until learned."""
    x, y = _samples(file, ("x", "x_train"), ("y", "y_train"))
    bar = Progress(console=Console(stderr=True), transient=True)
    with Client(address(url)) as client, bar as progress:
        batches = [slice(at, at + batch_size) for at in range(0, len(x), batch_size)]
        receipts = [
            client.observe(x[batch], None if y is None else y[batch])
            for batch in progress.track(batches, description="observe")
        ]
        last = client.wait_until_learned(receipts[-1], timeout_s=WAIT_LIMIT_S)
    typer.echo(f"{len(x)} samples accepted; the last batch is {last.state} (step {last.step})")


@app.command()
def predict(file: DataFile, url: Url = None, batch_size: BatchSize = 100) -> None:
    """Print label, probability, expert and novelty of each sample of FILE, tab-separated."""
    x, _ = _samples(file, ("x", "x_test"), ())
    with Client(address(url), retry_s=RETRY_S) as client:
        typer.echo("sample\tlabel\tprobability\texpert\tnovelty")
        for at in range(0, len(x), batch_size):
            found = client.predict(x[at : at + batch_size])
            best = found.probabilities.max(axis=1, initial=0.0)
            rows = zip(found.labels, best, found.experts, found.novelty, strict=True)
            for row, (label, probability, expert, novelty) in enumerate(rows, start=at):
                typer.echo(f"{row}\t{label}\t{probability:.4f}\t{expert}\t{novelty:.4f}")


@app.command()
def experts(url: Url = None) -> None:
    """Print the experts of the served model."""
    with Client(address(url), retry_s=RETRY_S) as client:
        found = client.experts()
    if not found["model_version"]:
        typer.echo("no model yet: nothing was learned so far")
        return
    columns = ("id", "state", "born_step", "frozen_step", "novelty", "cause", "samples")
    title = f"model {found['model_version']}, {found['samples_learned']} samples learned"
    table = Table(*columns, "classes", title=title)
    for expert in found["experts"]:
        classes = " ".join(map(str, expert["classes"]))
        table.add_row(*(_shown(expert[column]) for column in columns), classes)
    Console().print(table)


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


def _samples(
    file: Path, x_names: Sequence[str], y_names: Sequence[str]
) -> tuple[Array, Array | None]:
    """Return samples and labels of a file, each under the first of its names that is there.

    Raises:
        BadDataFile: no samples there, or none that can be sent.
    """
    arrays = read_arrays(file)
    x = next((arrays[name] for name in x_names if name in arrays), None)
    y = next((arrays[name] for name in y_names if name in arrays), None)
    if x is None:
        raise BadDataFile(f"expected an array {' or '.join(x_names)} in {file}, got {list(arrays)}")
    if x.size == 0 or not (x.dtype == np.uint8 or x.dtype.kind == "f"):
        raise BadDataFile(f"expected samples of uint8 or floats, got {x.dtype} {x.shape} in {file}")
    if y is not None and (y.shape != x.shape[:1] or y.dtype.kind not in "iuU"):
        raise BadDataFile(
            f"expected {len(x)} integers or strings as labels, got {y.dtype} {y.shape}"
        )
    return x, y


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
