"""`levit observe | predict | experts | watch | report | streams`: the service as seen by users."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from service.cli_options import RETRY_S, Stream, Url, address, connection, key
from service.client import Answers, AsyncClient, Sent
from service.datafile import IMAGES, read_image, read_samples
from service.errors import Misused
from service.report.gathered import Gathered, gather
from service.shown import cell, printable

PATIENCE_S = 600.0
"""How long `observe` waits for a service that is away or full, and then for its last batch."""
STOPPED = 130
"""Exit code of a command that Ctrl-C has ended, as shells have it."""
MOST_EXPLAINED = 16
"""Samples of one request that the service explains."""
_SHADES = " .:-=+*#%@"
BatchSize = Annotated[int, typer.Option(min=1, help="Samples in one request.")]

streams = typer.Typer(help="The streams that the service learns.", no_args_is_help=True)


class _Rate(ProgressColumn):
    """Samples a second."""

    def render(self, task: Task) -> Text:
        """Return the rate of a task."""
        return Text("-/s" if task.speed is None else f"{task.speed:,.0f}/s")


def observe(
    file: Annotated[Path, typer.Argument(help="An .npz with x (or x_train), an .npy or a .csv.")],
    labels: Annotated[
        Path | None, typer.Option(help="An .npy or .npz of the labels; unset: y in FILE, if any.")
    ] = None,
    run: Annotated[
        str | None, typer.Option(help="Name of this run; unset: its content, sent once.")
    ] = None,
    stream: Stream = None,
    batch_size: BatchSize = 100,
    url: Url = None,
) -> None:
    """Send the samples of FILE in their order; wait until they are learned.

    Stopped and called again, it goes on where it was. To send the same once more, name a run.
    """
    x, y = read_samples(file, ("x", "x_train"), ("y", "y_train"), labels)
    with connection(url, None) as service:
        service.document("/livez")  # nothing there is said at once
    with connection(url, stream, retry_s=PATIENCE_S) as client:
        try:
            with _bar() as progress:
                task = progress.add_task("samples", total=len(x))

                def show(sent: Sent) -> None:
                    """Move the bar."""
                    progress.update(task, completed=sent.samples)

                sent = client.observe_all(x, y, batch_size=batch_size, run=run, progress=show)
        except KeyboardInterrupt:
            typer.echo("levit: stopped; the same command goes on where this one was", err=True)
            raise typer.Exit(STOPPED) from None
        last = client.wait_until_learned(sent.receipt, timeout_s=PATIENCE_S)
    before = f", {sent.replayed} of them before" if sent.replayed else ""
    typer.echo(
        f"{sent.samples} samples accepted{before}; the last batch is {last.state} "
        f"(step {last.step})"
    )


def _bar() -> Progress:
    """Return a progress bar on standard error: samples, samples a second, time to go."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )


def predict(
    file: Annotated[
        Path, typer.Argument(help="An .npz with x (or x_test), an .npy, .csv, .png or .jpg.")
    ],
    stream: Stream = None,
    batch_size: BatchSize = 100,
    explain: Annotated[
        bool, typer.Option("--explain", help="Print why, below each sample.")
    ] = False,
    url: Url = None,
) -> None:
    """Print label, probability, expert and novelty of each sample of FILE, tab-separated."""
    if file.suffix.lower() in IMAGES:
        content = read_image(file)
        with connection(url, stream) as client:
            _print_answers(client.predict_image(content, explain=explain), first=0)
        return
    x, _ = read_samples(file, ("x", "x_test"), ())
    step = min(batch_size, MOST_EXPLAINED) if explain else batch_size
    with connection(url, stream) as client:
        for at in range(0, len(x), step):
            _print_answers(client.predict(x[at : at + step], explain=explain), first=at)


_HEAD = "sample\tlabel\tprobability\texpert\tnovelty"


def _print_answers(found: Answers, *, first: int) -> None:
    """Print a line for each sample; with the first one what stands in them."""
    if first == 0:
        typer.echo(_HEAD)
    best = found.probabilities.max(axis=1, initial=0.0)
    rows = zip(found.labels, best, found.experts, found.novelty, strict=True)
    for row, (label, probability, expert, novelty) in enumerate(rows, start=first):
        typer.echo(f"{row}\t{printable(label)}\t{probability:.4f}\t{expert}\t{novelty:.4f}")
        if found.explanations:
            _print_why(found.explanations[row - first])


