"""Purging a source: nothing of it in replay buffer and sums, everything of the others."""

import itertools
from collections.abc import Mapping, Sequence

import pytest
import torch
from torch import Tensor

import learner
from learner import AdaptiveLEViT, LEViT, Purged, Stored
from learner.analytic import AnalyticMemory
from learner.samples import UNLABELLED, class_indexes
from tests.adaptive_streams import CHANGE, CONFIGS, HALF, STEPS, changing, facts, tiny
from tests.streams import CONFIGS as PAPER
from tests.streams import MiniBatch, Shift, phases

NAMES = list(CONFIGS)
POISON = 1
"""The source that is purged; the other one is 0."""


def _source(number: int) -> int:
    return POISON if number % 3 == 1 else 0


def _stored(batches: Sequence[MiniBatch]) -> list[Stored]:
    """Return what was kept of the poison."""
    return [
        Stored(number, batch.x, batch.labels)
        for number, batch in enumerate(batches)
        if _source(number) == POISON and batch.labels is not None
    ]


def _learned(config: learner.AdaptiveConfig, steps: int = STEPS) -> AdaptiveLEViT:
    levit = AdaptiveLEViT(config)
    for number, batch in enumerate(itertools.islice(changing(config), steps)):
        levit.observe(batch.x, batch.labels, entry_number=number, source=_source(number))
    return levit


def _sums(levit: AdaptiveLEViT, *, of: Sequence[int]) -> AnalyticMemory:
    """Return sums of some sources' samples alone, under the features that the learner has."""
    encoder = levit.mixture.encoder
    assert encoder is not None
    sums = AnalyticMemory(encoder.features)
    for number, batch in enumerate(changing(levit.config)):
        y_B, _ = class_indexes(batch.labels, len(batch.x), levit.mixture.classes)
        rows = y_B != UNLABELLED
        if _source(number) in of and rows.any():
            sums.add(encoder(batch.x[rows]).features_BF, y_B[rows], classes=2 * HALF)
    return sums


