"""Results as pictures: for each stream accuracy, experts and novelty while it goes by."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench import results
from bench.results import Result


def draw(found: Iterable[Result], directory: Path) -> list[Path]:
    """Write one picture a stream into `directory`; return where they are."""
    streams: dict[str, list[Sequence[Result]]] = {}
    for group in results.over_seeds(found):
        streams.setdefault(group[0].row.stream, []).append(group)
    return [_draw(stream, groups, directory) for stream, groups in streams.items()]


def _draw(stream: str, groups: list[Sequence[Result]], directory: Path) -> Path:
    """Draw one stream; of several seeds the mean, with the range of accuracy behind it."""
    figure = Figure(figsize=(11, 9), layout="constrained")
    accuracy, experts, novelty = figure.subplots(3, 1, sharex=True, height_ratios=(3, 1.5, 1.5))
    for number, group in enumerate(groups):
        colour = f"C{number % 10}"
        _draw_accuracy(accuracy, group, colour)
        passing = group[0].outcome.passing
        experts.plot(
            [p.samples for p in passing],
            [p.experts for p in passing],
            color=colour,
            drawstyle="steps-post",
        )
        if trace := group[0].outcome.novelty:
            novelty.plot([s for s, _ in trace], [value for _, value in trace], color=colour)
    held_out = any(group[0].outcome.checkpoints for group in groups)
    what = "accuracy on everything seen so far" if held_out else "prequential accuracy, faded"
    accuracy.set(title=stream, ylabel=what, ylim=(0, 1))
    accuracy.legend(fontsize=7, loc="lower left")
    experts.set(ylabel="experts", ylim=(0, None))
    novelty.set(ylabel="novelty", xlabel="samples observed")
    path = directory / f"{re.sub(r'[^a-zA-Z0-9_.-]+', '_', stream)}.png"
    figure.savefig(path, dpi=110)
    return path


def _draw_accuracy(axes: Axes, group: Sequence[Result], colour: str) -> None:
    """Draw held-out accuracy at the checkpoints, or else the prequential one."""
    curves = [_curve(result) for result in group]
    samples = [at for at, _ in curves[0]]
    columns = list(zip(*[[value for _, value in curve] for curve in curves], strict=True))
    mean = [sum(column) / len(column) for column in columns]
    axes.plot(samples, mean, ".-", ms=4, color=colour, label=group[0].row.title)
    low, high = [min(column) for column in columns], [max(column) for column in columns]
    axes.fill_between(samples, low, high, color=colour, alpha=0.15, lw=0)


def _curve(result: Result) -> list[tuple[int, float]]:
    outcome = result.outcome
    if outcome.checkpoints:
        return [(check.samples, check.accuracy) for check in outcome.checkpoints]
    return [(passing.samples, passing.prequential) for passing in outcome.passing]
