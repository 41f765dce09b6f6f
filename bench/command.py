"""What the benchmarks share: their options, their data, their numbers as JSON, their refusals."""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from service.client import ApiError, Client
from service.datafile import BadDataFile
from service.demo.data import DemoData, load_data
from service.engine.protocol import Array
from service.errors import SettingsError
from service.inputs import InputSchema
from service.settings import Settings

_ASKED_AT_ONCE = 50
"""Samples of one request; few, so that none waits for the next pass."""


class NotMeasured(Exception):
    """What was to be measured did not happen, so there are no numbers."""


def parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options that every benchmark has."""
    options = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--data", default="mnist", help="digits, a name in LEVIT_DATA or an .npz")
    options.add_argument("--json", type=Path, help="write the numbers here")
    return options


def data_of(chosen: argparse.Namespace, *, samples: int | None = None) -> DemoData:
    """Return the data set that --data names, at most `samples` for training."""
    return load_data(chosen.data, Settings.read().data, limit=samples)


def write_numbers(chosen: argparse.Namespace, numbers: object) -> None:
    """Write plain values where --json says, if it does."""
    if chosen.json:
        chosen.json.write_text(json.dumps(numbers, indent=2) + "\n")


def accuracy(client: Client, data: DemoData) -> float:
    """Return the share of the held-out samples that a service answers right."""
    right = 0
    for at in range(0, len(data.x_test), _ASKED_AT_ONCE):
        part = slice(at, at + _ASKED_AT_ONCE)
        right += int(np.sum(client.predict(data.x_test[part]).labels == data.y_test[part]))
    return right / len(data.x_test)


def run(main: Callable[[], None]) -> None:
    """Run a benchmark; what keeps it from its numbers becomes one line and exit code 1."""
    try:
        main()
    except (SettingsError, BadDataFile, ApiError, NotMeasured) as error:
        sys.exit(f"bench: {error}")


def as_tensor(x: Array) -> Tensor:
    """Return images [N, H, W] or [N, H, W, C] as a tensor [N, C, H, W], no copy."""
    return torch.from_numpy(InputSchema.of(x).canonical(x)).permute(0, 3, 1, 2)
