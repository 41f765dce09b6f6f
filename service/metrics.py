"""The Prometheus families of the two processes, on a registry that is passed in.

Facts about requests and processes are counted where they happen and start at zero with the process;
those about learning are in `service.learned`. README's table is tested against both files. Units
are the suffix of the name; `_ratio` is 0 to 1.
"""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector

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
        self.worker_stopped = Gauge(
            "levit_worker_stopped",
            "1 while the worker has stopped learning until a human looks, else 0",
            registry=registry,
        )
        self.disk_free = Gauge(
            "levit_disk_free_bytes",
            "Free space where the state directory lies",
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
        self.decisions = Counter(
            "levit_decisions",
            "Decisions to set entries aside or go back (skip), or to grow (expand)",
            ["kind"],
            registry=registry,
        )
        for kind in ("skip", "expand"):
            self.decisions.labels(kind)
        self.gap = Gauge(
            "levit_stream_gap_entries",
            "Entries missing from the log that no checkpoint accounts for; anything but 0 is loss",
            registry=registry,
        )


def _describe_process(registry: CollectorRegistry) -> None:
    """Register the version and, where the platform has them, the `process_` families."""
    Info("levit_build", "Version of this process", registry=registry).info({"version": __version__})
    ProcessCollector(registry=registry)
