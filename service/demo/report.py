"""What the demo leaves to look at: a table on the terminal, a picture, the numbers as JSON."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from rich.table import Table

from service.demo.data import DemoData
from service.demo.stream import Result
from service.engine.protocol import Label


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One preset on the stream."""

    preset: str
    result: Result
    settings: Mapping[str, object]
    """That decide what is learned; empty where they are not known."""


def table(data: DemoData, runs: Sequence[Run]) -> Table:
    """Return the numbers of all runs, side by side, as a table for people."""
    title = f"{data.name}: learned over HTTP, class after class, without task information"
    rows = Table("", *(run.preset for run in runs), title=title)
    results = [run.result for run in runs]

    def add(name: str, told: Callable[[Result], str], style: str | None = None) -> None:
        """Add a row: what is told of each run."""
        rows.add_row(name, *map(told, results), style=style)

    add("accuracy, all classes, per sample", lambda r: f"{r.accuracy:.1%}", "bold")
    add("accuracy per class", lambda r: _by_class(r.accuracy_by_class))
    add("experts", lambda r: str(r.experts))
    add("expansions", lambda r: str(len(r.expansion_samples)))
    add("bytes of state", lambda r: f"{r.state_bytes / 1e6:,.1f} MB")
    add("seconds", lambda r: f"{r.seconds:,.0f}")
    add("samples learned", lambda r: f"{r.samples:,} in batches of {r.batch_size}")
    add("samples per second", lambda r: f"{r.samples_per_second:,.0f}")
    add("replay capacity", lambda r: f"{r.capacity:,}")
    add("threshold", lambda r: f"{r.threshold:.3g}")
    for name in ("budget", "replay_per_batch", "patch"):
        rows.add_row(name.replace("_", " "), *(_setting(run, name) for run in runs))
    return rows


def _setting(run: Run, name: str) -> str:
    """Return a setting as text; of a service that runs elsewhere they are not known."""
    if not run.settings:
        return "as that service is set"
    if name not in run.settings:
        return "-"
    value = run.settings[name]
    return "the preset's" if value is None else str(value)


def write_json(path: Path, data: DemoData, runs: Sequence[Run]) -> None:
    """Write every number of every run, with the settings that decide them."""
    text = json.dumps({"data": data.name, "runs": list(map(_numbers, runs))}, indent=1)
    path.write_text(text + "\n", encoding="utf-8")


def _numbers(run: Run) -> dict[str, object]:
    result = run.result
    numbers = asdict(result) | {"samples_per_second": result.samples_per_second}
    numbers["accuracy_by_class"] = {str(k): v for k, v in result.accuracy_by_class.items()}
    return {"preset": run.preset, "settings": run.settings, **numbers}


def draw(path: Path, data: DemoData, runs: Sequence[Run]) -> None:
    """Write the picture of the first run: accuracy, and below it experts, over the stream.

    Of the others only the accuracy is drawn.
    """
    result = runs[0].result
    figure = Figure(figsize=(11, 7), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    for other in runs[1:]:
        moments = other.result.moments
        above.plot(
            [moment.samples for moment in moments],
            [moment.seen_accuracy for moment in moments],
            "o-",
            ms=2,
            lw=1,
            color="tab:brown",
            label=f"the same with preset {other.preset}",
        )
    _draw_accuracy(above, data, result)
    _draw_experts(below, result)
    figure.savefig(path, dpi=120)


def _draw_accuracy(axes: Axes, data: DemoData, result: Result) -> None:
    """Draw both accuracies of every moment, and where the classes begin."""
    samples = [moment.samples for moment in result.moments]
    seen = [moment.seen_accuracy for moment in result.moments]
    prequential = [
        math.nan if moment.prequential_accuracy is None else moment.prequential_accuracy
        for moment in result.moments
    ]
    axes.plot(
        samples, seen, "o-", ms=4, color="tab:blue", label="held-out, all classes seen so far"
    )
    axes.plot(
        samples, prequential, "--", color="tab:gray", label="prequential: before it was learned"
    )
    axes.plot(
        result.samples, result.accuracy, "*", ms=14, color="tab:blue", label="all held-out samples"
    )
    for label in data.classes.tolist():
        begin = int(np.argmax(data.y_train == label))
        axes.axvline(begin, color="lightgray", lw=0.8, zorder=0)
        axes.text(begin, 1.03, f" {label}", fontsize=8, color="dimgray")
    axes.set(ylabel="accuracy", ylim=(0, 1.1))
    axes.set_title(
        f"{data.name}: {result.accuracy:.1%} of {len(data.x_test):,} held-out samples right after "
        f"{result.samples:,} samples, class after class\n(top row: the class that begins there)"
    )
    axes.legend(loc="lower left")


def _draw_experts(axes: Axes, result: Result) -> None:
    """Draw the number of experts over the stream, each expansion marked."""
    born = [0, *result.expansion_samples]
    first = result.experts - len(result.expansion_samples)
    experts = [first + grown for grown in range(len(born))]
    axes.step([*born, result.samples], [*experts, result.experts], where="post", color="tab:orange")
    axes.plot(born[1:], experts[1:], "^", color="tab:red", label="expansion")
    axes.set(xlabel="samples learned", ylabel="experts", ylim=(0, result.experts + 1))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title(
        f"the mixture grows to {result.experts} experts "
        f"(threshold {result.threshold:g}, replay capacity {result.capacity:,})"
    )
    axes.legend(loc="lower right")


def _by_class(accuracies: Mapping[Label, float]) -> str:
    return "  ".join(f"{label}: {accuracy:.0%}" for label, accuracy in accuracies.items())
