"""Save and load: the state is whole, and continuing is bit-equal to never having stopped."""

from dataclasses import replace

import pytest
import safetensors.torch
import torch

from learner import LearnerConfig, LearnerState, StateError, dump, restore, restore_for_prediction
from tests.streams import CONFIGS, Shift, by_class, digest, learned


@pytest.fixture(params=list(CONFIGS.values()), ids=list(CONFIGS))
def config(request: pytest.FixtureRequest) -> LearnerConfig:
    assert isinstance(request.param, LearnerConfig)
    return request.param


def _through_bytes(state: LearnerState) -> LearnerState:
    tensors = {name: tensor.contiguous() for name, tensor in state.tensors.items()}
    return LearnerState(safetensors.torch.load(safetensors.torch.save(tensors)), state.values)


@pytest.mark.parametrize("stop", [0, 3, 7])
def test_restored_learner_continues_as_if_never_stopped(config: LearnerConfig, stop: int) -> None:
    levit = restore(_through_bytes(dump(learned(config, steps=stop))))

    for number, batch in enumerate(by_class(config)):
        if number >= stop:
            levit.observe(batch.x, batch.labels)

    assert digest(levit) == digest(learned(config))


def test_saving_changes_nothing(config: LearnerConfig) -> None:
    levit = learned(config, steps=3)

    for number, batch in enumerate(by_class(config)):
        if number >= 3:
            dump(levit)
            levit.observe(batch.x, batch.labels)

    assert digest(levit) == digest(learned(config))


def test_learner_restored_for_prediction_gives_the_same_answers(config: LearnerConfig) -> None:
    levit = learned(config)
    state = dump(levit)
    served = {n: t for n, t in state.tensors.items() if not n.startswith(("memory", "optimizer"))}
    x = Shift(config.input_shape, seed=3).draw(1, 7)

    answer = restore_for_prediction(LearnerState(served, state.values)).predict(x)

    expected = levit.predict(x)
    assert answer.labels == expected.labels
    assert torch.equal(answer.probabilities_BK, expected.probabilities_BK)
    assert torch.equal(answer.novelty_B, expected.novelty_B)


@pytest.mark.parametrize("lost", ["generator", "memory.y", "optimizer.exp_avg.expert.head.bias_K"])
def test_state_without_a_part_is_refused_or_gives_other_bytes(lost: str) -> None:
    state = dump(learned(CONFIGS["vit-gated"], steps=4))
    rest = {name: tensor for name, tensor in state.tensors.items() if name != lost}
    assert len(rest) == len(state.tensors) - 1

    with pytest.raises(StateError):
        restore(LearnerState(rest, state.values))


def test_state_of_another_shape_is_refused() -> None:
    state = dump(learned(CONFIGS["vit-gated"], steps=4))
    name = "experts.0.vae.encoder.1.weight"
    wrong = replace(state, tensors=state.tensors | {name: torch.zeros(3, 3)})

    with pytest.raises(StateError, match=r"encoder\.1\.weight"):
        restore(wrong)


def test_floats_and_bytes_may_mix_in_one_memory() -> None:
    config = CONFIGS["vit-gated"]
    source = Shift(config.input_shape)
    levit = learned(config, steps=5)
    levit.observe(source.draw(0, 3).float() / 255)
    levit.observe(source.draw(0, 3))

    again = restore(_through_bytes(dump(levit)))
    again.observe(source.draw(1, 3))

    assert again.memory.x.dtype == torch.float32
    assert digest(levit) != digest(again)