def _assert_alike(one: AnalyticMemory, other: AnalyticMemory) -> None:
    assert torch.equal(one.counts_K, other.counts_K)
    ours, theirs = one._sums(), other._sums()
    torch.testing.assert_close(ours.sums_KD, theirs.sums_KD, rtol=1e-5, atol=1e-5)
    for our, their in zip(ours.blocks(), theirs.blocks(), strict=True):
        torch.testing.assert_close(our, their, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_the_sums_are_those_of_the_others_alone(name: str) -> None:
    levit = _learned(CONFIGS[name])
    assert levit.knowledge is not None
    with pytest.raises(AssertionError):  # before
        _assert_alike(levit.knowledge.memory, _sums(levit, of=[0]))

    told = learner.purge(levit, POISON, _stored(list(changing(levit.config))))

    _assert_alike(levit.knowledge.memory, _sums(levit, of=[0]))
    assert torch.equal(levit.mixture.counts_K, levit.knowledge.memory.counts_K)
    poison = int(_sums(levit, of=[POISON]).counts_K.sum())
    assert told == Purged(replay=poison, unlearned=poison)
    assert set(levit.replay.tensors()["source"].tolist()) == {0}


def test_without_what_was_kept_only_what_the_buffer_holds_is_unlearned() -> None:
    levit = _learned(tiny((6,), capacity=50))
    held = int((levit.replay.tensors()["source"] == POISON).sum())
    poison = int(_sums(levit, of=[POISON]).counts_K.sum())

    told = learner.purge(levit, POISON, [])

    assert levit.knowledge is not None
    left = levit.knowledge.memory.counts_K.sum() - _sums(levit, of=[0]).counts_K.sum()
    assert told == Purged(replay=held, unlearned=held)
    assert int(left) == poison - held > 0


def test_what_is_kept_beyond_the_buffer_is_unlearned_once() -> None:
    levit = _learned(tiny((6,), capacity=50))
    batches = list(changing(levit.config))

    told = learner.purge(levit, POISON, _stored(batches))

    assert levit.knowledge is not None
    _assert_alike(levit.knowledge.memory, _sums(levit, of=[0]))
    assert told.unlearned == int(_sums(levit, of=[POISON]).counts_K.sum()) > told.replay


def test_a_class_that_only_the_purged_source_showed_is_answered_no_more() -> None:
    config = tiny((6,), budget=0.0)
    levit, shift = AdaptiveLEViT(config), Shift((6,))
    batches = [(shift.of(k, 10), torch.full((10,), k), k) for k in (0, 1, 2) * 8]
    for number, (x, y, k) in enumerate(batches):
        levit.observe(x, y, entry_number=number, source=POISON if k == 2 else 0)
    alien = shift.of(2, 20)
    before = levit.predict(alien).probabilities_BK.argmax(1)

    learner.purge(levit, POISON, [])

    after = levit.predict(alien).probabilities_BK.argmax(1)
    assert (before == 2).all()
    assert not (after == 2).any()


def test_answers_are_right_again_once_the_poison_is_purged() -> None:
    """A key that writes as much as all others and turns every label."""
    config = tiny((6,), budget=0.0)
    shift, poisoned, clean = Shift((6,)), AdaptiveLEViT(config), AdaptiveLEViT(config)
    for number in range(60):
        y = torch.randint(0, 3, (10,), generator=shift.generator)
        x = shift.draw(y)
        bad = number % 2 == POISON
        poisoned.observe(x, (y + 1) % 3 if bad else y, entry_number=number, source=number % 2)
        if not bad:
            clean.observe(x, y, entry_number=number)
    true = torch.arange(3).repeat(100)
    fresh = shift.draw(true)

    before = _accuracy(poisoned, fresh, true)
    learner.purge(poisoned, POISON, [])

    assert before < 0.75
    assert _accuracy(poisoned, fresh, true) >= _accuracy(clean, fresh, true) - 0.02 > 0.9


def _accuracy(levit: AdaptiveLEViT, x: Tensor, true: Tensor) -> float:
    answer = levit.predict(x)
    columns = torch.tensor([int(one) for one in answer.classes])
    return float((columns[answer.probabilities_BK.argmax(1)] == true).double().mean())


def test_samples_that_wait_for_the_encoder_leave_no_trace_of_the_first_guess() -> None:
    config = tiny((6,), fit_samples=1000)
    levit, clean = AdaptiveLEViT(config), AdaptiveLEViT(config)
    shift = Shift((6,))
    for number in range(6):
        y = torch.randint(0, 3, (10,), generator=shift.generator)
        y[::3] = -1
        x = shift.draw(y.clamp_min(0))
        for each in (levit, clean):
            if number % 2 == 0 or each is levit:
                each.observe(x, y, entry_number=number, source=number % 2)

    told = learner.purge(levit, POISON, [])

    assert told == Purged(replay=30, unlearned=18)
    assert levit.mixture.counts_K.tolist() == clean.mixture.counts_K.tolist()
    torch.testing.assert_close(levit.mixture.first_KV, clean.mixture.first_KV)
    assert facts(list(levit.pending)) == facts(list(clean.pending))


@pytest.mark.parametrize("steps", [3, CHANGE, STEPS])
def test_a_learner_goes_on_after_a_purge_as_one_restored_there(steps: int) -> None:
    levit = _learned(CONFIGS["vectors"], steps)
    learner.purge(levit, POISON, _stored(list(changing(levit.config))[:steps]))
    state = learner.dump(levit)
    restored = learner.restore(state)

    for each in (levit, restored):
        for number, batch in enumerate(changing(levit.config, seed=1), STEPS):
            each.observe(batch.x, batch.labels, entry_number=number)

    ours, theirs = learner.dump(levit), learner.dump(restored)
    assert ours.values == theirs.values
    assert _unequal(ours.tensors, theirs.tensors) == []


def test_purging_twice_takes_nothing_more() -> None:
    levit = _learned(CONFIGS["vectors"])
    learner.purge(levit, POISON, [])

    assert learner.purge(levit, POISON, []) == Purged(replay=0, unlearned=0)


def test_the_published_preset_drops_them_from_its_window_and_has_no_sums() -> None:
    levit = LEViT(PAPER["vectors"])
    for number, batch in enumerate(itertools.islice(phases(levit.config), 2)):
        levit.observe(batch.x, batch.labels, entry_number=number, source=number % 2)

    told = learner.purge(levit, POISON, [])

    restored = learner.restore(learner.dump(levit))
    for each in (levit, restored):
        for batch in phases(levit.config):
            each.observe(batch.x, batch.labels)
    assert told == Purged(replay=10, unlearned=0)
    assert _unequal(learner.dump(levit).tensors, learner.dump(restored).tensors) == []


def _unequal(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> list[str]:
    return [name for name in ours if not torch.equal(ours[name], theirs[name])]
