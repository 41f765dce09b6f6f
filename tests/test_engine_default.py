"""Preset `default` behind the seam: arrays in, arrays out, and the split of its state."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from service.engine.configs import MEMBER_BYTES
from service.engine.levit import LevitEngine, LevitEngines
from service.engine.protocol import Array, EngineState, EntryRefused, Members, Stored
from service.errors import CorruptState, SettingsError
from service.inputs import InputSchema
from service.settings import Settings
from tests.log_entries import digest

ENGINES = LevitEngines(threads=1)
SMALL = {
    "statistics_bytes": 2**20,
    "capacity": 120,
    "budget": 8,
    "false_expansion_probability": 0.5,
    "false_expansion_horizon": 100,
}
"""So eager that the stream below makes it expand."""
BATCHES, CHANGE = 55, 30
SCHEMAS = ["image:8x8x1", "image:8x8x3", "vector:5", "series:12x3"]


def _settings(**options: object) -> Settings:
    return Settings.read(**(SMALL | options))


def _batch(schema: InputSchema, number: int) -> tuple[Array, np.ndarray]:
    """Return a batch of 10 of four classes, later inverted; every image batch but one bytes."""
    patterns = np.random.default_rng(0).random((4, *schema.shape), np.float32)
    generator = np.random.default_rng(number + 1)
    y = generator.integers(0, 4, 10)
    x = 0.8 * patterns[y] + 0.2 * generator.random((10, *schema.shape), np.float32)
    x = x if number < CHANGE else 1 - x
    if schema.kind != "image":
        return x * 10, y
    return (x if number == 2 else np.rint(x * 255).astype(np.uint8)), y


def _learned(schema: InputSchema, batches: range, engine: LevitEngine | None = None) -> LevitEngine:
    engine = engine or ENGINES.create(_settings(), schema)
    for number in batches:
        x, y = _batch(schema, number)
        engine.observe((number + 1, 0), x, y if number % 5 else None)
    return engine


@cache
def _whole(schema: str) -> LevitEngine:
    """Return what has learned the whole stream; not to be taught more."""
    return _learned(InputSchema.parse(schema), range(BATCHES))


@pytest.mark.parametrize(("share", "flood"), [(0.25, 30), (1.0, 90)], ids=["bound", "control"])
def test_the_share_of_a_writer_is_the_one_that_the_settings_say(share: float, flood: int) -> None:
    schema = InputSchema.parse("vector:5")
    engine = ENGINES.create(_settings(key_replay_share=share, budget=0), schema)
    writers = ([0] * 20 + [1, 2, 3, 4]) * 4  # twenty times as much as each of the others
    for number, writer in enumerate(writers):
        engine.observe((number, writer), *_batch(schema, number % CHANGE))

    members = [writers[number] for number, _ in engine.dump().members.tolist()]

    assert len(members) == engine.summary().replay_capacity == 120
    assert (members.count(0) <= flood) == (share < 1)


def test_a_purged_writer_leaves_as_the_protocol_says_and_the_engine_goes_on_alike() -> None:
    schema = InputSchema.parse("vector:5")
    engine, stored, labelled = ENGINES.create(_settings(capacity=40), schema), [], 0
    for number in range(30):
        x, y = _batch(schema, number)
        engine.observe((number + 1, number % 3), x, y)
        if number % 3 == 1:
            stored.append(Stored(number + 1, x, y))
            labelled += len(y)

    told = engine.purge(1, stored)

    assert (told.unlearned, engine.summary().replay_unlabelled) == (labelled, 0)
    assert 0 < told.replay < labelled
    members = {number for number, _ in engine.dump().members.tolist()}
    assert all((number - 1) % 3 != 1 for number in members)
    state = engine.dump()
    again = ENGINES.restore(_settings(capacity=40), state, _members(schema, state))
    for each in (engine, again):
        _learned(schema, range(30, 40), each)
    assert digest(engine.dump()) == digest(again.dump())


def _members(schema: InputSchema, state: EngineState) -> Members:
    """Return the payloads as Redis gives them back: by id, as each sample arrived."""
    ids = state.members.tolist()
    return Members(x=[_batch(schema, n - 1)[0][i] for n, i in ids], labels=[None] * len(ids))


@pytest.fixture(params=SCHEMAS)
def schema(request: pytest.FixtureRequest) -> InputSchema:
    return InputSchema.parse(str(request.param))


@pytest.mark.parametrize("stop", [4, 48])
def test_restored_engine_continues_as_if_never_stopped(schema: InputSchema, stop: int) -> None:
    state = _learned(schema, range(stop)).dump()

    again = ENGINES.restore(_settings(), state, _members(schema, state))

    assert digest(again.dump()) == digest(state)
    after = _learned(schema, range(stop, BATCHES), again)
    assert digest(after.dump()) == digest(_whole(str(schema)).dump())


@pytest.mark.parametrize("stop", [2, 30])
def test_engine_restored_with_other_members_learns_something_else(stop: int) -> None:
    """Negative control: the payloads matter, of samples held back and of replayed ones."""
    schema = InputSchema.parse("image:8x8x1")
    state = _learned(schema, range(stop)).dump()
    right = _members(schema, state)
    noisy = [x if x.dtype == np.float32 else x ^ 1 for x in right.x]

    other = ENGINES.restore(_settings(), state, replace(right, x=noisy))

    later = range(stop, stop + 20)
    straight = _learned(schema, range(later.stop))
    assert digest(_learned(schema, later, other).dump()) != digest(straight.dump())


def test_every_member_was_reported_when_it_arrived(schema: InputSchema) -> None:
    engine, reported = ENGINES.create(_settings(), schema), set()
    for number in range(40):
        x, y = _batch(schema, number)
        reported |= {(number + 1, i) for i in engine.observe((number + 1, 0), x, y).added}
        assert {tuple(id_) for id_ in engine.dump().members.tolist()} <= reported


def test_predictor_needs_only_what_is_served(schema: InputSchema) -> None:
    engine = _whole(str(schema))
    state = engine.dump()
    assert len(state.frozen) > 0

    empty = np.empty((0, 2), np.int64)
    predictor = ENGINES.predictor(replace(state, training={}, members=empty))
    answer = predictor.predict(_batch(schema, 5)[0])

    assert predictor.schema == schema
    assert sorted(answer.classes) == [0, 1, 2, 3]
    assert set(answer.experts.tolist()) <= {expert.id for expert in engine.summary().experts}
    np.testing.assert_allclose(answer.probabilities.sum(1), 1, rtol=1e-5)


def test_predictor_answers_before_the_encoder_is_fitted() -> None:
    schema = InputSchema.parse("vector:5")
    state = _learned(schema, range(3)).dump()

    answer = ENGINES.predictor(state).predict(_batch(schema, 5)[0])

    assert answer.probabilities.shape == (10, len(answer.classes))


def test_bytes_of_a_frozen_expert_never_change(schema: InputSchema) -> None:
    engine = _learned(schema, range(48))
    before = {id_: digest(_only(engine.dump(), id_)) for id_ in engine.dump().frozen}
    assert before

    _learned(schema, range(48, BATCHES), engine)

    assert {id_: digest(_only(engine.dump(), id_)) for id_ in before} == before


def _only(state: EngineState, expert: int) -> EngineState:
    """Return a state of nothing but one frozen expert's arrays."""
    return EngineState(
        frozen={expert: state.frozen[expert]},
        served={},
        training={},
        members=np.empty((0, 2), np.int64),
        values={},
    )


