"""Labels that come later than their samples, in the learner: learned, and counted once."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import learner
from learner import AdaptiveLEViT, LEViT, ShapeError, paper
from learner.adaptive_state import dump, restore
from learner.evaluation import FadedAccuracy
from tests.adaptive_streams import CONFIGS, changing, facts
from tests.streams import MiniBatch

NAMES = ["grey", "vectors", "no-budget"]
BEGINNING = 12
WARM = 24
"""Mini-batches after which evidence for change is gathered."""


def labelled(name: str, count: int = BEGINNING) -> list[MiniBatch]:
    """Return mini-batches whose samples all have labels."""
    found = [one for one in changing(CONFIGS[name]) if one.labels is not None]
    return [one for one in found if (torch.as_tensor(one.labels) >= 0).all()][:count]


def late(name: str, *, lag: int) -> AdaptiveLEViT:
    """Return a learner whose labels came `lag` mini-batches after their samples."""
    levit, batches = AdaptiveLEViT(CONFIGS[name]), labelled(name)
    for number in range(len(batches) + lag):
        if number < len(batches):
            levit.observe(batches[number].x)
        if number >= lag:
            label(levit, batches[number - lag])
    return levit


def label(levit: AdaptiveLEViT | LEViT, batch: MiniBatch) -> learner.ObserveReport:
    assert batch.labels is not None
    return levit.label(batch.x, batch.labels, [None] * len(batch.x))


def learned(name: str, count: int = BEGINNING) -> AdaptiveLEViT:
    levit = AdaptiveLEViT(CONFIGS[name])
    for batch in labelled(name, count):
        levit.observe(batch.x, batch.labels)
    return levit


@pytest.mark.parametrize("name", NAMES)
def test_sums_are_those_of_labels_that_came_at_once(name: str) -> None:
    at_once, later = learned(name), late(name, lag=2)

    assert at_once.knowledge is not None
    assert later.knowledge is not None
    expected, found = (levit.knowledge.memory.tensors() for levit in (at_once, later))  # type: ignore[union-attr]
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, rtol=1e-5, atol=1e-4)
    assert (later.counts.samples, later.counts.labelled) == (
        at_once.counts.samples,
        at_once.counts.labelled,
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_label_is_no_arrival(name: str) -> None:
    levit, batch = learned(name, WARM), labelled(name, WARM + 1)[-1]
    levit.observe(batch.x)
    before = facts(levit)

    report = label(levit, batch)

    after = facts(levit)
    changed = {path for path in before if before[path] != after.get(path)}
    arriving = (".growth", ".counts.samples", ".vae.", ".usual", ".optimizers.density")
    assert not {path for path in changed if any(part in path for part in arriving)}
    assert any(".knowledge.memory" in path for path in changed)
    assert (report.labelled, report.expanded) == (len(batch.x), False)


@pytest.mark.parametrize("name", [name for name in NAMES if CONFIGS[name].budget > 0])
def test_control_an_arrival_is_one(name: str) -> None:
    levit, batch = learned(name, WARM), labelled(name, WARM + 1)[-1]
    before = facts(levit)

    levit.observe(batch.x, batch.labels)

    after = facts(levit)
    changed = {path for path in before if before[path] != after.get(path)}
    for part in (".growth", ".counts.samples", ".vae.", ".usual"):
        assert any(part in path for path in changed), part


@pytest.mark.parametrize("name", NAMES)
def test_labels_grant_no_budget(name: str) -> None:
    levit, config = late(name, lag=3), CONFIGS[name]
    forward = 2 * len(labelled(name)) * len(labelled(name)[0].x)  # each was asked twice

    assert levit.counts.spent <= config.budget * levit.counts.samples + forward


def test_answers_of_the_past_are_what_prequential_accuracy_counts() -> None:
    levit, batch = learned("grey"), labelled("grey", BEGINNING + 1)[-1]
    expected = FadedAccuracy()
    expected.overall, expected.by_class = levit.accuracy.overall, levit.accuracy.by_class
    said = [i % 3 == 0 for i in range(len(batch.x))]
    y_B = torch.tensor([levit.mixture.classes.index(int(k)) for k in torch.as_tensor(batch.labels)])
    correct = levit.counts.correct

    report = levit.label(batch.x, torch.as_tensor(batch.labels), said)
    expected.count(torch.tensor(said), y_B, len(levit.mixture.classes))

    assert levit.accuracy.overall == expected.overall
    assert levit.accuracy.by_class == expected.by_class
    assert report.correct == levit.counts.correct - correct == sum(said)


def test_without_one_the_answer_before_learning_counts() -> None:
    levit, batch = learned("grey"), labelled("grey", BEGINNING + 1)[-1]
    answers = levit.predict(batch.x).labels
    right = [a == int(k) for a, k in zip(answers, torch.as_tensor(batch.labels), strict=True)]

    assert label(levit, batch).correct == sum(right)


def test_a_learner_of_late_labels_continues_as_if_never_stopped() -> None:
    batches = labelled("grey")
    for stop in (2, 8):  # while samples are held back, and later
        levit = AdaptiveLEViT(CONFIGS["grey"])
        again: AdaptiveLEViT | None = None
        for number, batch in enumerate(batches):
            for one in filter(None, (levit, again)):
                one.observe(batch.x)
                if number:
                    label(one, batches[number - 1])
            if number == stop:
                again = restore(dump(levit))
        assert again is not None
        assert _ended(again) == _ended(levit)


def _ended(levit: AdaptiveLEViT) -> dict[str, str]:
    derived = (".replay.ready", ".replay.tokens")
    return {path: said for path, said in facts(levit).items() if not path.endswith(derived)}


@pytest.mark.parametrize("stop", [1, 8], ids=["held back", "learning"])
def test_refused_labels_leave_no_trace(stop: int) -> None:
    levit, batches = AdaptiveLEViT(CONFIGS["grey"]), labelled("grey")
    for batch in batches[:stop]:
        levit.observe(batch.x)
        label(levit, batch)
    before = facts(levit)

    with pytest.raises(ShapeError):
        levit.label(batches[0].x, torch.tensor([-7] * len(batches[0].x)), [None])

    assert facts(levit) == before


# Preset paper


def _paper() -> LEViT:
    return LEViT(paper((6,), capacity=100))


def _batch(k: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(k)
    return torch.rand(10, 6, generator=generator), torch.full((10,), k)


@pytest.mark.parametrize("observe", [True, False], ids=["control", "late"])
def test_late_labels_are_learned_and_are_no_arrivals_in_preset_paper(*, observe: bool) -> None:
    levit = _paper()
    for k in (0, 1):
        levit.observe(*_batch(k))
    x, y = _batch(2)
    levit.observe(x)
    before, scaler = levit.counts.samples, levit.mixture.scaler
    learn: Callable[[], learner.ObserveReport] = (
        (lambda: levit.observe(x, y)) if observe else (lambda: levit.label(x, y, [None] * 10))
    )

    report = learn()

    assert (report.labelled, levit.counts.labelled) == (10, 30)
    assert 2 in levit.mixture.classes
    assert (levit.counts.samples == before) is not observe
    assert (levit.mixture.scaler is scaler) is not observe
    assert levit.mixture.lives[-1].samples == levit.counts.samples
