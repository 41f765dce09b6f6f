"""Every metric family that the two processes export, read from registries filled by hand."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric

from service.engine.protocol import Summary
from service.learned import LearningCollector
from service.metrics import ApiMetrics, WorkerMetrics


@dataclass(frozen=True)
class Facts:
    """A served snapshot's facts, as far as metrics read them."""

    summary: Mapping[str, Any]
    version: int = 3
    published_at: float = 1_000.0
    quarantined: int = 0
    labels: Mapping[str, int] = field(default_factory=lambda: {"joined": 5, "late": 1})
    waiting: int = 2


FULL = Summary(
    step=7,
    samples_learned=70,
    samples_labelled=60,
    classes=["cat", "dog", "other"],
    expansions=2,
    expansions_refused={"max_experts": 1, "one_source": 0},
    novelty=0.5,
    threshold=0.4,
    prequential_accuracy=0.75,
    prequential_by_class=[1.0, None, 0.5],
    replay_capacity=100,
    replay_by_class=[10, 20, 30],
    replay_unlabelled=5,
    loss={"cross_entropy": 0.1, "negative_elbo": 9.0},
    sample_gradients=1400.0,
    part_accuracy={"memory": 0.9, "network": 0.8},
    part_weight={"memory": 1.2, "network": 0.1},
    held_out_samples=40,
    overruled=False,
)
"""A summary that fills every family of `LearningCollector`."""


def learning(summary: Summary, *, max_classes: int = 100) -> CollectorRegistry:
    """Return a registry that tells of one snapshot, published 5 seconds ago."""
    registry = CollectorRegistry()
    told = {"default": Facts(asdict(summary))}
    registry.register(
        LearningCollector(lambda: told, max_classes=max_classes, clock=lambda: 1_005.0)
    )
    return registry


def families() -> dict[str, Metric]:
    """Return our families by the name Prometheus stores them under, `levit_` ones only."""
    api, worker = CollectorRegistry(), CollectorRegistry()
    ApiMetrics(api).of("default")
    WorkerMetrics(worker).of("default")
    found: dict[str, Metric] = {}
    for registry in (api, learning(FULL), worker):
        for metric in registry.collect():
            suffix = {"counter": "_total", "info": "_info"}.get(metric.type, "")
            found[metric.name + suffix] = metric
    return {name: metric for name, metric in found.items() if name.startswith("levit_")}


def series_names() -> set[str]:
    """Return the names that a query may use, `_bucket`, `_sum` and `_count` included."""
    return {sample.name for metric in families().values() for sample in metric.samples}
