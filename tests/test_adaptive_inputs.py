"""What may come in under preset `default`: labels of every kind, inputs of every size and sort."""

from itertools import islice

import pytest
import torch
from torch import Tensor

from learner.adaptive import AdaptiveLEViT
from learner.report import Prediction
from tests.adaptive_streams import (
    CONFIGS,
    GROWING,
    HALF,
    STEPS,
    caught,
    changing,
    facts,
    grown,
    samples,
    tiny,
)
from tests.streams import BATCH, CLASSES, Shift


def _observed(
    shape: tuple[int, ...], *, n: int = BATCH, steps: int = 8, **options: object
) -> tuple[AdaptiveLEViT, Shift]:
    levit, source = AdaptiveLEViT(tiny(shape, **options)), Shift(shape)
    for _ in range(steps):
        y_B = torch.randint(HALF, (n,), generator=source.generator)
        levit.observe(source.draw(y_B), y_B)
    return levit, source


def _sound(answer: Prediction) -> bool:
    """Return whether every row is a distribution and every score a number."""
    total_B = answer.probabilities_BK.sum(1)
    return bool(
        torch.allclose(total_B, torch.ones_like(total_B), atol=1e-4)
        and (answer.probabilities_BK >= 0).all()
        and answer.novelty_B.isfinite().all()
    )


def test_labels_may_be_strings_and_new_at_any_time() -> None:
    levit = AdaptiveLEViT(CONFIGS["vectors"])

    for later in islice(changing(levit.config), 8):
        labels = [-1] * BATCH if later.labels is None else [int(y) for y in later.labels]
        levit.observe(later.x, [f"class {y}" if y >= 0 else "" for y in labels])
    levit.observe(samples("vectors", 1)[:3], ["emu", "", "emu"])

    assert set(levit.mixture.classes) == {"class 0", "class 1", "class 2", "emu"}
    assert set(levit.predict(samples("vectors")).labels) <= set(levit.mixture.classes)


def test_answer_lists_only_labels_seen() -> None:
    levit, _ = caught("grey", "learning")

    answer = levit.predict(samples("grey"))

    assert sorted(map(int, answer.classes)) == [0, 1, 2]
    assert answer.probabilities_BK.shape == (30, 3)


@pytest.mark.parametrize("name", GROWING)
def test_unlabelled_stream_fits_its_encoder_and_expands_but_names_no_class(name: str) -> None:
    levit = AdaptiveLEViT(CONFIGS[name])

    for batch in changing(levit.config):
        levit.observe(batch.x)

    answer = levit.predict(samples(name))
    assert len(levit.mixture.experts) == 2
    assert answer.labels == [None] * 30
    assert answer.probabilities_BK.shape == (30, 0)
    assert levit.mixture.parts(samples(name)) == {}


@pytest.mark.parametrize("steps", [3, 10])
def test_labels_that_come_late_are_learned(steps: int) -> None:
    """Before the encoder is fitted, or after."""
    levit, source = AdaptiveLEViT(tiny((1, 8, 8))), Shift((1, 8, 8))
    for _ in range(steps):
        levit.observe(source.draw(torch.randint(HALF, (BATCH,), generator=source.generator)))

    for _ in range(8):
        y_B = torch.randint(HALF, (BATCH,), generator=source.generator)
        levit.observe(source.draw(y_B), y_B)

    assert levit.predict(source.of(2, 5)).labels == [2] * 5


@pytest.mark.parametrize("steps", [3, 20])
def test_bytes_and_floats_of_the_same_images_teach_the_same(steps: int) -> None:
    """Floats come while mini-batches are held, or later."""
    plain, mixed = AdaptiveLEViT(CONFIGS["grey"]), AdaptiveLEViT(CONFIGS["grey"])

    for number, batch in enumerate(islice(changing(plain.config), STEPS - 8)):
        x = batch.x.float() / 255 if number >= steps and number % 2 else batch.x
        plain.observe(batch.x, batch.labels)
        mixed.observe(x, batch.labels)

    one, other = facts(plain), facts(mixed)
    assert {path for path in one if one[path] != other[path]} == {".replay.x"}


SIZES: list[tuple[int, ...]] = [
    (1, 1, 1),
    (1, 2, 2),
    (3, 2, 40),
    (1, 3, 3),
    (1, 28, 28),
    (3, 66, 30),
    (3, 128, 128),
    (1, 1),
    (2, 1),
    (5, 4),
    (200, 2),
    (1,),
    (1500,),
]


@pytest.mark.parametrize("shape", SIZES, ids=str)
def test_samples_of_every_size_are_learned(shape: tuple[int, ...]) -> None:
    levit, source = _observed(shape)

    answer = levit.predict(source.draw(torch.arange(CLASSES)))

    assert levit.knowledge is not None
    assert levit.losses.cross_entropy is not None
    assert _sound(answer)


def _constant(shape: tuple[int, ...], n: int) -> Tensor:
    return torch.full((n, *shape), 0.5)


@pytest.mark.parametrize("shape", [(1, 8, 8), (24, 3), (6,)], ids=str)
def test_inputs_that_never_vary_fit_an_encoder_that_lives_with_others_later(
    shape: tuple[int, ...],
) -> None:
    levit, source = AdaptiveLEViT(tiny(shape)), Shift(shape)
    for _ in range(6):
        levit.observe(_constant(shape, BATCH), torch.arange(BATCH) % HALF)

    for _ in range(3):
        y_B = torch.randint(HALF, (BATCH,), generator=source.generator)
        levit.observe(source.draw(y_B), y_B)

    assert _sound(levit.predict(_constant(shape, 3)))
    assert _sound(levit.predict(source.of(0, 3)))


def test_stream_of_one_class_is_held_until_a_thousand_samples_and_then_answered() -> None:
    levit, source = AdaptiveLEViT(tiny((6,))), Shift((6,))

    levit.observe(source.of(0, 999), torch.full((999,), 4))
    assert levit.mixture.encoder is None
    levit.observe(source.of(0, 1), torch.full((1,), 4))

    assert levit.mixture.encoder is not None
    assert levit.predict(source.of(1, 2)).labels == [4, 4]


@pytest.mark.parametrize(("n", "steps"), [(1, 80), (1000, 2)])
def test_mini_batches_of_any_size_are_learned(n: int, steps: int) -> None:
    levit, source = _observed((6,), n=n, steps=steps)

    assert levit.counts.samples == n * steps
    assert levit.predict(source.of(1, 4)).labels == [1] * 4


def test_more_classes_than_held_out_samples_are_answered() -> None:
    levit, generator = AdaptiveLEViT(tiny((6,), budget=6.0)), torch.Generator().manual_seed(0)
    patterns = 10 * torch.randn(300, 6, generator=generator)

    for _ in range(3):
        y_B = torch.arange(300)
        levit.observe(patterns + torch.randn(300, 6, generator=generator), y_B)

    assert levit.knowledge is not None
    assert 0 < levit.knowledge.marks.held < 300
    right = [k == label for k, label in enumerate(levit.predict(patterns).labels)]
    assert sum(right) > 240


@pytest.mark.parametrize("name", ["series", "vectors"])
def test_wild_but_finite_values_are_learned(name: str) -> None:
    levit = grown(name)
    shape = levit.config.input_shape
    wild = torch.full((4, *shape), 3e38)
    wild[::2] *= -1

    levit.observe(wild, torch.zeros(4, dtype=torch.int64))

    assert _sound(levit.predict(wild))
    assert _sound(levit.predict(samples(name)))
