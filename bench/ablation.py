"""The paper's ablations on a class-ordered stream, strict protocol, straight into the learner.

    LEVIT_DATA=... python -m bench.ablation --data mnist --samples 10000

Rows: expert kind `vit` against `dnn`, fusion `none`, `fixed`, `gated`, and two and four times the
threshold. One pass, no task information; test accuracy over all classes, routed and classified
per sample (predicted 200 at a time, which changes nothing beyond rounding). State is every tensor
that the learner keeps: experts, optimiser, replay memory, generator.
"""

import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

import learner
from bench import command
from service.demo.data import DemoData

ROWS: Sequence[tuple[str, dict[str, Any]]] = (
    ("LEViT-DKF", {}),
    ("LEViT-DKF-Fixed", {"fusion": "fixed"}),
    ("LEViT-No-DKF", {"fusion": "none"}),
    ("LEViT-DNN", {"kind": "dnn"}),
    ("LEViT-DKF (x 2)", {"factor": 2.0}),
    ("LEViT-DKF (x 4)", {"factor": 4.0}),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One row; accuracy 0 to 1 with its deviation over the seeds."""

    name: str
    threshold: float
    accuracy: float
    deviation: float
    experts: float
    parameters: float
    state_bytes: float
    seconds: float
    seeds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One row and seed."""

    accuracy: float
    experts: int
    parameters: int
    state_bytes: int
    seconds: float


def run(data: DemoData, batch: int, config: learner.LearnerConfig) -> Run:
    """Stream the training set once; return the strict test accuracy."""
    levit = learner.LEViT(config)
    x, y = command.as_tensor(data.x_train), torch.from_numpy(data.y_train.astype(np.int64))
    started_at = time.perf_counter()
    for i in range(0, len(x), batch):
        levit.observe(x[i : i + batch], y[i : i + batch])
    seconds = time.perf_counter() - started_at
    parts = command.as_tensor(data.x_test).split(200)
    said = [label for part in parts for label in levit.predict(part).labels]
    return Run(
        accuracy=float(np.mean(np.array(said) == data.y_test)),
        experts=len(levit.mixture.experts),
        parameters=sum(p.numel() for p in levit.mixture.parameters()),
        state_bytes=sum(tensor.nbytes for tensor in learner.dump(levit).tensors.values()),
        seconds=seconds,
    )


def _row(name: str, runs: Sequence[Run], threshold: float) -> Result:
    accuracies = [r.accuracy for r in runs]
    return Result(
        name=name,
        threshold=threshold,
        accuracy=statistics.mean(accuracies),
        deviation=statistics.stdev(accuracies) if len(runs) > 1 else 0.0,
        experts=statistics.mean(r.experts for r in runs),
        parameters=statistics.mean(r.parameters for r in runs),
        state_bytes=statistics.mean(r.state_bytes for r in runs),
        seconds=statistics.mean(r.seconds for r in runs),
        seeds=len(runs),
    )


def main() -> None:
    """Run all rows and print a table; with --json also write the numbers."""
    options = command.parser(__doc__)
    options.add_argument("--samples", type=int, default=10_000, help="training samples")
    options.add_argument("--batch", type=int, default=10, help="samples per mini-batch")
    options.add_argument("--replayed", type=int, default=118, help="memory samples per mini-batch")
    options.add_argument("--capacity", type=int, default=500, help="replay memory, samples")
    options.add_argument("--threshold", type=float, default=0.1, help="novelty that expands")
    options.add_argument("--learning-rate", type=float, default=2e-3, help="step size of Adam")
    options.add_argument("--seeds", type=int, default=1, help="seeds per row")
    options.add_argument("--threads", type=int, default=1, help="CPU threads")
    chosen = options.parse_args()
    torch.set_num_threads(chosen.threads)
    data = command.data_of(chosen, samples=chosen.samples)
    shape = tuple(command.as_tensor(data.x_train[:1]).shape[1:])
    results = []
    for name, row in track(ROWS, description=f"{data.name}, {len(data.x_train):,} samples"):
        rest = dict(row)
        threshold = chosen.threshold * rest.pop("factor", 1.0)
        runs = [
            run(
                data,
                chosen.batch,
                learner.paper(
                    shape,
                    threshold=threshold,
                    capacity=chosen.capacity,
                    per_batch=chosen.replayed,
                    learning_rate=chosen.learning_rate,
                    seed=seed,
                    **rest,
                ),
            )
            for seed in range(chosen.seeds)
        ]
        results.append(_row(name, runs, threshold))
    table = Table("learner", "threshold", "accuracy", "experts", "parameters", "state MB", "s")
    for r in results:
        accuracy = f"{r.accuracy:.1%}" + (f" ± {r.deviation:.1%}" if r.seeds > 1 else "")
        sizes = (f"{r.experts:.1f}", f"{r.parameters:,.0f}", f"{r.state_bytes / 1e6:,.1f}")
        table.add_row(r.name, f"{r.threshold:g}", accuracy, *sizes, f"{r.seconds:.0f}")
    console = Console()
    console.print(table)
    console.print(
        f"batch {chosen.batch}, {chosen.replayed} samples replayed per batch, capacity "
        f"{chosen.capacity}, step size {chosen.learning_rate:g}, {chosen.seeds} seed(s)"
    )
    command.write_numbers(chosen, [asdict(r) for r in results])


if __name__ == "__main__":
    command.run(main)
