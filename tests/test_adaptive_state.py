"""Save and load of preset `default`: the state is whole, continuing is bit-equal (law 6)."""

import json
import re
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import safetensors.torch
import torch

import learner
from learner import AdaptiveLEViT, LearnerState, StateError
from learner.adaptive_served import SERVED, restore_for_prediction
from learner.adaptive_state import dump, restore
from tests.adaptive_streams import CHANGE, CONFIGS, GROWING, STEPS, changing, facts, samples, tiny
from tests.streams import Shift

NAMES = list(CONFIGS)
STOPS = (0, 2, CHANGE - 2, STEPS - 2)
"""Nothing seen; samples held back; in the first expert's life; after an expansion, if any."""
DERIVED = re.compile(r"\.replay\.(tokens|ready)$|^\.pending\.")


def _learned(name: str, steps: int) -> AdaptiveLEViT:
    levit = AdaptiveLEViT(CONFIGS[name])
    for number, batch in enumerate(changing(levit.config)):
        if number < steps:
            levit.observe(batch.x, batch.labels)
    return levit


def _continued(levit: AdaptiveLEViT, start: int) -> AdaptiveLEViT:
    for number, batch in enumerate(changing(levit.config)):
        if number >= start:
            levit.observe(batch.x, batch.labels)
    return levit


@cache
def _end(name: str) -> dict[str, str]:
    return _whole(_learned(name, STEPS))


def _whole(levit: AdaptiveLEViT) -> dict[str, str]:
    """Return all that it is, but for what is derived; samples held back count as one batch."""
    found = {path: said for path, said in facts(levit).items() if not DERIVED.search(path)}
    return found | {"pending": str([facts(batch) for batch in _held(levit)])}


def _held(levit: AdaptiveLEViT) -> list[object]:
    tensors = dump(levit).tensors
    return [t for name, t in tensors.items() if name.startswith("pending.")]


def _through_bytes(state: LearnerState) -> LearnerState:
    """Return the state as files would give it back."""
    assert all(tensor.is_contiguous() for tensor in state.tensors.values())
    values = json.loads(json.dumps(state.values))
    return LearnerState(safetensors.torch.load(safetensors.torch.save(dict(state.tensors))), values)


@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize("name", NAMES)
def test_restored_learner_is_the_same_and_continues_as_if_never_stopped(
    name: str, stop: int
) -> None:
    levit = _learned(name, stop)

    again = restore(_through_bytes(dump(levit)))

    assert _whole(again) == _whole(levit)
    assert _whole(_continued(again, stop)) == _end(name)


def test_the_moments_of_these_tests_are_what_they_are_said_to_be() -> None:
    """Negative control: there are samples held back, a scorer, evidence and a second expert."""
    _, held, first, later = (_learned("vectors", stop) for stop in STOPS)

    assert held.pending
    assert held.mixture.encoder is None
    assert first.growth.scorer is not None
    assert first.knowledge is not None
    assert len(first.mixture.experts) == 1
    assert len(later.mixture.experts) > 1
    assert later.mixture.pools


@pytest.mark.parametrize("name", GROWING)
def test_tokens_made_again_are_the_tokens_that_were_lost(name: str) -> None:
    levit = _learned(name, CHANGE)
    again = restore(dump(levit))
    assert again.mixture.encoder is not None
    slots = torch.arange(len(again.replay))
    assert not again.replay.columns["ready"][slots].any()

    made = again.mixture.encoder.replayed(again.replay, slots)

    assert torch.equal(made, levit.replay.columns["tokens"][slots])
    assert torch.equal(again.replay.columns["tokens"][slots], made)


def test_a_learner_stopped_while_read_outs_that_forget_answer_goes_on_so() -> None:
    levit = _learned("vectors", CHANGE)
    levit.mixture.overruled = True

    again = restore(_through_bytes(dump(levit)))

    assert torch.equal(
        again.predict(samples("vectors")).probabilities_BK,
        levit.predict(samples("vectors")).probabilities_BK,
    )


def test_bytes_and_floats_may_mix_among_the_samples_held_back() -> None:
    config = tiny((1, 8, 8))
    source, levits = Shift(config.input_shape), [AdaptiveLEViT(config) for _ in range(2)]
    for k, as_bytes in enumerate((True, False, True, True, True, True, True, True)):
        x = source.of(k % 3, 10)
        x = x if as_bytes else x.float() / 255
        for levit in levits:
            levit.observe(x, torch.full((10,), k % 3))
        levits[0] = restore(_through_bytes(dump(levits[0])))

    assert levits[0].mixture.encoder is not None
    assert levits[0].replay.x.dtype == torch.float32
    assert _whole(levits[0]) == _whole(levits[1])


