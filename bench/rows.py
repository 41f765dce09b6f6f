"""One row of a benchmark: which method, with which options, on which stream.

A row and a seed name one file of results, so a run that was cut short goes on where it stopped.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Self

from bench.methods import Option
from bench.streams import Order

BATCH = 10
"""Samples in a mini-batch, as published comparisons have it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One run; equal rows give equal accuracies on one machine and thread count."""

    stream: str
    method: str
    options: Mapping[str, Option] = field(default_factory=dict)
    """Of the method; what is not named has the method's own default."""
    seed: int = 0
    samples: int | None = None
    """At most so many arrive; None: the whole stream."""
    batch: int = BATCH
    order: Order = "file"
    """Of a user's .npz."""
    threads: int = 1

    @property
    def key(self) -> str:
        """The name of its results, without suffix."""
        parts = [self.stream, self.method]
        parts += [f"{name}={value}" for name, value in sorted(self.options.items())]
        parts += [f"n={self.samples}"] if self.samples else []
        parts += [f"batch={self.batch}"] if self.batch != BATCH else []
        parts += ["by-class"] if self.order == "class" else []
        parts += [f"threads={self.threads}"] if self.threads != 1 else []
        return re.sub(r"[^\w.=+-]+", "_", "--".join([*parts, f"seed={self.seed}"]))

    @property
    def title(self) -> str:
        """The method and what is not usual about it."""
        told = [f"{name} {value}" for name, value in sorted(self.options.items())]
        told += [f"first {self.samples:,} samples"] if self.samples else []
        told += [f"batch {self.batch}"] if self.batch != BATCH else []
        told += ["class after class"] if self.order == "class" else []
        told += [f"{self.threads} threads"] if self.threads != 1 else []
        return f"{self.method} ({', '.join(told)})" if told else self.method

    @property
    def command(self) -> str:
        """What to type to get all seeds of this row up to its own."""
        words = [f"levit bench --stream {self.stream} --method {self.method}"]
        words += [f"--option {name}={value}" for name, value in sorted(self.options.items())]
        words += [f"--samples {self.samples}"] if self.samples else []
        words += [f"--batch {self.batch}"] if self.batch != BATCH else []
        words += ["--by-class"] if self.order != "file" else []
        words += [f"--threads {self.threads}"] if self.threads != 1 else []
        return " ".join([*words, f"--seeds {self.seed + 1}"])

    def to_json(self) -> str:
        """Return what `from_json` reads."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the row that `to_json` described."""
        return cls(**json.loads(text))
