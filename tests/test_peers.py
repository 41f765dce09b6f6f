"""Peers are handed what ours are handed, nothing more, and what they keep and spend is counted."""

import sys
import warnings
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bench.methods import METHODS, Facts, Method, Option, factory, make
from service.errors import SettingsError


def needs(library: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(
        find_spec(library) is None,
        reason=f"needs {library}, which bench/peers/README.md says how to install",
    )


AVALANCHE = sorted(name for name in METHODS if name.startswith("avalanche-"))
REPLAYED = [name for name in AVALANCHE if name != "avalanche-slda"]
AT_ONCE = ["avalanche-er", "avalanche-mir", "avalanche-er-ace", "avalanche-der", "avalanche-cope"]
RIVER = sorted(name for name in METHODS if name.startswith("river-"))
PEERS = [pytest.param(name, marks=needs(name.partition("-")[0])) for name in AVALANCHE + RIVER]
GREY = Facts(kind="image", shape=(1, 8, 8), classes=4, seed=0)
COLOUR = Facts(kind="image", shape=(3, 8, 8), classes=4, seed=0)


def images(facts: Facts, count: int = 240, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return noisy strokes on black, one pattern a class, class after class, always the same."""
    y = torch.arange(facts.classes).repeat_interleave(count // facts.classes)
    patterns = torch.rand((facts.classes, *facts.shape), generator=torch.Generator().manual_seed(9))
    noise = torch.rand((len(y), *facts.shape), generator=torch.Generator().manual_seed(seed))
    return ((patterns[y] > 0.6) * (0.6 + 0.4 * noise) * 255).byte(), y


def taught(name: str, facts: Facts = GREY, count: int = 240, **options: Option) -> Method:
    method = make(name, facts, options)
    x, y = images(facts, count)
    for i in range(0, len(y), 10):
        method.observe(x[i : i + 10], y[i : i + 10])
    return method


@pytest.mark.parametrize("name", AVALANCHE + RIVER)
def test_a_peer_that_is_not_installed_is_refused_in_one_line(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in [module for module in sys.modules if module.startswith("bench.peers.")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, name.partition("-")[0], None)

    with pytest.raises(SettingsError, match=r"^method .*needs .*bench/peers/README.md") as refused:
        factory(name)

    assert "\n" not in str(refused.value)


@needs("avalanche")
@pytest.mark.parametrize("name", AVALANCHE)
def test_a_peer_remembers_classes_that_come_no_more(name: str) -> None:
    x, y = images(GREY, seed=1)

    assert (taught(name).predict(x) == y).float().mean() > 0.7


def test_a_network_without_memory_forgets_them() -> None:
    x, y = images(GREY, seed=1)

    assert (taught("finetune").predict(x) == y).float().mean() < 0.7


@pytest.mark.parametrize("name", PEERS)
def test_the_same_seed_gives_the_same_answers(name: str) -> None:
    x, _ = images(GREY, seed=1)

    assert taught(name).predict(x).equal(taught(name).predict(x))


@pytest.mark.parametrize("name", PEERS)
def test_a_prediction_does_not_depend_on_the_other_samples(name: str) -> None:
    x, _ = images(GREY, seed=1)
    method = taught(name)

    together = method.predict(x)

    assert torch.cat([method.predict(part) for part in x.split(7)]).equal(together)


@needs("avalanche")
@pytest.mark.parametrize("name", AVALANCHE)
def test_being_asked_before_each_mini_batch_changes_nothing(name: str) -> None:
    x, y = images(GREY)
    asked = make(name, GREY, {})
    for i in range(0, len(y), 10):
        asked.predict(x[i : i + 10])
        asked.observe(x[i : i + 10], y[i : i + 10])

    assert asked.predict(x).equal(taught(name).predict(x))


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_leaves_the_global_generator_as_it_was(name: str) -> None:
    before = torch.get_rng_state()

    taught(name, count=40).predict(images(GREY)[0])

    assert torch.get_rng_state().equal(before)


@pytest.mark.parametrize("name", PEERS)
def test_samples_without_labels_teach_a_peer_nothing(name: str) -> None:
    method, other = taught(name, count=40), taught(name, count=40)
    x, _ = images(GREY)

    method.observe(x[:10], torch.full((10,), -1))

    assert method.cost() == other.cost()
    assert method.predict(x).equal(other.predict(x))


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_that_was_told_nothing_still_answers(name: str) -> None:
    answer = make(name, GREY, {}).predict(images(GREY)[0])

    assert answer.dtype == torch.int64
    assert answer.shape == (240,)


@needs("avalanche")
@pytest.mark.parametrize("name", REPLAYED)
def test_the_memory_holds_its_capacity_and_every_class(name: str) -> None:
    method: Any = taught(name, capacity=40)
    method.predict(images(GREY)[0])

    labels = [int(sample[1]) for sample in method._memory.buffer]

    counts = np.unique(labels, return_counts=True)[1]

    assert counts.sum() == 40
    assert len(counts) == 4
    assert name == "avalanche-er" or counts.tolist() == [10, 10, 10, 10]


@needs("avalanche")
@pytest.mark.parametrize("name", REPLAYED)
def test_replay_fills_the_bytes_of_state_it_is_given(name: str) -> None:
    x, _ = images(GREY)
    like = taught(name, capacity=50)
    like.predict(x)
    given = like.cost().state_bytes

    method = taught(name, state_bytes=given)
    method.predict(x)

    assert given - 200 < method.cost().state_bytes <= given


@needs("avalanche")
@pytest.mark.parametrize("name", REPLAYED)
def test_colour_images_of_any_size_go_through_the_slim_resnet(name: str) -> None:
    method = taught(name, COLOUR, count=20)

    assert method.predict(images(COLOUR)[0]).shape == (240,)


@needs("avalanche")
@pytest.mark.parametrize("name", AT_ONCE)
@pytest.mark.parametrize("batch", [1, 10])
def test_vectors_are_learned_whatever_their_units(name: str, batch: int) -> None:
    facts = Facts(kind="vector", shape=(2,), classes=2, seed=0)
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(2, (200,), generator=generator)
    x = torch.randn((200, 2), generator=generator) + 3 * y[:, None]
    x = x * torch.tensor([1e4, 1e-3]) + torch.tensor([1e5, 0.0])

    method = make(name, facts, {})
    for i in range(0, 200, batch):
        method.observe(x[i : i + batch], y[i : i + batch])

    assert (method.predict(x) == y).float().mean() > 0.9


@needs("avalanche")
def test_batch_by_batch_equals_avalanches_own_online_stream() -> None:
    from avalanche.benchmarks import benchmark_from_datasets
    from avalanche.benchmarks.scenarios import split_online_stream

    from bench.peers import avalanche, library

    x, y = images(GREY)
    method: Any = taught("avalanche-er")
    native: Any = avalanche.er(GREY)
    data = benchmark_from_datasets(train=[library.tensor_dataset(x, y, task_labels=0)])
    stream = split_online_stream(
        data.train_stream, experience_size=10, access_task_boundaries=False, shuffle=False
    )
    native._strategy.train_mb_size = 10
    with native._draws.lent(), warnings.catch_warnings(record=True):
        for experience in stream:
            native._strategy.train(experience, eval_streams=[])

    ours, theirs = method._strategy.model.state_dict(), native._strategy.model.state_dict()

    assert all(tensor.equal(theirs[name]) for name, tensor in ours.items())


@needs("avalanche")
def test_an_experience_is_its_mini_batch_and_tells_no_task(monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.peers import feeding

    monkeypatch.setattr(feeding, "CHUNK", 24)
    x, y = images(GREY, count=80)
    arrivals = feeding.Arrivals()

    experiences = [arrivals.experience(x[i : i + 10], y[i : i + 10]) for i in range(0, 80, 10)]
    samples = [sample for experience in experiences for sample in experience.dataset]

    assert torch.stack([sample[0] for sample in samples]).equal(x)
    assert [sample[1] for sample in samples] == y.tolist()
    assert {sample[2] for sample in samples} == {0}
    assert [t for e in experiences for t in e.dataset.targets] == y.tolist()
    assert not any(experience.access_task_boundaries for experience in experiences)


@needs("avalanche")
def test_work_is_counted_forward_once_and_backward_twice() -> None:
    from bench.peers.feeding import Spending

    network = nn.Linear(2, 3)
    spending = Spending(network)

    network(torch.ones(7, 2))
    with spending.counted():
        network(torch.ones(5, 2)).sum().backward()
        with torch.no_grad():
            network(torch.ones(4, 2))

    assert spending.spent == 5 + 2 * 5 + 4


@needs("avalanche")
@pytest.mark.parametrize(
    ("name", "each"),
    [
        ("avalanche-er", 3 * (10 + 10)),
        ("avalanche-er-ace", 3 * (10 + 10)),
        ("avalanche-cope", 3 * (10 + 10)),
        ("avalanche-der", 3 * (10 + 10) + 10),  # logits of what enters the memory
        ("avalanche-mir", 3 * 10 + 2 * 50 + 2 * 10 + 3 * 10),  # a virtual step, candidates twice
        ("avalanche-scr", 3 * 2 * (10 + 100)),  # two views of each
    ],
)
def test_a_mini_batch_costs_what_its_method_says(name: str, each: int) -> None:
    x, y = images(GREY)
    method = taught(name)
    before = method.cost().sample_gradients

    method.observe(x[:10], y[:10])

    assert method.cost().sample_gradients - before == each


@needs("avalanche")
def test_gdumb_trains_only_when_it_is_evaluated() -> None:
    x, y = images(GREY)
    method = taught("avalanche-gdumb")

    unasked = method.cost().sample_gradients
    method.predict(x[:10])
    before_a_batch = method.cost().sample_gradients
    method.predict(x)

    assert unasked == before_a_batch == 0
    assert method.cost().sample_gradients == 3 * 10 * len(y)


@needs("avalanche")
def test_standardised_by_parts_equals_standardised_at_once() -> None:
    from bench.peers.networks import Standardised

    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)) * 7 + 100
    module = Standardised(3)
    for part in x.split([1, 2, 40, 7]):
        module(part)

    module.eval()

    expected = (x - x.mean(0)) / x.std(0, correction=0)
    torch.testing.assert_close(module(x), expected, rtol=1e-4, atol=1e-4)


@needs("river")
def test_river_is_told_one_sample_after_the_other_and_asked_before() -> None:
    from river.tree import HoeffdingAdaptiveTreeClassifier

    x = torch.randn(300, 3, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] > 0).long()
    method = make("river-hat", Facts(kind="vector", shape=(3,), classes=2, seed=5), {})
    tree = HoeffdingAdaptiveTreeClassifier(seed=5)
    rows = [dict(enumerate(row)) for row in x.tolist()]
    said, expected = [], []

    for i in range(0, 300, 10):
        said += method.predict(x[i : i + 10]).tolist()
        method.observe(x[i : i + 10], y[i : i + 10])
        expected += [tree.predict_one(row) for row in rows[i : i + 10]]
        for row, label in zip(rows[i : i + 10], y[i : i + 10].tolist(), strict=True):
            tree.learn_one(row, label)

    assert said[:10] == [-1] * 10
    assert said[10:] == expected[10:]
