"""The Prometheus families about learning, read from the served snapshot at each scrape.

So they survive restarts, and every API process tells the same. Each carries the stream's name.
README's table is tested against this file. Units are the suffix of the name; `_ratio` is 0 to 1.
"""

import time
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


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
    def labels(self) -> Mapping[str, int]:
        """Late labels since the start, by what became of them."""
        ...

    @property
    def waiting(self) -> int:
        """Samples that wait for a label."""
        ...

    @property
    def summary(self) -> Mapping[str, Any]:
        """`dataclasses.asdict` of the engine's `Summary`."""
        ...


class LearningCollector(Collector):
    """The families about learning, computed from the served snapshot at each scrape."""

    def __init__(
        self,
        read: Callable[[], Mapping[str, SnapshotFacts]],
        *,
        max_classes: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Keep how to reach the served snapshots.

        Args:
            read: returns the served snapshot's facts by stream; none before its first.
            max_classes: classes with a series of their own; replay counts of later ones are
                summed as `other`, their accuracy is left out.
            clock: unix time in seconds.
        """
        self._read = read
        self._max_classes = max_classes
        self._clock = clock

    def collect(self) -> Iterator[Metric]:
        """Yield every family with the samples of all streams; nothing before the first snapshot."""
        families: dict[str, Metric] = {}
        for stream, facts in self._read().items():
            for found in self._families(facts):
                family = families.setdefault(
                    found.name, Metric(found.name, found.documentation, found.type)
                )
                for one in found.samples:
                    family.add_sample(one.name, {"stream": stream, **one.labels}, one.value)
        yield from families.values()

    def _families(self, facts: SnapshotFacts) -> Iterator[Metric]:
        summary = facts.summary
        yield _gauge("levit_snapshot_version", "Number of the served snapshot", facts.version)
        age_s = max(0.0, self._clock() - facts.published_at)
        yield _gauge("levit_snapshot_age_seconds", "Age of the served snapshot", age_s)
        yield from _mixture(summary)
        yield from _progress(summary, facts.quarantined)
        yield _labelled(
            CounterMetricFamily,
            "levit_labels",
            "Labels that came later than their samples, by outcome: joined, late, unknown, doubled",
            "outcome",
            facts.labels.items(),
        )
        yield _gauge("levit_samples_waiting", "Samples that wait for a label", facts.waiting)
        yield from _parts(summary)
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
        "Expansions that a bound forbade, by reason: max_experts, one_source",
        "reason",
        (summary["expansions_refused"] or {"max_experts": 0}).items(),
    )
    yield _gauge(
        "levit_novelty",
        "log10 of the evidence for change; in preset paper novelty of the full replay buffer",
        summary["novelty"],
    )
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


def _parts(summary: Mapping[str, Any]) -> Iterator[Metric]:
    """Yield what preset `default` spends, and whom it trusts; without samples in `paper`."""
    spent = CounterMetricFamily(
        "levit_sample_gradients",
        "Passes of one sample through one network: forward 1, backward 2",
    )
    if summary.get("sample_gradients") is not None:
        spent.add_metric([], summary["sample_gradients"])
    yield spent
    yield _labelled(
        GaugeMetricFamily,
        "levit_part_accuracy_ratio",
        "Accuracy of each part alone on the held-out samples when they last decided",
        "part",
        summary.get("part_accuracy", {}).items(),
    )
    yield _labelled(
        GaugeMetricFamily,
        "levit_part_weight",
        "How much each part of the answer is trusted",
        "part",
        summary.get("part_weight", {}).items(),
    )
    yield _gauge(
        "levit_held_out_samples",
        "Samples that no gradient has seen and that decided whom to trust",
        summary.get("held_out_samples"),
    )
    yield _gauge(
        "levit_overruled",
        "1 while recent labels contradict the past and read-outs that forget answer, else 0",
        summary.get("overruled"),
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
