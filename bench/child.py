"""One row in a process of its own, so that memory, threads and library state are its alone.

    python -m bench.child ROW_AS_JSON RESULT_PATH

Writes to standard output, one a line, how many samples there are and then how many have passed; its
parent draws the bar. Exit code 2 and one line on standard error: the user's mistake.
"""

import sys
from functools import partial
from pathlib import Path

import torch

import learner
from bench import methods, results, streams
from bench.protocol import Pass
from bench.rows import Row
from service.datafile import BadDataFile
from service.errors import SettingsError


def run(row: Row, path: Path) -> None:
    """Run a row and write its result."""
    torch.set_num_threads(row.threads)
    stream = streams.make(row.stream, seed=row.seed, samples=row.samples, order=row.order)
    make = partial(methods.make, row.method, stream.facts, row.options)
    _tell(len(stream.y_train))
    outcome = Pass(stream, make, batch=row.batch).run(_tell)
    results.write(path, results.Result(row=row, machine=results.machine(), outcome=outcome))


def _tell(samples: int) -> None:
    sys.stdout.write(f"{samples}\n")
    sys.stdout.flush()


def main() -> None:
    """Run the row that the command line names."""
    try:
        run(Row.from_json(sys.argv[1]), Path(sys.argv[2]))
    except (SettingsError, BadDataFile, learner.ConfigError) as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
