"""What the metrics say of a snapshot."""

import pytest
from prometheus_client import CollectorRegistry

from service.engine.protocol import Summary
from service.learned import LearningCollector
from tests.metric_families import FULL, learning


def test_nothing_is_said_about_learning_before_the_first_snapshot() -> None:
    registry = CollectorRegistry()
    registry.register(LearningCollector(dict, max_classes=10))

    assert list(registry.collect()) == []


def test_an_unknown_novelty_has_no_sample() -> None:
    registry = learning(Summary(novelty=None))

    assert registry.get_sample_value("levit_novelty", {"stream": "default"}) is None


@pytest.mark.parametrize(
    ("name", "labels", "value"),
    [
        ("levit_snapshot_age_seconds", {}, 5.0),
        ("levit_samples_unlabelled_total", {}, 10.0),
        ("levit_expansions_refused_total", {"reason": "max_experts"}, 1.0),
        ("levit_class_prequential_accuracy_ratio", {"class": "cat"}, 1.0),
        ("levit_class_prequential_accuracy_ratio", {"class": "dog"}, None),
        ("levit_replay_samples", {"class": "dog"}, 20.0),
        ("levit_sample_gradients_total", {}, 1400.0),
        ("levit_part_weight", {"part": "memory"}, 1.2),
        ("levit_part_accuracy_ratio", {"part": "network"}, 0.8),
        ("levit_overruled", {}, 0.0),
    ],
    ids=str,
)
def test_facts_of_the_snapshot_are_told(
    name: str, labels: dict[str, str], value: float | None
) -> None:
    registry = learning(FULL)

    assert registry.get_sample_value(name, {"stream": "default", **labels}) == value


@pytest.mark.parametrize(
    "name", ["levit_sample_gradients_total", "levit_held_out_samples", "levit_overruled"]
)
def test_what_a_preset_does_not_count_has_no_sample(name: str) -> None:
    assert learning(Summary()).get_sample_value(name, {"stream": "default"}) is None


@pytest.mark.parametrize(
    ("bound", "label", "members"), [(1, "dog", None), (1, "other", 50.0), (3, "other", 30.0)]
)
def test_classes_beyond_the_bound_join_the_one_called_other(
    bound: int, label: str, members: float | None
) -> None:
    labels = {"stream": "default", "class": label}

    found = learning(FULL, max_classes=bound).get_sample_value("levit_replay_samples", labels)

    assert found == members
