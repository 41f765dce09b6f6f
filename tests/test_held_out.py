"""The held-out slice: what was once trained on is never held out, and the slice stays small."""

import pytest
import torch
from torch import Generator

from learner.adaptive import AdaptiveLEViT
from learner.adaptive_training import AdaptiveTraining
from learner.held_out import (
    FEWEST,
    FIRST_BOUND,
    FIRST_RIDGES,
    MOST,
    HeldFeatures,
    fallen_bound,
    judged,
)
from learner.reservoir import ReplayBuffer
from learner.splitmix import sample_keys
from learner.tokenizer import Grids, Tokenizer
from tests.adaptive_streams import CONFIGS, caught, changing, facts, grown, tiny
from tests.streams import BATCH, CLASSES, Shift

Id = tuple[int, ...]


def _filled(capacity: int, n: int) -> ReplayBuffer:
    replay = ReplayBuffer(capacity, (1,), salt=0)
    ids = torch.stack([torch.zeros(n, dtype=torch.int64), torch.arange(n)], 1)
    nobody = torch.zeros(n, dtype=torch.int32)
    replay.add(torch.rand(n, 1), torch.zeros(n, dtype=torch.int64), ids, nobody)
    return replay


@pytest.mark.parametrize(("capacity", "most"), [(100, 20), (500, 100), (20_000, MOST)])
def test_slice_is_a_fifth_of_the_capacity_and_a_thousand_at_most(capacity: int, most: int) -> None:
    replay = _filled(capacity, 3 * capacity)

    bound = fallen_bound(FIRST_BOUND, replay)

    assert len(replay.below(bound)) == most


def test_tenth_of_all_samples_is_held_out_at_first() -> None:
    replay = _filled(50_000, 5000)

    held = len(replay.below(fallen_bound(FIRST_BOUND, replay)))

    assert 430 < held < 570  # 500, give or take three deviations


def test_bound_only_falls() -> None:
    bounds, bound = list[int](), FIRST_BOUND
    for n in (10, 100, 1000, 3000, 500):
        bound = fallen_bound(bound, _filled(300, n))
        bounds.append(bound)

    assert bounds == sorted(bounds, reverse=True)
    assert bounds[0] == FIRST_BOUND > bounds[-1]


def _members(replay: ReplayBuffer, slots: torch.Tensor) -> set[Id]:
    return {tuple(id_) for id_ in replay.ids_S2[slots].tolist()}


