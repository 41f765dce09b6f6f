"""Read-outs that forget follow a concept that turns, and overrule the past only then."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

import pytest
import torch
from torch import Generator, Tensor

from learner.recent import Recent, recent_features, recent_width

WIDTH = 4


@dataclass
class Stream:
    """Samples whose class is where they lie, and a past that knows the first concept."""

    classes: int
    wrong: float = 0.0
    """Share of samples that the past gets wrong."""
    seed: int = 0

    def __post_init__(self) -> None:
        self.generator = Generator().manual_seed(self.seed)
        self.centres = 3 * torch.randn(self.classes, WIDTH - 1, generator=self.generator)

    def of(self, y_B: Tensor) -> Tensor:
        """Return features of samples of these classes."""
        noise = torch.randn(len(y_B), WIDTH - 1, generator=self.generator)
        return torch.cat([self.centres[y_B] + 0.3 * noise, torch.ones(len(y_B), 1)], 1)

    def past(self, y_B: Tensor) -> Tensor:
        """Return what the past answers, or a random class where it is wrong."""
        drawn = torch.randint(self.classes, (len(y_B),), generator=self.generator)
        wrong = torch.rand(len(y_B), generator=self.generator) < self.wrong
        said = torch.where(wrong, drawn, y_B)
        return torch.full((len(y_B), self.classes), 0.02).scatter_(1, said[:, None], 0.9)


def _followed(
    stream: Stream, labels: Iterator[tuple[Tensor, Tensor]]
) -> Iterator[tuple[Recent, bool, float]]:
    """Yield the read-outs, whether they overrule, and how often they are right, batch by batch.

    Args:
        stream: where samples of a class lie, and what the past says of them.
        labels: places of the samples and what they are called, of each mini-batch.
    """
    recent, counts = Recent.fresh(WIDTH), torch.zeros(stream.classes, dtype=torch.float64)
    overruled = False
    for place, y in labels:
        features, past = stream.of(place), stream.past(place)
        right = (recent.probabilities(features, past).argmax(1) == y).double().mean().item()
        recent = recent.learned(features, y, past, stream.classes)
        counts += torch.bincount(y, minlength=stream.classes)
        overruled = recent.overrules(counts, already=overruled)
        yield recent, overruled, right


def _shuffled(stream: Stream, batches: int, turn: int) -> Iterator[tuple[Tensor, Tensor]]:
    for number in range(batches):
        place = torch.randint(stream.classes, (20,), generator=stream.generator)
        yield place, (place + 1) % stream.classes if number >= turn else place


def test_present_follows_a_concept_that_turns_and_overrules_the_past() -> None:
    stream = Stream(classes=3)

    steps = list(_followed(stream, _shuffled(stream, 250, turn=180)))

    overrules, right = [step[1] for step in steps], [step[2] for step in steps]
    assert not any(overrules[:180])
    assert all(overrules[190:])  # 200 samples later at the latest
    assert sum(right[180:182]) / 2 < 0.5  # the turn was a surprise
    assert sum(right[190:]) / 60 > 0.9


def test_present_never_overrules_a_past_that_stays_true() -> None:
    stream = Stream(classes=3)

    steps = list(_followed(stream, _shuffled(stream, 300, turn=300)))

    assert not any(step[1] for step in steps)


def test_old_concept_is_answered_again_when_it_is_back() -> None:
    stream = Stream(classes=3)
    turned, back = _shuffled(stream, 250, turn=180), _shuffled(stream, 40, turn=40)

    steps = list(_followed(stream, chain(turned, back)))

    assert steps[249][1]
    assert sum(step[2] for step in steps[260:]) / 30 > 0.9


def _ordered(stream: Stream, per_class: int) -> Iterator[tuple[Tensor, Tensor]]:
    for k in range(stream.classes):
        for _ in range(per_class // 20):
            yield torch.full((20,), k), torch.full((20,), k)


@pytest.mark.parametrize("per_class", [500, 1000, 3000])
def test_present_never_overrules_on_a_class_ordered_stream_though_it_is_right_more_often(
    per_class: int,
) -> None:
    stream = Stream(classes=8, wrong=0.2)

    steps = list(_followed(stream, _ordered(stream, per_class)))

    recent = steps[-1][0]
    assert recent.gain > 4 * recent.differ**0.5  # it would, but for whose turn it is
    second = per_class // 20  # with one class there is nothing to lose, nor for some samples after
    assert not any(step[1] for step in steps[second + 5 :])


@pytest.mark.parametrize("cut", [1, 7, 60])
def test_cut_into_mini_batches_changes_the_answers_little(cut: int) -> None:
    stream = Stream(classes=3)
    y = torch.randint(3, (600,), generator=stream.generator)
    features, past = stream.of(y), stream.past(y)
    asked = stream.of(torch.arange(3))

    answers = []
    for size in (20, cut):
        recent = Recent.fresh(WIDTH)
        for rows in torch.arange(600).split(size):
            recent = recent.learned(features[rows], y[rows], past[rows], 3)
        answers.append(torch.einsum("bf,lfk->lbk", asked, recent.weight_LFK)[2:])

    assert torch.equal(answers[0].argmax(2), answers[1].argmax(2))
    torch.testing.assert_close(*answers, atol=0.05, rtol=0)


def test_weights_are_those_of_a_faded_ridge_regression() -> None:
    stream = Stream(classes=3)
    y = torch.randint(3, (40,), generator=stream.generator)
    features = stream.of(y)
    recent = Recent.fresh(WIDTH)

    for rows in torch.arange(40).split(10):
        recent = recent.learned(features[rows], y[rows], torch.ones(10, 3) / 3, 3)

    age = torch.arange(3, -1, -1).repeat_interleave(10) * 10
    weight = 0.5 ** (age / 50.0)
    x, target = features.double(), torch.nn.functional.one_hot(y, 3).double()
    gram = x.T @ (weight[:, None] * x) + 0.01 * torch.eye(WIDTH)
    wanted = torch.linalg.solve(gram, x.T @ (weight[:, None] * target))
    torch.testing.assert_close(recent.weight_LFK[2].double(), wanted, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("size", [1.0, 100.0])
def test_features_that_say_the_same_over_and_over_are_solved(size: float) -> None:
    """Sums in float32 are no longer positive definite then."""
    generator = Generator().manual_seed(0)
    mixing = size * torch.randn(3, 150, generator=generator)
    recent = Recent.fresh(150)

    for _ in range(300):
        features = torch.randn(10, 3, generator=generator) @ mixing
        recent = recent.learned(features, (features[:, 0] > 0).long(), torch.ones(10, 2) / 2, 2)

    features = torch.randn(500, 3, generator=generator) @ mixing
    said = recent.probabilities(features, torch.ones(500, 2) / 2).argmax(1)
    assert ((said == 1) == (features[:, 0] > 0)).double().mean() > 0.95


def test_class_that_is_new_gets_the_least_probability_and_room() -> None:
    stream = Stream(classes=4)
    y = torch.arange(20) % 2
    recent = Recent.fresh(WIDTH).learned(stream.of(y), y, stream.past(y)[:, :2], 2)

    asked = torch.tensor([0, 1, 3])
    for _ in range(5):  # until the read-outs have earned more trust than the past
        recent = recent.learned(stream.of(y), y, torch.ones(20, 2) / 2, 2)

    answer = recent.probabilities(stream.of(asked), torch.full((3, 4), 0.25))
    later = recent.learned(stream.of(torch.tensor([3])), torch.tensor([3]), torch.ones(1, 2), 4)

    assert answer.shape == (3, 4)
    torch.testing.assert_close(answer.sum(1), torch.ones(3))
    assert (answer[:2, 2:] < 0.05).all()
    assert later.weight_LFK.shape[2] == 4
    assert later.recent_K.tolist()[3] == 1


def test_read_outs_see_smooth_features_some_of_the_view_and_a_constant() -> None:
    smooth, view = torch.randn(5, 30), torch.randn(5, 100)

    features = recent_features(smooth, view)

    assert features.shape == (5, recent_width(30, 100)) == (5, 95)
    assert len(features[:, -1].unique()) == 1
    assert features[0, -1] > 0
