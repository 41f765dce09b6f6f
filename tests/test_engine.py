"""Preset `paper` behind the seam: arrays in, arrays out, and the split of its state."""

from dataclasses import replace

import numpy as np
import pytest

from service.engine.levit import LevitEngine, LevitEngines
from service.engine.protocol import Array, EngineState, EntryRefused, Label, Members
from service.errors import CorruptState, SettingsError
from service.inputs import InputSchema
from service.settings import Settings
from tests.log_entries import digest

ENGINES = LevitEngines(threads=1)
SMALL = {
    "preset": "paper",
    "capacity": 20,
    "replay_per_batch": 22,
    "threshold": 0.5,
    "learning_rate": 3e-3,
    "device": "cpu",
}
SCHEMAS = ["image:8x8x1", "image:8x8x3", "vector:5", "series:4x3"]


def _settings(**options: object) -> Settings:
    return Settings.read(**(SMALL | options))


def _batch(schema: InputSchema, number: int) -> tuple[Array, np.ndarray]:
    """Return a batch of 10: classes follow one another, every image batch but the third bytes."""
    generator = np.random.default_rng(number)
    k = number // 4
    x = generator.random((10, *schema.shape), np.float32) * 0.2 + 0.3 * k
    as_bytes = schema.kind == "image" and number != 2
    return (np.rint(x * 255).astype(np.uint8) if as_bytes else x), np.full(10, k)


def _learned(schema: InputSchema, batches: range, engine: LevitEngine | None = None) -> LevitEngine:
    engine = engine or ENGINES.create(_settings(), schema)
    for number in batches:
        x, y = _batch(schema, number)
        engine.observe((number + 1, 0), x, y if number % 3 else None)
    return engine


def _members(schema: InputSchema, state: EngineState) -> Members:
    """Return the payloads as Redis gives them back: by id, as each sample arrived."""
    labels: list[Label | None] = [None] * len(state.members)
    return Members(
        x=[_batch(schema, entry - 1)[0][index] for entry, index in state.members.tolist()],
        labels=labels,
    )


@pytest.fixture(params=SCHEMAS)
def schema(request: pytest.FixtureRequest) -> InputSchema:
    return InputSchema.parse(str(request.param))


@pytest.mark.parametrize("stop", [1, 3, 7])
def test_restored_engine_continues_as_if_never_stopped(schema: InputSchema, stop: int) -> None:
    state = _learned(schema, range(stop)).dump()

    again = ENGINES.restore(_settings(), state, _members(schema, state))

    assert digest(again.dump()) == digest(state)
    straight = _learned(schema, range(12))
    assert digest(_learned(schema, range(stop, 12), again).dump()) == digest(straight.dump())


def test_engine_restored_with_other_replay_members_learns_something_else() -> None:
    """Negative control: the payloads matter."""
    schema = InputSchema.parse("image:8x8x1")
    state = _learned(schema, range(1)).dump()
    wrong = replace(_members(schema, state), x=[np.zeros((8, 8, 1), np.uint8)] * 10)

    other = _learned(schema, range(1, 3), ENGINES.restore(_settings(), state, wrong))

    assert digest(other.dump()) != digest(_learned(schema, range(3)).dump())


def test_predictor_needs_only_what_is_served(schema: InputSchema) -> None:
    engine = _learned(schema, range(12))
    state = engine.dump()
    empty = np.empty((0, 2), np.int64)
    assert len(state.frozen) > 0

    predictor = ENGINES.predictor(replace(state, training={}, members=empty))
    answer = predictor.predict(_batch(schema, 5)[0])

    assert predictor.schema == schema
    assert answer.classes == (0, 1, 2)
    assert answer.probabilities.shape == (10, 3)
    assert set(answer.experts.tolist()) <= {expert.id for expert in engine.summary().experts}
    np.testing.assert_allclose(answer.probabilities.sum(1), 1, rtol=1e-5)


def test_summary_accounts_for_everything(schema: InputSchema) -> None:
    summary = _learned(schema, range(12)).summary()

    assert (summary.step, summary.samples_learned, summary.samples_labelled) == (12, 120, 80)
    assert [expert.id for expert in summary.experts] == list(range(len(summary.experts)))
    assert sum(expert.samples for expert in summary.experts) == 120
    assert summary.expansions == len(summary.experts) - 1
    assert sum(summary.replay_by_class) + summary.replay_unlabelled <= summary.replay_capacity
    assert len(summary.prequential_by_class) == len(summary.classes) == 3
    assert summary.state_bytes > 4 * summary.parameters


def test_string_labels_and_gaps_reach_the_learner() -> None:
    schema = InputSchema.parse("vector:5")
    engine = ENGINES.create(_settings(), schema)

    report = engine.observe((1, 0), _batch(schema, 0)[0], ["a", "", "b", *[""] * 7])

    assert report.labelled == 2
    assert engine.summary().classes == ("a", "b")


def test_entry_that_does_not_fit_is_refused_and_leaves_no_trace() -> None:
    schema = InputSchema.parse("vector:5")
    engine = _learned(schema, range(3))
    before = digest(engine.dump())

    with pytest.raises(EntryRefused, match="finite"):
        engine.observe((4, 0), np.full((2, 5), np.nan, np.float32), None)

    assert digest(engine.dump()) == before


def test_other_settings_than_the_state_was_made_with_are_named() -> None:
    schema = InputSchema.parse("image:8x8x1")
    state = _learned(schema, range(2)).dump()

    with pytest.raises(SettingsError, match=r"threshold: .* 0\.5, .* 7\.0"):
        ENGINES.restore(_settings(threshold=7.0), state, _members(schema, state))


def test_state_that_lacks_an_array_is_corrupt() -> None:
    schema = InputSchema.parse("image:8x8x1")
    state = _learned(schema, range(2)).dump()
    served = {n: a for n, a in state.served.items() if n != "backbone.position_ND"}

    with pytest.raises(CorruptState, match="position_ND"):
        ENGINES.predictor(replace(state, served=served))
    with pytest.raises(CorruptState, match="position_ND"):
        ENGINES.restore(_settings(), replace(state, served=served), _members(schema, state))


def test_setting_that_does_not_fit_the_learner_is_named() -> None:
    with pytest.raises(SettingsError, match="patch"):
        ENGINES.create(_settings(patch=9), InputSchema.parse("image:8x8x1"))


def test_cuda_without_a_device_is_said_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)

    with pytest.raises(SettingsError, match="LEVIT_DEVICE"):
        ENGINES.create(_settings(device="cuda"), InputSchema.parse("vector:5"))
