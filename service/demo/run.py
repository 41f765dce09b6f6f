"""The demo from beginning to end: service, stream, table, picture, and how to go on."""

import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from service.client import Client
from service.demo import process, report
from service.demo.data import DemoData, load_data
from service.demo.stream import Moment, Result, stream
from service.settings import Settings

COLUMNS = (BarColumn(bar_width=8), MofNCompleteColumn(), TextColumn("{task.fields[told]}"))
"""Fits a terminal of 80 characters."""
DECISIVE = {
    "preset",
    "seed",
    "expert",
    "fusion",
    "threshold",
    "capacity",
    "replay_per_batch",
    "learning_rate",
    "patch",
    "max_experts",
    "device",
    "worker_threads",
}
"""Settings that decide what is learned; they stand beside every number."""


def run(
    name: str,
    *,
    url: str | None,
    limit: int | None,
    batch_size: int | None,
    out: Path,
) -> None:
    """Stream the data set `name` into a service and leave a table, `out` and `out`.json.

    Args:
        name: `digits`, a name in LEVIT_DATA, or the path of an .npz.
        url: a running service to use; None starts a fresh one and stops it at the end.
        limit: at most so many training samples.
        batch_size: samples in one request; None for the data set's own.
        out: where the picture goes; the numbers go beside it as .json.

    Raises:
        SettingsError, BadDataFile: before anything was started.
        DemoFailed, ApiError: the run could not be finished.
    """
    settings = Settings.read()
    data = load_data(name, settings.data, limit=limit, batch_size=batch_size)
    # What the environment sets wins over what the demo would choose.
    made = {
        key: value for key, value in data.settings.items() if key not in settings.model_fields_set
    }
    console = Console()
    with ExitStack() as stack:
        if url is None:
            told = _spelled(made) or "the preset's settings"
            console.print(f"Starting a fresh service in {process.STATE_DIR} with {told}")
            address = stack.enter_context(process.running_service(made))
        else:
            address = url
        console.print(f"Streaming {data.name} to {address} (documentation at {address}/docs)")
        console.print("Accuracy: prequential, and on held-out samples of all classes seen so far")
        client = stack.enter_context(Client(address))
        result = _stream_with_progress(client, data, console)
    in_force = {} if url else settings.model_dump(mode="json", include=DECISIVE) | made
    numbers = out.with_suffix(".json")
    report.write_json(numbers, data, result, in_force)
    report.draw(out, data, result)
    console.print(report.table(data, result, in_force))
    console.print(f"Picture: {out}   Numbers: {numbers}")
    if url is None:
        console.print("The service has stopped and its state is kept. To serve it on:")
        levit = sys.argv[0] if Path(sys.argv[0]).name == "levit" else "levit"
        serve = f"{levit} serve --insecure --state-dir {process.STATE_DIR}"
        console.print(f"{_spelled(made)} {serve}".strip(), soft_wrap=True, style="bold")


def _stream_with_progress(client: Client, data: DemoData, console: Console) -> Result:
    """Stream under a progress bar that tells what each new model is worth."""
    with Progress(*COLUMNS, console=console) as progress:
        task = progress.add_task("learned", total=len(data.x_train), told="waiting for a model")

        def show(moment: Moment) -> None:
            progress.update(task, completed=moment.samples, told=_told(moment))

        return stream(client, data, show=show)


def _told(moment: Moment) -> str:
    prequential = moment.prequential_accuracy
    return (
        f"prequential {'-' if prequential is None else format(prequential, '.0%')} · "
        f"{moment.classes} seen {moment.seen_accuracy:.0%} · "
        f"experts {moment.experts}, expansions {moment.expansions}"
    )


def _spelled(settings: Mapping[str, object]) -> str:
    """Return settings as a shell is told them."""
    return " ".join(f"{name}={value}" for name, value in process.environment_of(settings).items())
