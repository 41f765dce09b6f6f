"""Late labels: each is joined to its sample once, or says clearly why not."""

from pathlib import Path

import numpy as np
import pytest

from service.engine.protocol import Label
from service.errors import SettingsError
from service.settings import Settings
from service.store.decisions import Decision
from service.worker.waiting import Waiting
from tests.late_streams import Walk, images
from tests.log_entries import SCHEMA
from tests.toy_engine import ToyEngines

NOBODY = "f" * 32


@pytest.fixture
def walk(state_dir: Path) -> Walk:
    return Walk(state_dir)


# What becomes of a label


def test_every_label_has_its_outcome(state_dir: Path) -> None:
    walk = Walk(state_dir, label_window=3)
    old = walk.observe(images(1))
    some = walk.observe(images(2), np.array([5, -1]))
    walk.observe(images(3))

    step = walk.label({f"{old}:1": 5, f"{some}:1": 5, f"{some}:0": 5, f"{some}:2": 5})
    gone = walk.label({f"{old}:0": 5, f"{NOBODY}:0": 5, f"{some}:1": 6})

    assert step.results == ["joined", "joined", "doubled", "unknown"]
    assert gone.results == ["late", "unknown", "doubled"]
    assert step.state == gone.state == "learned"
    assert walk.memory.waiting.counts == {"joined": 2, "late": 1, "unknown": 2, "doubled": 2}


def test_the_label_of_a_label_is_unknown(walk: Walk) -> None:
    batch = walk.observe(images(1))
    walk.label({f"{batch}:0": 5}, batch_id="a" * 32)

    assert walk.label({f"{'a' * 32}:0": 5}).results == ["unknown"]


def test_labels_that_meet_no_sample_leave_the_engine_as_it_was(walk: Walk) -> None:
    walk.observe(images(1))
    before = walk.engine.chain

    step = walk.label({f"{NOBODY}:0": 5})

    assert step.report is None
    assert walk.engine.chain == before
    assert walk.engine.step == 1


# What is learned


def test_joined_samples_are_one_mini_batch_in_the_order_of_the_labels(
    walk: Walk, state_dir: Path
) -> None:
    first, second = walk.observe(images(1)), walk.keep(images(2), np.array([5, -1]))
    other = ToyEngines().create(Settings(), SCHEMA)
    other.observe((1, 0), images(1), None)
    other.observe((2, 0), images(2), None)

    walk.label({f"{second}:1": 6, f"{first}:0": 5, f"{second}:0": 5})
    x = np.concatenate([images(2, 1), images(1, 1), images(2, 1)])
    other.label((3, 0), x, np.array([6, 5, 5]), [False, None, True])

    assert walk.engine.chain == other.chain
    assert (walk.engine.samples, walk.engine.labelled) == (4, 3)


def test_samples_are_counted_as_arrivals_once(walk: Walk) -> None:
    batch = walk.observe(images(1))

    walk.label({f"{batch}:0": 5, f"{batch}:1": 5})

    assert (walk.engine.samples, walk.engine.labelled) == (2, 2)


@pytest.mark.parametrize(("answers", "correct"), [([5, 5], 2), ([5, 6], 1), ([-1, -1], 0)], ids=str)
def test_a_kept_answer_is_what_counts(walk: Walk, answers: list[int], correct: int) -> None:
    walk.observe(images(200), np.array([6, 6]))  # the learner itself would answer 6
    batch = walk.keep(images(200), np.array(answers))
    before = walk.engine.correct

    walk.label({f"{batch}:0": 5, f"{batch}:1": 5})

    assert walk.engine.correct - before == correct


def test_without_a_kept_answer_the_learner_answers_before_it_learns(walk: Walk) -> None:
    batch = walk.observe(images(200))
    walk.observe(images(10), np.array([1, 1]))
    walk.observe(images(200), np.array([5, 5]))
    before = walk.engine.correct

    walk.label({f"{batch}:0": 5, f"{batch}:1": 1})

    assert walk.engine.correct - before == 1


def test_text_labels_are_joined_as_text(walk: Walk) -> None:
    batch = walk.keep(images(1), ["sea", ""])

    walk.label({f"{batch}:1": "sky", f"{batch}:0": "sea"})

    assert walk.engine.classes == ["sky", "sea"]
    assert walk.engine.correct == 1


def test_bytes_and_floats_are_joined_as_floats(walk: Walk) -> None:
    first = walk.observe(images(51, 1))
    second = walk.observe(np.full((1, *SCHEMA.shape), 0.5, np.float32))

    walk.label({f"{first}:0": 0, f"{second}:0": 1})

    np.testing.assert_allclose(walk.engine.sums_KD[:, 0], [0.2, 0.5], rtol=1e-6)


# Once