@pytest.mark.parametrize("capacity", [100, None])
def test_sample_once_trained_on_is_never_held_out_later(
    capacity: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    levit, source = AdaptiveLEViT(tiny((6,), capacity=capacity, budget=20.0)), Shift((6,))
    trained, held_later = set[Id](), list[int]()
    honest_draw, honest_learn = ReplayBuffer.draw, AdaptiveTraining.practise
    drawn = list[set[Id]]()

    def draw(replay: ReplayBuffer, n: int, generator: Generator) -> torch.Tensor:
        slots = honest_draw(replay, n, generator)
        drawn.append(_members(replay, slots))
        return slots

    def practise(training: AdaptiveTraining, pupil, past, *rest):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN002, ANN202
        replay, held = past
        held_now = _members(replay, held)
        held_later.append(len(held_now & trained))
        done = honest_learn(training, pupil, past, *rest)
        trained.update(drawn.pop() - held_now if drawn else set())
        if levit.counts.step > 6:
            trained.update((levit.counts.step, int(i)) for i in pupil[2])
        return done

    monkeypatch.setattr(ReplayBuffer, "draw", draw)
    monkeypatch.setattr(AdaptiveTraining, "practise", practise)
    for _ in range(45):
        y_B = torch.randint(CLASSES, (BATCH,), generator=source.generator)
        levit.observe(source.draw(y_B), y_B)

    assert len(held_later) > 35
    assert len(trained) > 250
    assert sum(held_later) == 0


def test_own_sums_of_an_expert_have_not_seen_what_is_held_out() -> None:
    levit, batch = caught("no-budget", "learning")
    known = levit.knowledge
    assert known is not None
    before = known.own.counts_K.sum(), known.memory.counts_K.sum()
    y = torch.zeros(len(batch.x) * 20, dtype=torch.int64)
    ids = torch.stack([torch.full((len(y),), levit.counts.step + 1), torch.arange(len(y))], 1)
    held = int((sample_keys(ids, levit.config.seed) < known.marks.held_below).sum())

    levit.observe(batch.x.repeat(20, 1, 1, 1), y)

    assert 0 < held < len(y)
    assert known.own.counts_K.sum() - before[0] == len(y) - held
    assert known.memory.counts_K.sum() - before[1] == len(y)


def test_verdict_waits_for_enough_held_out_samples() -> None:
    levit = AdaptiveLEViT(CONFIGS["vectors"])

    for batch in changing(levit.config):
        levit.observe(batch.x, batch.labels)
        if levit.knowledge is not None:
            enough = levit.knowledge.marks.held >= FEWEST
            assert bool(levit.mixture.pools) == enough

    assert levit.mixture.pools


@pytest.mark.parametrize("name", list(CONFIGS))
def test_verdict_names_a_ridge_of_the_list_and_judges_every_part(name: str) -> None:
    levit = grown(name)
    known = levit.knowledge
    assert known is not None

    verdict = judged(
        levit.mixture,
        known.memory,
        (levit.replay, FIRST_BOUND),
        None,
        everything=True,
        kept=HeldFeatures.none(),
    )

    assert verdict is not None
    assert verdict.ridge in FIRST_RIDGES
    assert verdict.held == len(levit.replay.below(FIRST_BOUND)) >= FEWEST
    assert len(verdict.accuracy_M) == 5
    assert verdict.accuracy_M[0] > 0.9
    assert all(0 <= share <= 1 for share in verdict.accuracy_M)


def test_part_that_answers_at_random_is_given_little_say() -> None:
    levit = grown("vectors")
    known, network = levit.knowledge, levit.mixture.active.network
    assert known is not None
    with torch.no_grad():
        network.head.weight_KD.normal_(generator=Generator().manual_seed(0))

    verdict = judged(
        levit.mixture,
        known.memory,
        (levit.replay, 0),
        0.1,
        everything=False,
        kept=HeldFeatures.none(),
    )

    assert verdict is not None
    for pool in verdict.pools.values():
        memory, _, network_weight, _, _ = pool.weight_M.tolist()
        assert network_weight < 0.25 * memory


@pytest.mark.parametrize("name", ["grey", "colour", "series", "vectors"])
def test_features_kept_are_those_that_would_be_made_and_only_others_are_made(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    levit = grown(name)
    encoder, replay = levit.mixture.encoder, levit.replay
    assert encoder is not None
    asked, honest = list[int](), Tokenizer.__call__

    def noted(own: Tokenizer, x: torch.Tensor) -> Grids:
        asked.append(len(x))
        return honest(own, x)

    monkeypatch.setattr(Tokenizer, "__call__", noted)
    half, whole = replay.below(FIRST_BOUND), replay.below(0)
    patched = encoder.patches is not None
    fresh = encoder(replay.x[whole])

    _, kept = HeldFeatures.none().encoded(encoder, replay, half)
    more, kept = kept.encoded(encoder, replay, whole)
    fewer, kept = kept.encoded(encoder, replay, half)

    assert 0 < len(half) < len(whole)
    assert asked == ([len(whole), len(half), len(whole) - len(half)] if patched else [])
    assert len(kept.keys_H) == (len(half) if patched else 0)
    for field in ("features_BF", "own_BO", "tokens_BRNE", "view_BV", "smooth_BS"):
        assert torch.equal(getattr(more, field), getattr(fresh, field))
    assert torch.equal(fewer.features_BF, fresh.features_BF[: len(half)])


def test_features_of_samples_that_were_undone_are_not_taken_for_others() -> None:
    """A mini-batch that fails leaves its number, and so its samples' keys, to the next one."""
    levit, twin = grown("grey"), grown("grey")
    failing, next_one = (Shift((1, 8, 8), seed).of(0, 300) for seed in (1, 2))
    before = levit.undo_point()
    levit.observe(failing, torch.zeros(300, dtype=torch.int64))
    levit.undo(before)

    for own in (levit, twin):
        own.observe(next_one, torch.zeros(300, dtype=torch.int64))

    assert levit.knowledge is not None
    assert twin.knowledge is not None
    assert len(levit.knowledge.kept.keys_H) > 0
    assert facts(levit.knowledge.kept) == facts(twin.knowledge.kept)
