"""The Prometheus families of the two processes, on a registry that is passed in.

Facts about requests and processes are counted where they happen and start at zero with the process;
those about learning are in `service.learned`. README's table is tested against both files. Units
are the suffix of the name; `_ratio` is 0 to 1. What concerns one stream carries its name as label.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector

from service import __version__

_REQUEST_BUCKETS_S = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10)
_STEP_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 1024)
REFUSALS = (
    "unauthorized",
    "foreign_scope",
    "foreign_stream",
    "no_route",
    "rate_limited",
    "too_many_in_flight",
    "keys_unreadable",
)
"""Codes with which a request is refused before it reaches a route."""


@dataclass(frozen=True, slots=True)
class RequestMetrics:
    """What one API process counts about the requests of one stream."""

    observations: Mapping[str, Counter]
    """By outcome."""
    samples_observed: Mapping[str, Counter]
    """By whether they came with a label."""
    observe_duration: Histogram
    label_requests: Mapping[str, Counter]
    """By outcome."""
    predictions: Mapping[str, Counter]
    """By outcome."""
    predict_duration: Histogram
    predict_batch_size: Histogram
    forward_duration: Histogram
    backlog: Gauge
    backlog_limit: Gauge
    disk_needed: Gauge
    staleness: Gauge
    worker_stopped: Gauge


class ApiMetrics:
    """What one API process counts about its requests."""

    def __init__(self, registry: CollectorRegistry) -> None:
        _describe_process(registry)
        self._observations = Counter(
            "levit_observations",
            "POST /observe requests by outcome: accepted, replayed (a retry recognised), refused",
            ["stream", "outcome"],
            registry=registry,
        )
        self._samples_observed = Counter(
            "levit_samples_observed",
            "Samples accepted into the log, by whether they came with a label",
            ["stream", "labelled"],
            registry=registry,
        )
        self._observe_duration = Histogram(
            "levit_observe_duration_seconds",
            "Time from request to answer of POST /observe",
            ["stream"],
            buckets=_REQUEST_BUCKETS_S,
            registry=registry,
        )
        self._label_requests = Counter(
            "levit_label_requests",
            "POST /labels requests by outcome: accepted, replayed (a retry recognised), refused",
            ["stream", "outcome"],
            registry=registry,
        )
        self._predictions = Counter(
            "levit_predictions",
            "POST /predict requests by outcome: answered, kept (with keep=true), refused",
            ["stream", "outcome"],
            registry=registry,
        )
        self._predict_duration = Histogram(
            "levit_predict_duration_seconds",
            "Time from request to answer of POST /predict",
            ["stream"],
            buckets=_REQUEST_BUCKETS_S,
            registry=registry,
        )
        self._predict_batch_size = Histogram(
            "levit_predict_batch_size",
            "Samples that shared one forward pass",
            ["stream"],
            buckets=_BATCH_BUCKETS,
            registry=registry,
        )
        self._forward_duration = Histogram(
            "levit_forward_duration_seconds",
            "Time of one shared forward pass",
            ["stream"],
            buckets=_REQUEST_BUCKETS_S,
            registry=registry,
        )
        self.refusals = Counter(
            "levit_requests_refused",
            "Requests that the key stopped: its absence, its scopes, its streams, its quota; "
            "or that no route was for",
            ["reason"],
            registry=registry,
        )
        for reason in REFUSALS:
            self.refusals.labels(reason)
        self._backlog = Gauge(
            "levit_stream_backlog",
            "Entries accepted and not yet in a checkpoint",
            ["stream"],
            registry=registry,
        )
        self._backlog_limit = Gauge(
            "levit_stream_backlog_limit",
            "Backlog at which /observe answers 503",
            ["stream"],
            registry=registry,
        )
        self._staleness = Gauge(
            "levit_staleness_seconds",
            "Age of the oldest accepted entry that the served model has not learned; 0 without one",
            ["stream"],
            registry=registry,
        )
        self._worker_stopped = Gauge(
            "levit_worker_stopped",
            "1 while the worker has stopped learning until a human looks, else 0",
            ["stream"],
            registry=registry,
        )
        self.redis_ready = Gauge(
            "levit_redis_ready",
            "1 while Redis answers and keeps what it is given, else 0",
            registry=registry,
        )
        self.redis_memory = Gauge(
            "levit_redis_memory_bytes", "Memory that Redis uses", registry=registry
        )
        self.redis_memory_limit = Gauge(
            "levit_redis_memory_limit_bytes",
            "Memory that Redis may use; /observe answers 503 from 80 % of it",
            registry=registry,
        )
        self.disk_free = Gauge(
            "levit_disk_free_bytes",
            "Free space where the state directory lies",
            registry=registry,
        )
        self._disk_needed = Gauge(
            "levit_disk_needed_bytes",
            "Free space below which /observe answers 503: two checkpoints and the floor",
            ["stream"],
            registry=registry,
        )

    def of(self, stream: str) -> RequestMetrics:
        """Return those of one stream; its series begin at zero."""
        return RequestMetrics(
            observations=_by(self._observations, stream, "accepted", "replayed", "refused"),
            samples_observed=_by(self._samples_observed, stream, "yes", "no"),
            observe_duration=self._observe_duration.labels(stream),
            label_requests=_by(self._label_requests, stream, "accepted", "replayed", "refused"),
            predictions=_by(self._predictions, stream, "answered", "kept", "refused"),
            predict_duration=self._predict_duration.labels(stream),
            predict_batch_size=self._predict_batch_size.labels(stream),
            forward_duration=self._forward_duration.labels(stream),
            backlog=self._backlog.labels(stream),
            backlog_limit=self._backlog_limit.labels(stream),
            disk_needed=self._disk_needed.labels(stream),
            staleness=self._staleness.labels(stream),
            worker_stopped=self._worker_stopped.labels(stream),
        )


@dataclass(frozen=True, slots=True)
class LearningMetrics:
    """What the worker process measures about one stream."""

    step_duration: Histogram
    checkpoint_duration: Histogram
    snapshot_duration: Histogram
    checkpoint_bytes: Gauge
    checkpoint_age: Gauge
    checkpoint_failures: Counter
    decisions: Mapping[str, Counter]
    """By kind."""
    gap: Gauge
    experts_limit: Gauge


class WorkerMetrics:
    """What the worker process measures about itself."""

    def __init__(self, registry: CollectorRegistry) -> None:
        _describe_process(registry)
        self._step_duration = Histogram(
            "levit_step_duration_seconds",
            "Time the engine took to learn one entry",
            ["stream"],
            buckets=_STEP_BUCKETS_S,
            registry=registry,
        )
        self._checkpoint_duration = Histogram(
            "levit_checkpoint_duration_seconds",
            "Time one checkpoint took, replay members included",
            ["stream"],
            buckets=_STEP_BUCKETS_S,
            registry=registry,
        )
        self._snapshot_duration = Histogram(
            "levit_snapshot_duration_seconds",
            "Time one publication took",
            ["stream"],
            buckets=_STEP_BUCKETS_S,
            registry=registry,
        )
        self._checkpoint_bytes = Gauge(
            "levit_checkpoint_bytes", "Size of the newest checkpoint", ["stream"], registry=registry
        )
        self._checkpoint_age = Gauge(
            "levit_checkpoint_age_seconds",
            "Age of the newest checkpoint",
            ["stream"],
            registry=registry,
        )
        self._checkpoint_failures = Counter(
            "levit_checkpoint_failures",
            "Checkpoints that could not be written",
            ["stream"],
            registry=registry,
        )
        self._decisions = Counter(
            "levit_decisions",
            "Decisions to set entries aside or go back (skip), grow (expand), resync (renumber)",
            ["stream", "kind"],
            registry=registry,
        )
        self._gap = Gauge(
            "levit_stream_gap_entries",
            "Entries missing from the log that no checkpoint accounts for; anything but 0 is loss",
            ["stream"],
            registry=registry,
        )
        self._experts_limit = Gauge(
            "levit_experts_limit",
            "Experts beyond which an expansion is refused",
            ["stream"],
            registry=registry,
        )

    def of(self, stream: str) -> LearningMetrics:
        """Return those of one stream; its series begin at zero."""
        return LearningMetrics(
            step_duration=self._step_duration.labels(stream),
            checkpoint_duration=self._checkpoint_duration.labels(stream),
            snapshot_duration=self._snapshot_duration.labels(stream),
            checkpoint_bytes=self._checkpoint_bytes.labels(stream),
            checkpoint_age=self._checkpoint_age.labels(stream),
            checkpoint_failures=self._checkpoint_failures.labels(stream),
            decisions=_by(self._decisions, stream, "skip", "expand", "unlearn", "renumber"),
            gap=self._gap.labels(stream),
            experts_limit=self._experts_limit.labels(stream),
        )


def _by(family: Counter, stream: str, *values: str) -> dict[str, Counter]:
    """Return the counters of one stream, by the value of the other label."""
    return {value: family.labels(stream, value) for value in values}


def _describe_process(registry: CollectorRegistry) -> None:
    """Register the version and, where the platform has them, the `process_` families."""
    Info("levit_build", "Version of this process", registry=registry).info({"version": __version__})
    ProcessCollector(registry=registry)
