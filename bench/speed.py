"""What the parts of preset `default` cost, each beside a yardstick in the same run.

    LEVIT_DATA=... python -m bench.speed

Tokenizer: milliseconds per CIFAR10 image with 256 filters on one thread, not mirrored. Sums: time
of adding features to the analytic memory against bare float32 products of the same blocks.
Experts: time of predicting 64 images and of learning 10, with 1 to 32 experts. Medians of
processor time.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

import learner
from bench import command
from learner.analytic import AnalyticMemory
from learner.encoder import Encoder
from learner.newborn import heir
from learner.readout import BLOCK
from learner.report import Expansion
from learner.tokenizer import Tokenizer

_FILTERS = 256
_ASKED, _BATCH = 64, 10
_EXPERTS = (1, 2, 4, 8, 16, 32)
_GOAL_TOKENIZER_MS, _GOAL_SUMS, _GOAL_EXPERTS = 1.0, 1.5, 3.0


def main() -> None:
    """Measure everything and print the table."""
    options = command.parser(__doc__)
    options.set_defaults(data="cifar10")
    chosen = options.parse_args()
    torch.set_num_threads(1)
    data = command.data_of(chosen, samples=2000)
    x, y = command.as_tensor(data.x_train), torch.as_tensor(data.y_train).long()
    config = learner.AdaptiveConfig(input_shape=tuple(x.shape[1:]), fit_samples=500)
    fresh = learner.AdaptiveLEViT(config)
    for start in track(range(0, 1000, 50), description="Learning 1,000 images"):
        fresh.observe(x[start : start + 50], y[start : start + 50])
    numbers = {"tokenizer_ms": _tokenizer(fresh, x), "sums_ratio": _sums(fresh, x)}
    experts = _experts(fresh, x, y)
    _show(numbers, experts)
    command.write_numbers(chosen, {**numbers, "experts": experts})


def _tokenizer(fresh: learner.AdaptiveLEViT, x: Tensor) -> float:
    """Return milliseconds per image with `_FILTERS` filters."""
    whole = _encoder(fresh).patches
    if whole is None:
        raise command.NotMeasured("expected images, which have patches")
    few = min(_FILTERS, len(whole.kernel))
    axes = torch.cat([whole.token_axes[:few], whole.token_axes[len(whole.kernel) :][:few]])
    tokenizer: Tokenizer = replace(
        whole,
        kernel=whole.kernel[:few].contiguous(memory_format=torch.channels_last),
        offset_K=whole.offset_K[:few],
        token_mean=whole.token_mean[: 2 * few],
        token_axes=axes,
        mirror=False,
    )
    return 1e3 * _median(lambda: tokenizer(x[:_ASKED])) / _ASKED


def _sums(fresh: learner.AdaptiveLEViT, x: Tensor) -> float:
    """Return the time of adding blocks of features over that of their bare product."""
    features_BF = _encoder(fresh)(x[:BLOCK]).features_BF
    y_B = torch.zeros(len(features_BF), dtype=torch.int64)
    memory = AnalyticMemory(features_BF.shape[1])
    added = _median(lambda: memory.add(features_BF, y_B, classes=1))
    return added / _median(lambda: features_BF.T @ features_BF)


def _experts(fresh: learner.AdaptiveLEViT, x: Tensor, y: Tensor) -> list[dict[str, float]]:
    """Return predict and learning times for every number of experts."""
    rows, mixture = [], fresh.mixture
    why = Expansion("inputs", 0.0, 0.0, None)
    for count in _EXPERTS:
        while len(mixture.experts) < count:
            mixture.active.life.samples = 1000
            mixture.experts.append(heir(mixture, mixture.active, why, fresh.counts.step))
            if fresh.training is not None:
                fresh.training.succeed()
        start = 1000 + 10 * _EXPERTS.index(count)
        rows.append({
            "experts": float(count),
            "predict_ms": 1e3 * _median(lambda: fresh.predict(x[:_ASKED])) / _ASKED,
            "learn_ms": 1e3 * _median(
                lambda: fresh.observe(x[start : start + _BATCH], y[start : start + _BATCH])  # noqa: B023
            ) / _BATCH,
            "state_mb": fresh.state_bytes / 1e6,
        })  # fmt: skip
    return rows


def _encoder(fresh: learner.AdaptiveLEViT) -> Encoder:
    if fresh.mixture.encoder is None:
        raise command.NotMeasured("expected a fitted encoder")
    return fresh.mixture.encoder


def _median(work: Callable[[], object], times: int = 7) -> float:
    """Return the median processor seconds of some work, the first time left out."""
    work()
    seconds = []
    for _ in range(times):
        begun = time.process_time()
        work()
        seconds.append(time.process_time() - begun)
    return statistics.median(seconds)


def _show(numbers: dict[str, float], experts: list[dict[str, float]]) -> None:
    console = Console()
    console.print(
        f"tokenizer, {_FILTERS} filters: {numbers['tokenizer_ms']:.2f} ms an image "
        f"(goal {_GOAL_TOKENIZER_MS:g}); sums: {numbers['sums_ratio']:.2f} bare products "
        f"(goal {_GOAL_SUMS:g})"
    )
    columns = ("experts", "predict ms", "ratio", "learn ms", "ratio", "state MB")
    table = Table(*columns, title=f"per sample; predict ratio goal {_GOAL_EXPERTS:g}")
    for row in experts:
        predict, learn = (row[k] / experts[0][k] for k in ("predict_ms", "learn_ms"))
        table.add_row(
            f"{row['experts']:.0f}",
            *(f"{row['predict_ms']:.2f}", f"{predict:.2f}"),
            *(f"{row['learn_ms']:.2f}", f"{learn:.2f}", f"{row['state_mb']:.0f}"),
        )
    console.print(table)


if __name__ == "__main__":
    command.run(main)