def _print_why(why: Mapping[str, Any]) -> None:
    """Print shares, nearest samples, and where in an image the answer comes from, @ the most."""
    shares = {f"expert {id_}": share for id_, share in why["weights"].items()} | why["parts"]
    told = [f"{name} {share:.2f}" for name, share in shares.items() if share > 0]
    typer.echo(f"  shares: {', '.join(told)}")
    if why["nearest"] is None:
        typer.echo(f"  nearest: none, {why['nearest_reason']}")
    else:
        near = [f"{one['sample_id']} ({printable(one['label'])})" for one in why["nearest"]]
        typer.echo(f"  nearest: {', '.join(near)}")
    for cells in why["heat"]["rows"] if why["heat"] else ():
        line = "".join(2 * _SHADES[round(heat * (len(_SHADES) - 1))] for heat in cells)
        typer.echo(f"  |{line}|")


def experts(stream: Stream = None, url: Url = None) -> None:
    """Print the experts of the served model."""
    with connection(url, stream) as client:
        found = client.experts()
    if not found["model_version"]:
        typer.echo("no model yet: nothing was learned so far")
        return
    columns = ("id", "state", "born_step", "frozen_step", "novelty", "cause", "samples")
    title = f"model {found['model_version']}, {found['samples_learned']} samples learned"
    table = Table(*columns, "classes", title=title)
    for expert in found["experts"]:
        classes = " ".join(map(str, expert["classes"]))
        table.add_row(*(cell(expert[column]) for column in columns), cell(classes))
    Console().print(table)


def watch(
    stream: Stream = None,
    once: Annotated[bool, typer.Option("--once", help="Print one picture and end.")] = False,
    url: Url = None,
) -> None:
    """Show experts, accuracy, backlog and events as they change; Ctrl-C ends it."""
    from service.watch import watch as show

    show(address(url), key=key(), stream=stream, once=once)


def report(
    out: Annotated[Path, typer.Argument(help="The page to write, such as report.html.")],
    png: Annotated[
        Path | None, typer.Option(help="Also a picture of it, if Chromium is installed.")
    ] = None,
    stream: Stream = None,
    url: Url = None,
) -> None:
    """Write one page about the stream's life: growth, accuracy, expansions, cost."""
    from service.report.page import page
    from service.report.picture import draw

    gathered = asyncio.run(_gathered(url, stream))
    version = gathered.model["model_version"]
    if not version:
        raise Misused("no report yet: nothing was learned so far")
    try:
        out.write_text(page(gathered, stream=stream or "default"), encoding="utf-8")
    except OSError as refusal:
        raise Misused(f"cannot write {out}: {refusal.strerror}") from refusal
    if png is not None:
        draw(out, png)
    typer.echo(f"{out} written: model {version}")


async def _gathered(url: str | None, stream: str | None) -> Gathered:
    """Return what a report is made of."""
    at = address(url)
    async with (
        AsyncClient(at, key=key(), stream=stream, retry_s=RETRY_S) as client,
        AsyncClient(at, key=key(), stream=stream, retry_s=0) as listening,
    ):
        return await gather(client, listening)


@streams.command("list")
def list_streams(url: Url = None) -> None:
    """List the streams of the service."""
    with connection(url, None) as client:
        rows = client.streams()
    columns = ("name", "input", "labels", "preset", "max_experts", "model_version")
    table = Table(*columns)
    for row in rows:
        table.add_row(*(cell(row[column]) for column in columns))
    Console().print(table)


@streams.command("create")
def create_stream(
    name: Annotated[str, typer.Argument(help="1 to 32 of a-z, 0-9, _ and -.")],
    input: Annotated[
        str | None, typer.Option(help="What a sample is, such as image:28x28x1.")
    ] = None,
    labels: Annotated[
        str | None, typer.Option(help="The only labels it takes, with commas between.")
    ] = None,
    options: Annotated[
        list[str] | None,
        typer.Option("--set", help="Another setting of its own, such as max_experts=8."),
    ] = None,
    url: Url = None,
) -> None:
    """Declare a stream; it never changes afterwards."""
    listed = None if labels is None else [_value(label) for label in labels.split(",")]
    pairs = [option.partition("=") for option in options or ()]
    with connection(url, None) as client:
        client.create_stream(
            name, input, labels=listed, **{setting: _value(value) for setting, _, value in pairs}
        )
    typer.echo(f"stream {name} is there: levit observe FILE --stream {name}")


def _value(text: str) -> int | str:
    """Return a number where a text is one."""
    return int(text) if text.isdecimal() else text
