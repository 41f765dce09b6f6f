"""Save and load: the state is whole, and continuing is bit-equal to never having stopped."""

import re

import pytest
import safetensors.torch
import torch

from learner import LearnerConfig, StateError
from learner.state import LearnerState, dump, restore, restore_for_prediction
from tests.streams import CONFIGS, Shift, digest, learned, phases


@pytest.fixture(params=list(CONFIGS.values()), ids=list(CONFIGS))
def config(request: pytest.FixtureRequest) -> LearnerConfig:
    assert isinstance(request.param, LearnerConfig)
    return request.param


def _through_bytes(state: LearnerState) -> LearnerState:
    tensors = {name: tensor.contiguous() for name, tensor in state.tensors.items()}
    return LearnerState(safetensors.torch.load(safetensors.torch.save(tensors)), state.values)


@pytest.mark.parametrize("stop", [0, 4, 8, 11])
def test_restored_learner_continues_as_if_never_stopped(config: LearnerConfig, stop: int) -> None:
    levit = restore(_through_bytes(dump(learned(config, steps=stop))))

    for number, batch in enumerate(phases(config)):
        if number >= stop:
            levit.observe(batch.x, batch.labels)

    assert digest(levit) == digest(learned(config))


def test_saving_changes_nothing(config: LearnerConfig) -> None:
    levit = learned(config, steps=3)

    for number, batch in enumerate(phases(config)):
        if number >= 3:
            dump(levit)
            levit.observe(batch.x, batch.labels)

    assert digest(levit) == digest(learned(config))


def test_learner_restored_for_prediction_gives_the_same_answers(config: LearnerConfig) -> None:
    levit = learned(config)
    state = dump(levit)
    served = {n: t for n, t in state.tensors.items() if not n.startswith(("memory", "optimizer"))}
    x = Shift(config.input_shape, seed=3).of(1, 7)

    answer = restore_for_prediction(LearnerState(served, state.values)).predict(x)

    expected = levit.predict(x)
    assert answer.labels == expected.labels
    assert torch.equal(answer.probabilities_BK, expected.probabilities_BK)
    assert torch.equal(answer.novelty_B, expected.novelty_B)


def test_restored_learner_shares_nothing_with_the_one_it_came_from(config: LearnerConfig) -> None:
    levit = learned(config, steps=7)
    state, before = dump(levit), digest(levit)

    for _ in range(2):
        twin = restore(state)
        twin.observe(Shift(config.input_shape).of(5, 10), torch.full((10,), 99))

    assert digest(levit) == before


def _state() -> LearnerState:
    return dump(learned(CONFIGS["vectors"], steps=7))


@pytest.mark.parametrize("name", sorted(_state().tensors))
def test_state_without_a_tensor_or_with_another_one_is_refused(name: str) -> None:
    state = _state()
    others = {n: t for n, t in state.tensors.items() if n != name}

    with pytest.raises(StateError, match=re.escape(name)):
        restore(LearnerState(others, state.values))
    with pytest.raises(StateError):
        restore(LearnerState(others | {name: torch.zeros(3, 2, 2)}, state.values))


@pytest.mark.parametrize("name", sorted(_state().values))
def test_state_without_a_value_is_refused(name: str) -> None:
    state = _state()

    with pytest.raises(StateError, match=name):
        restore(LearnerState(state.tensors, {n: v for n, v in state.values.items() if n != name}))


def test_floats_and_bytes_may_mix_in_one_memory() -> None:
    config = CONFIGS["vit-full-window"]
    source = Shift(config.input_shape)
    levit = learned(config, steps=5)
    levit.observe(source.of(0, 3).float() / 255)
    levit.observe(source.of(0, 3))

    again = restore(_through_bytes(dump(levit)))
    more = source.of(1, 3)
    for one in (levit, again):
        one.observe(more)

    assert again.memory.x.dtype == torch.float32
    assert digest(levit) == digest(again)
