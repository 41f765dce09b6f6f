"""One entry through the engine: learned, set aside or recognised, the same each time."""

from pathlib import Path

import numpy as np
import pytest

from service.settings import Settings
from service.store.decisions import Decision, Decisions
from service.store.entry import Entry
from service.worker import recent as recent_module
from service.worker.recent import RecentBatches
from service.worker.step import Memory, Progress, Step, advance, advanced
from tests.log_entries import SCHEMA
from tests.toy_engine import ToyEngine, ToyEngines


def entry(number: int, *, batch: int | None = None, refused: bool = False) -> Entry:
    x = np.full((2, 8, 8, 1), 255 if refused else number, np.uint8)
    return Entry(
        number=number,
        position=f"{number}-0",
        batch_id=f"{batch or number:032x}",
        key_id="anonymous",
        idempotency_key=None,
        schema=SCHEMA,
        n=2,
        x=x,
        labels=np.array([0, -1]),
        payload=b"",
    )


def taken(
    engine: ToyEngine, one: Entry, decisions: Decisions, memory: Memory | None = None
) -> Step:
    memory = memory or Memory.fresh(Settings())
    return advance(engine, memory.lesson(one), decisions, memory)


@pytest.fixture
def engine() -> ToyEngine:
    return ToyEngines().create(Settings(), SCHEMA)


def test_every_entry_is_learned_set_aside_or_recognised(engine: ToyEngine, state_dir: Path) -> None:
    decisions, memory = Decisions(state_dir), Memory.fresh(Settings())
    progress = Progress()
    decisions.add(Decision(kind="skip", after=2, until=3, reason="poison"))
    stream = [entry(1), entry(2, refused=True), entry(3), entry(4, batch=1), entry(5)]

    states, reasons = [], []
    for one in stream:
        step = taken(engine, one, decisions, memory)
        progress = advanced(progress, one, step)
        states.append(step.state)
        reasons.append(step.reason)

    assert states == ["learned", "quarantined", "quarantined", "repeated", "learned"]
    assert reasons == [None, "loss is not finite: nan", "poison", None, None]
    assert engine.step == 2
    assert progress == Progress(position="5-0", consumed=5, learned=2, quarantined=2, repeated=1)


def test_a_batch_that_was_set_aside_is_learned_when_it_comes_again(
    engine: ToyEngine, state_dir: Path
) -> None:
    decisions, memory = Decisions(state_dir), Memory.fresh(Settings())
    decisions.add(Decision(kind="skip", after=0, until=1, reason="poison"))

    states = [taken(engine, one, decisions, memory).state for one in (entry(1), entry(2, batch=1))]

    assert states == ["quarantined", "learned"]


def test_a_decision_to_grow_takes_effect_right_after_its_entry(
    engine: ToyEngine, state_dir: Path
) -> None:
    decisions = Decisions(state_dir)
    decisions.add(Decision(kind="expand", after=1, until=1, reason="drift"))

    step = taken(engine, entry(1), decisions)

    assert step.report is not None
    assert step.report.expanded
    assert len(engine.frozen) == 1


def test_it_grows_after_an_entry_that_is_set_aside_as_well(
    engine: ToyEngine, state_dir: Path
) -> None:
    decisions = Decisions(state_dir)
    decisions.add(Decision(kind="skip", after=0, until=1, reason="contradicts"))
    decisions.add(Decision(kind="expand", after=1, until=1, reason="drift"))

    assert taken(engine, entry(1), decisions).state == "quarantined"
    assert len(engine.frozen) == 1


def test_a_batch_that_was_learned_is_not_set_aside_when_it_comes_again(
    engine: ToyEngine, state_dir: Path
) -> None:
    decisions, memory = Decisions(state_dir), Memory.fresh(Settings())
    decisions.add(Decision(kind="skip", after=1, until=2, reason="rolled_back"))

    states = [taken(engine, one, decisions, memory).state for one in (entry(1), entry(2, batch=1))]

    assert states == ["learned", "repeated"]


def test_recent_batches_come_back_from_their_arrays() -> None:
    recent, again = RecentBatches(), RecentBatches()
    for number in range(1, 4):
        recent.add(f"{number:032x}", number * 10)

    again.load(recent.dump())

    assert [again.step_of(f"{number:032x}") for number in range(5)] == [None, 10, 20, 30, None]
    assert RecentBatches().dump()["ids"].shape == (0, 16)


def test_the_oldest_of_too_many_batches_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent_module, "RECENT", 2)
    recent = RecentBatches()
    for number in range(3):
        recent.add(f"{number:032x}", number)

    assert [recent.step_of(f"{number:032x}") for number in range(3)] == [None, 1, 2]
