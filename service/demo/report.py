"""What the demo leaves to look at: a table on the terminal, a picture, the numbers as JSON."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from rich.table import Table

from service.demo.data import DemoData
from service.demo.stream import Result
from service.engine.protocol import Label


def table(data: DemoData, result: Result, settings: Mapping[str, object]) -> Table:
    """Return the numbers of `result` as a table for people."""
    rows = Table(
        "", data.name, title="Learned over HTTP, class after class, without task information"
    )
    rows.add_row("accuracy, all classes, per sample", f"{result.accuracy:.1%}", style="bold")
    rows.add_row("accuracy per class", _by_class(result.accuracy_by_class))
    rows.add_row("experts", str(result.experts))
    rows.add_row("expansions", str(len(result.expansion_samples)))
    rows.add_row("samples learned", f"{result.samples:,} in batches of {result.batch_size}")
    rows.add_row("samples per second", f"{result.samples_per_second:,.0f}")
    rows.add_row("replay capacity", f"{result.capacity:,}")
    rows.add_row("threshold", f"{result.threshold:g}")
    rows.add_row("replayed per batch", _setting(settings, "replay_per_batch"))
    rows.add_row("patch", _setting(settings, "patch"))
    return rows


def _setting(settings: Mapping[str, object], name: str) -> str:
    """Return a setting as text; of a service that runs elsewhere they are not known."""
    if name not in settings:
        return "as that service is set"
    value = settings[name]
    return "the preset's" if value is None else str(value)


def write_json(path: Path, data: DemoData, result: Result, settings: Mapping[str, object]) -> None:
    """Write every number of the run, with the settings that decide them."""
    numbers = asdict(result) | {"samples_per_second": result.samples_per_second}
    numbers["accuracy_by_class"] = {str(k): v for k, v in result.accuracy_by_class.items()}
    text = json.dumps({"data": data.name, "settings": settings, **numbers}, indent=1)
    path.write_text(text + "\n", encoding="utf-8")


def draw(path: Path, data: DemoData, result: Result) -> None:
    """Write the picture: accuracy over the stream, and below it experts over the stream."""
    figure = Figure(figsize=(11, 7), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
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
