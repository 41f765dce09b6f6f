"""Every Prometheus family of the service, on a registry that is passed in.

Facts about requests and processes are counted where they happen (`ApiMetrics`, `WorkerMetrics`)
and start at zero with the process. Facts about learning are read from the served snapshot
(`LearningCollector`): they survive restarts, and every API process tells the same.
README's table is tested against this file. Units are the suffix of the name; `_ratio` is 0 to 1.
"""

import time
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from service import __version__

_REQUEST_BUCKETS_S = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10)
_STEP_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 1024)


class ApiMetrics:
    """What one API process counts about its requests."""

    def __init__(self, registry: CollectorRegistry) -> None:
        _describe_process(registry)
        self.observations = Counter(
            "levit_observations",
            "POST /observe requests by outcome: accepted, replayed (a retry recognised), refused",
            ["outcome"],
            registry=registry,
        )
        self.samples_observed = Counter(
            "levit_samples_observed",
            "Samples accepted into the log, by whether they came with a label",
            ["labelled"],
            registry=registry,
        )
        self.observe_duration = Histogram(
            "levit_observe_duration_seconds",
            "Time from request to answer of POST /observe",
            buckets=_REQUEST_BUCKETS_S,
            registry=registry,
        )
        self.predictions = Counter(
            "levit_predictions",
            "POST /predict requests by outcome: answered, refused",
            ["outcome"],
            registry=registry,
        )
        self.predict_duration = Histogram(
            "levit_predict_duration_seconds",
            "Time from request to answer of POST /predict",
            buckets=_REQUEST_BUCKETS_S,
            registry=registry,
        )
        self.predict_batch_size = Histogram(
            "levit_predict_batch_size",
            "Samples that shared one forward pass",
            buckets=_BATCH_BUCKETS,
            registry=registry,
        )
        self.forward_duration = Histogram(
            "levit_forward_duration_seconds",
            "Time of one shared forward pass",
            buckets=_REQUEST_BUCKETS_S,
            registry=registry,
        )
        self.backlog = Gauge(
            "levit_stream_backlog",
            "Entries accepted and not yet in a checkpoint",
            registry=registry,
        )
        self.redis_ready = Gauge(
            "levit_redis_ready",
            "1 while Redis answers and keeps what it is given, else 0",
            registry=registry,
        )
        for outcome in ("accepted", "replayed", "refused"):
            self.observations.labels(outcome)
        for outcome in ("answered", "refused"):
            self.predictions.labels(outcome)
        for labelled in ("yes", "no"):
            self.samples_observed.labels(labelled)


class WorkerMetrics:
    """What the worker process measures about itself."""

    def __init__(self, registry: CollectorRegistry) -> None:
        _describe_process(registry)
        self.step_duration = Histogram(
            "levit_step_duration_seconds",
            "Time the engine took to learn one entry",
            buckets=_STEP_BUCKETS_S,
            registry=registry,
        )
        self.checkpoint_duration = Histogram(
            "levit_checkpoint_duration_seconds",
            "Time one checkpoint took, replay members included",
            buckets=_STEP_BUCKETS_S,
            registry=registry,
        )
        self.snapshot_duration = Histogram(
            "levit_snapshot_duration_seconds",
            "Time one publication took",
            buckets=_STEP_BUCKETS_S,
            registry=registry,
        )
        self.checkpoint_bytes = Gauge(
            "levit_checkpoint_bytes", "Size of the newest checkpoint", registry=registry
        )
        self.checkpoint_age = Gauge(
            "levit_checkpoint_age_seconds", "Age of the newest checkpoint", registry=registry
        )
        self.checkpoint_failures = Counter(
            "levit_checkpoint_failures",
            "Checkpoints that could not be written",
            registry=registry,
        )
        self.gap = Gauge(
            "levit_stream_gap_entries",
            "Entries missing from the log that no checkpoint accounts for; anything but 0 is loss",
            registry=registry,
        )


def _describe_process(registry: CollectorRegistry) -> None:
    """Register the version and, where the platform has them, the `process_` families."""
    Info("levit_build", "Version of this process", registry=registry).info({"version": __version__})
    ProcessCollector(registry=registry)


class SnapshotFacts(Protocol):
    """What the collector reads of a published snapshot."""

    @property
    def version(self) -> int:
        """Number of the snapshot, rising by one with each publication."""
        ...

    @property
    def published_at(self) -> float:
        """Unix time of publication, in seconds."""
        ...

    @property
    def quarantined(self) -> int:
        """Entries set aside since the start."""
        ...

    @property
    def summary(self) -> Mapping[str, Any]:
        """`dataclasses.asdict` of the engine's `Summary`."""
        ...