def label_twice(walk: Walk) -> int:
    """Label a sample in two entries; return how often it was learned."""
    batch = walk.observe(images(1))
    walk.label({f"{batch}:0": 5})
    walk.label({f"{batch}:0": 5})
    return walk.engine.labelled


def test_a_sample_is_learned_with_one_label_only(walk: Walk) -> None:
    assert label_twice(walk) == 1


def test_without_the_bit_a_sample_would_be_learned_twice(
    walk: Walk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Waiting, "_close", lambda *_: None)

    assert label_twice(walk) == 2


def test_labels_that_come_twice_are_recognised(walk: Walk) -> None:
    batch = walk.observe(images(1))
    walk.label({f"{batch}:0": 5}, batch_id="a" * 32)
    before = walk.engine.chain

    assert walk.label({f"{batch}:0": 5}, batch_id="a" * 32).state == "repeated"
    assert walk.engine.chain == before
    assert walk.memory.waiting.counts["doubled"] == 0


def test_samples_of_labels_that_are_refused_go_on_waiting(walk: Walk, state_dir: Path) -> None:
    walk.observe(images(1))
    batch = walk.observe(images(254))
    walk.decisions.add(Decision(kind="skip", after=2, until=3, reason="poison"))

    refused = walk.label({f"{batch}:0": 5})
    again = walk.label({f"{batch}:0": 5})

    assert (refused.state, refused.results) == ("quarantined", ())
    assert again.results == ["joined"]


def test_samples_that_were_set_aside_are_unknown_until_they_are_learned(
    walk: Walk,
) -> None:
    batch = walk.observe(images(255), batch_id="b" * 32)  # the engine refuses it

    assert walk.label({f"{batch}:0": 5}).results == ["unknown"]


# The window


@pytest.mark.parametrize(("between", "result"), [(2, "joined"), (3, "late")], ids=str)
def test_the_window_is_counted_in_entries(state_dir: Path, between: int, result: str) -> None:
    walk = Walk(state_dir, label_window=3)
    batch = walk.observe(images(1))
    for _ in range(between):
        walk.observe(images(2), np.array([5, 5]))

    assert walk.label({f"{batch}:0": 5}).results == [result]


def test_a_window_of_nothing_turns_late_labels_off(state_dir: Path) -> None:
    walk = Walk(state_dir, label_window=0)
    batch = walk.observe(images(1))

    assert walk.label({f"{batch}:0": 5}).results == ["late"]


def test_the_oldest_give_way_to_a_bound_of_bytes(state_dir: Path) -> None:
    walk = Walk(state_dir, label_window_bytes=1500)  # seven entries of two images or more
    waiting = walk.memory.waiting
    sizes, names = [], []
    for value in range(20):
        names.append(walk.observe(images(value)))
        sizes.append(sum(map(len, waiting.dump().payloads.values())))

    given: dict[str, Label] = {f"{name}:0": 5 for name in names}
    results = walk.label(given).results

    assert max(sizes) <= 1500
    assert max(sizes) > 1200
    assert results == sorted(results, reverse=True)
    assert 0 < results.count("joined") < 20


def test_an_entry_larger_than_the_bound_does_not_wait(state_dir: Path) -> None:
    walk = Walk(state_dir, label_window_bytes=100)
    batch = walk.observe(images(1))

    assert walk.label({f"{batch}:0": 5}).results == ["late"]


def test_what_is_labelled_holds_no_bytes(walk: Walk) -> None:
    batch = walk.observe(images(1))
    walk.observe(images(1), np.array([5, 5]))
    assert walk.memory.waiting.samples == 2

    walk.label({f"{batch}:0": 5, f"{batch}:1": 5})

    assert walk.memory.waiting.samples == 0
    assert walk.memory.waiting.dump().payloads == {}


# What a checkpoint holds


def test_the_window_comes_back_from_what_was_dumped(walk: Walk, tmp_path: Path) -> None:
    batch = walk.observe(images(1, 9))
    walk.keep(images(2), np.array([5, 6]))
    walk.label({f"{batch}:8": 5, f"{NOBODY}:0": 5})
    again = Waiting(Settings())

    again.load(walk.memory.waiting.dump())

    assert again.samples == 10
    assert again.counts == {"joined": 1, "late": 0, "unknown": 1, "doubled": 0}
    before, after = walk.memory.waiting.dump(), again.dump()
    assert before.payloads == after.payloads
    for name, array in before.arrays.items():
        np.testing.assert_array_equal(array, after.arrays[name])


@pytest.mark.parametrize("name", ["label_window", "label_window_bytes"])
def test_another_window_than_the_state_was_made_with_is_refused(walk: Walk, name: str) -> None:
    state = walk.memory.waiting.dump()

    with pytest.raises(SettingsError, match=f"LEVIT_{name.upper()}: .* made with"):
        Waiting(Settings(**{name: 7})).load(state)  # type: ignore[arg-type]