def test_layout_of_the_samples_changes_no_bit() -> None:
    """One channel has room for several layouts, and convolutions choose by them."""
    config = tiny((1, 8, 8))
    plain, turned = AdaptiveLEViT(config), AdaptiveLEViT(config)
    for batch in changing(config):
        plain.observe(batch.x, batch.labels)
        x_BHWC = batch.x.permute(0, 2, 3, 1).clone(memory_format=torch.contiguous_format)
        turned.observe(x_BHWC.permute(0, 3, 1, 2), batch.labels)

    assert _whole(plain) == _whole(turned)


@pytest.mark.parametrize("name", NAMES)
def test_saving_changes_nothing(name: str) -> None:
    levit = AdaptiveLEViT(CONFIGS[name])
    for batch in changing(levit.config):
        levit.observe(batch.x, batch.labels)
        dump(levit)

    assert _whole(levit) == _end(name)


@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize("name", NAMES)
def test_learner_restored_for_prediction_gives_the_same_answers(name: str, stop: int) -> None:
    levit = _learned(name, stop)
    state = dump(levit)
    served = {n: t for n, t in state.tensors.items() if n.startswith(SERVED)}

    answer = restore_for_prediction(LearnerState(served, state.values)).predict(samples(name))

    expected = levit.predict(samples(name))
    assert answer.labels == expected.labels
    assert torch.equal(answer.probabilities_BK, expected.probabilities_BK)
    assert torch.equal(answer.experts_B, expected.experts_B)
    assert torch.equal(answer.novelty_B, expected.novelty_B)


def test_a_state_may_be_restored_twice_and_shares_nothing_with_its_learners() -> None:
    levit = _learned("vectors", CHANGE)
    state, before = dump(levit), _whole(levit)

    ends = [_whole(_continued(restore(state), CHANGE)) for _ in range(2)]

    assert ends == [_end("vectors")] * 2
    assert _whole(levit) == before


def test_a_restored_learner_says_why_its_experts_were_born() -> None:
    again = restore(_through_bytes(dump(_learned("vectors", STEPS))))

    first, second = again.mixture.experts[:2]
    assert first.expansion is None
    assert second.expansion is not None
    assert second.expansion.novelty >= second.expansion.threshold
    assert not any(p.requires_grad for p in first.network.parameters())


def test_the_front_door_knows_whose_state_it_is() -> None:
    default, paper = _learned("vectors", 2), learner.LEViT(learner.paper((6,)))

    assert isinstance(learner.restore(learner.dump(default)), AdaptiveLEViT)
    assert isinstance(learner.restore(learner.dump(paper)), learner.LEViT)
    mixture = learner.restore_for_prediction(learner.dump(default))
    assert isinstance(mixture, learner.AdaptiveMixture)
    assert isinstance(learner.restore_for_prediction(learner.dump(paper)), learner.Mixture)


@cache
def _states() -> list[LearnerState]:
    return [dump(_learned("vectors", steps)) for steps in (2, STEPS)]


PARTS = [(i, name) for i, state in enumerate(_states()) for name in sorted(state.tensors)]


def test_states_without_a_tensor_or_with_another_one_are_refused() -> None:
    for i, name in PARTS:
        state = _states()[i]
        others = {n: t for n, t in state.tensors.items() if n != name}
        twisted = others | {name: torch.zeros(3, 2, 2)}
        converted = others | {name: state.tensors[name].to(torch.complex64)}

        assert name in _refusal(restore, LearnerState(others, state.values))
        assert name in _refusal(restore, LearnerState(twisted, state.values))
        assert name in _refusal(restore, LearnerState(converted, state.values))
        if name.startswith(SERVED):
            assert name in _refusal(restore_for_prediction, LearnerState(others, state.values))


@pytest.mark.parametrize("name", sorted(_states()[0].values))
def test_state_without_a_value_is_refused(name: str) -> None:
    for state in _states():
        values = {n: v for n, v in state.values.items() if n != name}

        assert name in _refusal(restore, LearnerState(state.tensors, values))


def _refusal(read: Callable[[LearnerState], Any], state: LearnerState) -> str:
    with pytest.raises(StateError) as refused:
        read(state)
    return str(refused.value)
