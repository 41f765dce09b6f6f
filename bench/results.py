"""Results on disk: one JSON file per row and seed, written whole or not at all, read back as is."""

import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bench.methods import Cost
from bench.outcome import Checkpoint, Outcome, Passing
from bench.rows import Row
from service.errors import SettingsError


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A row that was run."""

    row: Row
    machine: str
    outcome: Outcome


def machine() -> str:
    """Return this machine in words: processor, cores, system, Python and torch."""
    model = platform.processor() or platform.machine()
    listed = Path("/proc/cpuinfo")
    if listed.is_file():
        lines = (line.partition(":") for line in listed.read_text().splitlines())
        names = [value.strip() for name, _, value in lines if name.strip() == "model name"]
        model = names[0] if names else model
    software = f"Python {platform.python_version()}, torch {torch.__version__}"
    return f"{model}, {os.cpu_count()} cores, {platform.system()}, {software}"


def path_of(directory: Path, row: Row) -> Path:
    """Return where the results of a row are."""
    return directory / f"{row.key}.json"


def write(path: Path, result: Result) -> None:
    """Write one result; whoever reads meanwhile sees all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(json.dumps(asdict(result), indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def read(path: Path) -> Result:
    """Return one result.

    Raises:
        SettingsError: the file is no result of this version.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        row, outcome = Row(**found["row"]), _outcome(found["outcome"])
        return Result(row=row, machine=found["machine"], outcome=outcome)
    except (KeyError, TypeError, ValueError) as error:
        raise SettingsError(f"expected a result of levit bench in {path}: {error}") from None


def read_all(directory: Path) -> list[Result]:
    """Return all results in a directory, sorted by their file names."""
    return [read(path) for path in sorted(directory.glob("*.json"))]


def over_seeds(results: Iterable[Result]) -> list[Sequence[Result]]:
    """Return results that differ in their seed only together, by seed, in order of appearance."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(replace(result.row, seed=0).key, []).append(result)
    return [sorted(group, key=lambda result: result.row.seed) for group in groups.values()]


def _outcome(values: Mapping[str, Any]) -> Outcome:
    nested = {
        "checkpoints": [Checkpoint(**values) for values in values["checkpoints"]],
        "passing": [Passing(**values) for values in values["passing"]],
        "novelty": [(samples, novelty) for samples, novelty in values["novelty"]],
        "cost": Cost(**values["cost"]),
    }
    return Outcome(**{**values, **nested})
