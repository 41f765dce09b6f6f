"""Results as Markdown: one table a stream, with the machine and every row's command.

Accuracies are means over the seeds in per cent, with the sample deviation where there are several.
"""

import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from rich.console import Console

from bench import results
from bench.outcome import Outcome
from bench.results import Result
from service.errors import SettingsError

Value = Callable[[Outcome], float | None]
SHARES: Sequence[tuple[str, Value]] = (
    ("accuracy", lambda o: o.accuracy),
    ("anytime", lambda o: o.anytime),
    ("forgetting", lambda o: o.forgetting),
    ("backward transfer", lambda o: o.backward_transfer),
    ("prequential", lambda o: o.prequential),
    ("worse than best part by", lambda o: max(o.parts.values()) - o.score if o.parts else None),
)
"""Columns in per cent."""
NUMBERS: Sequence[tuple[str, str, Value]] = (
    ("experts", ".3g", lambda o: o.cost.experts),
    ("expansions", ".3g", lambda o: o.cost.expansions),
    ("parameters", ",.0f", lambda o: o.cost.parameters),
    ("state MB", ",.1f", lambda o: o.cost.state_bytes / 1e6),
    ("gradients / sample", ",.1f", lambda o: o.sample_gradients),
    ("MFLOP / sample", ",.1f", lambda o: o.cost.flops and o.cost.flops / o.samples / 1e6),
    ("samples / s", ",.0f", lambda o: o.samples_per_s),
    ("s", ",.0f", lambda o: o.seconds),
    ("peak MB", ",.0f", lambda o: o.peak_bytes / 1e6),
)
"""Further columns, as means."""
LEGEND = """\
accuracy: of all held-out samples at the end, each predicted by itself; anytime: mean over the
checkpoints of the accuracy on everything seen so far; prequential: before each sample was learned;
state: everything kept between two mini-batches, statistics, experts and replay; gradients:
sample-gradients per arriving sample, a forward counts 1, its backward 2; samples / s: learning
alone; s: the whole pass with all predictions; peak: resident memory with the data set. In per cent,
mean ± sample deviation over the seeds. Exact definitions: `learner/evaluation.py`.
"""


def write(directory: Path, path: Path, console: Console) -> None:
    """Write the tables of all results in `directory` to `path`, and the pictures beside it.

    Raises:
        SettingsError: there are none, or a file is no result.
    """
    found = results.read_all(directory)
    if not found:
        raise SettingsError(f"expected results of levit bench in {directory}, found none")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(markdown(found), encoding="utf-8")
    console.print(f"Tables: {path}")
    try:
        from bench import plots
    except ImportError as absent:
        console.print(f"No pictures without {absent.name}: pip install 'levit-stream[demo]'")
        return
    for picture in plots.draw(found, path.parent):
        console.print(f"Picture: {picture}")


def markdown(found: Iterable[Result]) -> str:
    """Return one table a stream, the best row first."""
    streams: dict[str, list[Sequence[Result]]] = {}
    for group in results.over_seeds(found):
        streams.setdefault(group[0].row.stream, []).append(group)
    sections = [_section(stream, groups) for stream, groups in streams.items()]
    return "\n".join(["# Results\n", LEGEND, *sections])


def _section(stream: str, groups: list[Sequence[Result]]) -> str:
    groups = sorted(groups, key=lambda group: -_mean(r.outcome.score for r in group))
    everything = [result for group in groups for result in group]
    shares = [(name, value) for name, value in SHARES if _any(everything, value)]
    numbers = [column for column in NUMBERS if _any(everything, column[2])]
    head = ["method", *(name for name, _ in shares), *(name for name, _, _ in numbers), "seeds"]
    lines = [
        f"## {stream}\n",
        f"On {'; '.join(sorted({r.machine for r in everything}))}.\n",
        "```sh",
    ]
    lines += [group[-1].row.command for group in groups]
    lines += ["```\n", _line(head), _line(["---", *["---:"] * (len(head) - 1)])]
    for group in groups:
        cells = [_share([value(r.outcome) for r in group]) for _, value in shares]
        cells += [_number([value(r.outcome) for r in group], form) for _, form, value in numbers]
        lines.append(_line([group[0].row.title, *cells, str(len(group))]))
    return "\n".join([*lines, ""])


def _any(found: Iterable[Result], value: Value) -> bool:
    return any(value(result.outcome) is not None for result in found)


def _share(values: Sequence[float | None]) -> str:
    """Return mean and deviation in per cent."""
    known = [100 * value for value in values if value is not None]
    if not known:
        return "–"
    deviation = f" ± {statistics.stdev(known):.2f}" if len(known) > 1 else ""
    return f"{statistics.mean(known):.2f}{deviation}"


def _number(values: Sequence[float | None], form: str) -> str:
    known = [value for value in values if value is not None]
    return format(_mean(known), form) if known else "–"


def _mean(values: Iterable[float]) -> float:
    return statistics.mean(values)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
