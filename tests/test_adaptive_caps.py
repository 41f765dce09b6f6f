"""Under preset `default` what is kept, spent and grown stays within what the settings say."""

from dataclasses import replace

import pytest
import torch

from learner.adaptive import AdaptiveLEViT
from learner.adaptive_config import MIB
from learner.analytic import memory_bytes
from learner.encoder import Encoder
from learner.held_out import MOST
from tests.adaptive_streams import CONFIGS, caught, changing, facts, grown, tiny
from tests.streams import BATCH, CLASSES, Shift


def _shuffled(levit: AdaptiveLEViT, n: int, *, batch: int = BATCH, seed: int = 0) -> None:
    source = Shift(levit.config.input_shape, seed)
    for _ in range(n // batch):
        y_B = torch.randint(CLASSES, (batch,), generator=source.generator)
        levit.observe(source.draw(y_B), y_B)


@pytest.mark.parametrize("budget", [2.0, 6.0, 20.0])
def test_spending_stays_within_the_budget_but_for_one_mini_batch(budget: float) -> None:
    levit = AdaptiveLEViT(tiny((6,), budget=budget))
    fixed = 5 * BATCH  # two forwards of each sample, and the density model's step

    for batch in changing(levit.config):
        levit.observe(batch.x, batch.labels)
        asked = 2 * MOST // 10 if levit.knowledge is None else 2 * levit.knowledge.marks.held
        assert levit.counts.spent <= budget * levit.counts.samples + fixed + asked

    assert levit.counts.spent > 0.9 * budget * levit.counts.samples


def test_without_a_budget_no_network_learns_and_nothing_expands() -> None:
    levit, batch = caught("no-budget", "fitting")
    levit.observe(batch.x, batch.labels)
    before = facts(levit.mixture.active.network), facts(levit.mixture.active.vae)

    for later in changing(levit.config):
        levit.observe(later.x, later.labels)

    assert (facts(levit.mixture.active.network), facts(levit.mixture.active.vae)) == before
    assert len(levit.mixture.experts) == 1
    assert levit.counts.spent == 0
    assert levit.replay.columns["tokens"].nbytes == 0


def test_replay_buffer_holds_no_more_than_its_capacity() -> None:
    levit = AdaptiveLEViT(tiny((6,), capacity=100))

    _shuffled(levit, 300)

    assert len(levit.replay) == levit.replay.capacity == 100
    assert levit.replay.nbytes < 100 * 200


@pytest.mark.parametrize("shape", [(6,), (24, 3)], ids=str)
def test_replay_buffer_holds_no_more_than_its_bytes(shape: tuple[int, ...]) -> None:
    levit = AdaptiveLEViT(tiny(shape, replay_bytes=2 * MIB, budget=0.0))
    _shuffled(levit, 100)
    capacity = levit.replay.capacity

    ids = torch.stack([torch.ones(capacity), torch.arange(capacity)], 1).long()
    tokens = torch.zeros(capacity, *levit.replay.columns["tokens"].shape[1:])
    ready, source = torch.ones(capacity), torch.zeros(capacity, dtype=torch.int32)
    x, y = torch.zeros(capacity, *shape), ids[:, 0]
    levit.replay.add(x, y, ids, source, tokens=tokens, ready=ready)

    assert len(levit.replay) == capacity
    assert 1.9 * MIB < levit.replay.nbytes <= 2 * MIB


@pytest.mark.parametrize("budget", [0.0, 6.0])
def test_held_out_slice_is_a_fifth_of_the_capacity_at_most(budget: float) -> None:
    levit = AdaptiveLEViT(tiny((6,), capacity=200, budget=budget))

    _shuffled(levit, 1500, batch=100)

    assert levit.knowledge is not None
    assert len(levit.replay.below(levit.knowledge.marks.held_below)) == 40


@pytest.mark.parametrize("shape", [(6,), (24, 3), (1, 8, 8), (3, 32, 32)], ids=str)
@pytest.mark.parametrize("megabytes", [3, 8])
def test_sums_of_ten_classes_stay_within_their_bytes(
    shape: tuple[int, ...], megabytes: int
) -> None:
    config = tiny(shape, statistics_bytes=megabytes * MIB)
    x = torch.rand(60, *shape, generator=torch.Generator().manual_seed(0))

    encoder = Encoder.fitted(x, config, torch.Generator().manual_seed(0))

    assert memory_bytes(encoder.features, 10) <= config.statistics_bytes
    assert encoder.features <= config.features


def test_expansion_beyond_the_cap_is_refused_and_counted() -> None:
    levit = AdaptiveLEViT(replace(CONFIGS["vectors"], max_experts=1))

    for batch in changing(levit.config):
        levit.observe(batch.x, batch.labels)

    assert len(levit.mixture.experts) == 1
    assert levit.counts.refused_max_experts >= 1
    assert levit.counts.expansions == 0


def test_no_expert_is_added_where_expansion_is_off() -> None:
    levit = AdaptiveLEViT(replace(CONFIGS["vectors"], expansion=False))

    for batch in changing(levit.config):
        levit.observe(batch.x, batch.labels)

    assert len(levit.mixture.experts) == 1
    assert levit.counts.refused_max_experts == 0


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_shuffled_stream_never_expands(seed: int) -> None:
    levit = AdaptiveLEViT(tiny((6,), seed=seed))

    _shuffled(levit, 1000, batch=20, seed=seed)

    assert levit.growth.scorer is not None
    assert levit.counts.expansions == 0


def test_all_that_is_kept_is_counted_in_bytes() -> None:
    levit = grown("grey")
    known = levit.knowledge
    assert known is not None
    before = levit.state_bytes

    levit.mixture.experts.append(levit.mixture.experts[0])

    network, vae = levit.mixture.experts[0].network, levit.mixture.experts[0].vae
    weights = sum(p.nbytes for p in [*network.parameters(), *vae.parameters()])
    assert before > known.memory.nbytes + known.own.nbytes + levit.replay.nbytes
    assert levit.state_bytes - before >= weights