class LearningCollector(Collector):
    """The families about learning, computed from the served snapshot at each scrape."""

    def __init__(
        self,
        read: Callable[[], SnapshotFacts | None],
        *,
        max_classes: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Keep how to reach the served snapshot.

        Args:
            read: returns the served snapshot's facts, or None before the first.
            max_classes: classes with a series of their own; replay counts of later ones are
                summed as `other`, their accuracy is left out.
            clock: unix time in seconds.
        """
        self._read = read
        self._max_classes = max_classes
        self._clock = clock

    def collect(self) -> Iterator[Metric]:
        """Yield every family; nothing before the first snapshot."""
        facts = self._read()
        if facts is None:
            return
        summary = facts.summary
        yield _gauge("levit_snapshot_version", "Number of the served snapshot", facts.version)
        age_s = max(0.0, self._clock() - facts.published_at)
        yield _gauge("levit_snapshot_age_seconds", "Age of the served snapshot", age_s)
        yield from _mixture(summary)
        yield from _progress(summary, facts.quarantined)
        yield from self._by_class(summary)

    def _by_class(self, summary: Mapping[str, Any]) -> Iterator[Metric]:
        classes = [str(label) for label in summary["classes"]]
        known = zip(classes[: self._max_classes], summary["prequential_by_class"], strict=False)
        yield _labelled(
            GaugeMetricFamily,
            "levit_class_prequential_accuracy_ratio",
            "Prequential accuracy on the samples of one class",
            "class",
            ((label, value) for label, value in known if value is not None),
        )
        members: Tally[str] = Tally()
        counted = zip(classes, summary["replay_by_class"], strict=True)
        for rank, (label, count) in enumerate(counted):
            members[label if rank < self._max_classes else "other"] += count
        yield _labelled(
            GaugeMetricFamily,
            "levit_replay_samples",
            "Labelled samples in the replay buffer, per class",
            "class",
            members.items(),
        )


def _mixture(summary: Mapping[str, Any]) -> Iterator[Metric]:
    """Yield what is known of the experts and of the decision to expand."""
    yield _gauge("levit_experts", "Experts in the mixture", len(summary["experts"]))
    yield _counter("levit_expansions", "Expansions since the start", summary["expansions"])
    yield _labelled(
        CounterMetricFamily,
        "levit_expansions_refused",
        "Expansions that a bound forbade, by reason: max_experts",
        "reason",
        (summary["expansions_refused"] or {"max_experts": 0}).items(),
    )
    yield _gauge("levit_novelty", "Novelty of the full replay buffer", summary["novelty"])
    yield _gauge(
        "levit_novelty_threshold", "Novelty at which the mixture expands", summary["threshold"]
    )
    yield _gauge("levit_parameters", "Parameters of all experts", summary["parameters"])
    yield _gauge(
        "levit_state_bytes",
        "Bytes of the whole learner, replay buffer and optimiser included",
        summary["state_bytes"],
    )


def _progress(summary: Mapping[str, Any], quarantined: int) -> Iterator[Metric]:
    """Yield what was learned so far, and how well."""
    learned, labelled = summary["samples_learned"], summary["samples_labelled"]
    yield _counter("levit_entries_learned", "Entries learned", summary["step"])
    yield _counter("levit_entries_quarantined", "Entries set aside unlearned", quarantined)
    yield _counter("levit_samples_learned", "Samples learned", learned)
    yield _counter("levit_samples_labelled", "Samples learned with a label", labelled)
    yield _counter(
        "levit_samples_unlabelled", "Samples learned without a label", learned - labelled
    )
    yield _gauge(
        "levit_prequential_accuracy_ratio",
        "Share of labelled samples predicted right before they were learned, faded",
        summary["prequential_accuracy"],
    )
    yield _labelled(
        GaugeMetricFamily,
        "levit_loss_nats",
        "Loss of the newest entry by term: cross_entropy, negative_elbo",
        "term",
        summary["loss"].items(),
    )
    yield _gauge(
        "levit_replay_capacity_samples",
        "Most samples the replay buffer holds",
        summary["replay_capacity"],
    )
    yield _gauge(
        "levit_replay_unlabelled_samples",
        "Samples without a label in the replay buffer",
        summary["replay_unlabelled"],
    )


def _gauge(name: str, text: str, value: float | None) -> Metric:
    """Return a gauge; without a sample while the value is not known yet."""
    family = GaugeMetricFamily(name, text)
    if value is not None:
        family.add_metric([], value)
    return family


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(name, text, value=value)


def _labelled(
    family_type: type[GaugeMetricFamily | CounterMetricFamily],
    name: str,
    text: str,
    label: str,
    samples: Iterable[tuple[str, float]],
) -> Metric:
    """Return a family of one label with its samples."""
    family = family_type(name, text, labels=[label])
    for value, number in samples:
        family.add_metric([value], number)
    return family
