"""The demo from beginning to end: service, stream, table, picture, and how to go on."""

import sys
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from service.client import Client
from service.demo import process, report
from service.demo.data import DemoData, load_data
from service.demo.report import Run
from service.demo.stream import Moment, Result, stream
from service.settings import FOREIGN, Preset, Settings

COLUMNS = (BarColumn(bar_width=8), MofNCompleteColumn(), TextColumn("{task.fields[told]}"))
"""Fits a terminal of 80 characters."""
DECISIVE = {
    "preset",
    "seed",
    "expert",
    "fusion",
    "budget",
    "statistics_bytes",
    "replay_bytes",
    "false_expansion_probability",
    "false_expansion_horizon",
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
        url: a running service to use; None starts a fresh one for each preset, unless the
            environment says which, and stops it at the end.
        limit: at most so many training samples.
        batch_size: samples in one request; None for the data set's own.
        out: where the picture goes; the numbers go beside it as .json.

    Raises:
        SettingsError, BadDataFile: before anything was started.
        DemoFailed, ApiError: the run could not be finished.
    """
    settings = Settings.read()
    data = load_data(name, settings.data, limit=limit, batch_size=batch_size)
    console = Console()
    console.print("Accuracy: prequential, and on held-out samples of all classes seen so far")
    presets = [] if url else _presets(settings)
    runs = [_fresh_run(preset, data, settings, console) for preset in presets][::-1]
    if url:
        runs = [Run(preset="of that service", result=_streamed(url, data, console), settings={})]
    numbers = out.with_suffix(".json")
    report.write_json(numbers, data, runs)
    report.draw(out, data, runs)
    console.print(report.table(data, runs))
    console.print(f"Picture: {out}   Numbers: {numbers}")
    if presets:
        console.print("The service has stopped and its state is kept. To serve it on:")
        levit = sys.argv[0] if Path(sys.argv[0]).name == "levit" else "levit"
        serve = f"{levit} serve --insecure --state-dir {process.STATE_DIR}"
        made = _spelled(_made(presets[-1], data, settings))
        console.print(f"{made} {serve}".strip(), soft_wrap=True, style="bold")


def _presets(settings: Settings) -> list[Preset]:
    """Return what to run: the preset asked for, else both; the last one's state is kept."""
    return [settings.preset] if "preset" in settings.model_fields_set else ["paper", "default"]


def _fresh_run(preset: Preset, data: DemoData, settings: Settings, console: Console) -> Run:
    """Stream the data into a fresh service of this preset, and stop it."""
    made, foreign = _made(preset, data, settings), FOREIGN[preset]
    console.print(f"Starting a fresh service in {process.STATE_DIR} with {_spelled(made)}")
    with process.running_service(made, without=foreign) as address:
        result = _streamed(address, data, console)
    in_force = settings.model_dump(mode="json", include=DECISIVE - foreign) | made
    return Run(preset=preset, result=result, settings=in_force)


def _made(preset: Preset, data: DemoData, settings: Settings) -> dict[str, object]:
    """Return what the demo sets; what the environment sets wins over what it would choose."""
    chosen = data.settings[preset].items()
    return {"preset": preset} | {k: v for k, v in chosen if k not in settings.model_fields_set}


def _streamed(address: str, data: DemoData, console: Console) -> Result:
    console.print(f"Streaming {data.name} to {address} (documentation at {address}/docs)")
    with Client(address) as client:
        return _stream_with_progress(client, data, console)


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