def test_summary_accounts_for_everything(schema: InputSchema) -> None:
    summary = _whole(str(schema)).summary()

    assert (summary.step, summary.samples_learned) == (BATCHES, 10 * BATCHES)
    assert summary.expansions == len(summary.experts) - 1 > 0
    assert summary.experts[0].cause is None
    assert {expert.cause for expert in summary.experts[1:]} <= {"inputs", "errors"}
    assert all((e.novelty or 0) >= (e.threshold or 9) for e in summary.experts[1:])
    assert all(expert.bytes > expert.parameters > 0 for expert in summary.experts)
    assert set(summary.part_weight) == set(summary.part_accuracy)
    assert "memory" in summary.part_weight
    assert (summary.held_out_samples or 0) > 0
    assert summary.overruled is False
    assert 0 < (summary.sample_gradients or 0) <= SMALL["budget"] * summary.samples_learned
    assert sum(summary.replay_by_class) == summary.replay_capacity == 120


def test_samples_that_wait_for_the_encoder_count_as_members() -> None:
    summary = _learned(InputSchema.parse("vector:5"), range(2)).summary()

    assert (sum(summary.replay_by_class), summary.replay_unlabelled) == (10, 10)
    assert summary.experts == ()


def test_members_are_no_more_than_their_bytes_in_redis_allow() -> None:
    settings = _settings(capacity=10**9, replay_bytes=2**24)

    engine = ENGINES.create(settings, InputSchema.parse("vector:5"))

    assert engine.summary().replay_capacity == 2**24 // (MEMBER_BYTES + 4 * 5)


def test_entry_that_does_not_fit_is_refused_and_leaves_no_trace(schema: InputSchema) -> None:
    engine = _learned(schema, range(40))
    before = digest(engine.dump())

    with pytest.raises(EntryRefused, match="finite"):
        engine.observe((41, 0), np.full((2, *schema.shape), np.nan, np.float32), None)

    assert digest(engine.dump()) == before


@pytest.mark.parametrize(
    ("other", "said"),
    [({"budget": 9}, r"budget: .* 8\.0, .* 9\.0"), ({"capacity": 70}, "capacity: .* 120, .* 70")],
    ids=["budget", "capacity"],
)
def test_other_settings_than_the_state_was_made_with_are_named(
    other: dict[str, object], said: str
) -> None:
    schema = InputSchema.parse("vector:5")
    state = _learned(schema, range(2)).dump()

    with pytest.raises(SettingsError, match=said):
        ENGINES.restore(_settings(**other), state, _members(schema, state))


def test_state_of_the_other_preset_is_refused() -> None:
    schema = InputSchema.parse("vector:5")
    state = ENGINES.create(Settings.read(preset="paper"), schema).dump()

    with pytest.raises(SettingsError, match=r"preset: .* paper, .* default"):
        ENGINES.restore(_settings(), state, _members(schema, state))


def test_state_that_lacks_an_array_is_corrupt() -> None:
    schema = InputSchema.parse("vector:5")
    state = _learned(schema, range(40)).dump()
    served = {n: a for n, a in state.served.items() if n != "encoder.view.mean"}

    with pytest.raises(CorruptState, match=r"encoder\.view\.mean"):
        ENGINES.predictor(replace(state, served=served))
    with pytest.raises(CorruptState, match=r"encoder\.view\.mean"):
        ENGINES.restore(_settings(), replace(state, served=served), _members(schema, state))


def test_cuda_is_said_to_be_for_the_other_preset() -> None:
    with pytest.raises(SettingsError, match="LEVIT_PRESET=paper"):
        ENGINES.create(_settings(device="cuda"), InputSchema.parse("vector:5"))
