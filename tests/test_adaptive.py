"""The laws of the learner of preset `default`, for every configuration of the list."""

import copy
import inspect
from collections.abc import Callable, Iterator
from itertools import islice

import pytest
import torch
from torch import Tensor

from learner import adaptive
from learner.adaptive import AdaptiveLEViT
from learner.adaptive_training import AdaptiveTraining
from learner.encoder import Encoder
from learner.errors import NonFiniteError, ShapeError
from learner.growth import Growth
from learner.knowledge import Knowledge
from learner.recent import Recent
from learner.reservoir import ReplayBuffer
from learner.token_network import er_ace
from learner.vae import VAE
from tests.adaptive_streams import (
    CHANGE,
    CONFIGS,
    GROWING,
    caught,
    changing,
    facts,
    grown,
    samples,
    tiny,
)


@pytest.fixture(params=list(CONFIGS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def _learned(levit: AdaptiveLEViT, *, seed: int = 0, steps: int | None = None) -> AdaptiveLEViT:
    for batch in islice(changing(levit.config, seed=seed), steps):
        levit.observe(batch.x, batch.labels)
    return levit


def test_only_samples_labels_their_name_and_sender_enter_the_learner() -> None:
    observe = inspect.signature(AdaptiveLEViT.observe).parameters
    predict = inspect.signature(AdaptiveLEViT.predict).parameters

    assert list(observe) == ["self", "x", "labels", "entry_number", "source"]
    assert list(predict) == ["self", "x"]


@pytest.mark.parametrize("overruled", [False, True])
def test_predictions_do_not_depend_on_batch_mates(name: str, overruled: bool) -> None:
    levit, x = grown(name), samples(name)
    levit.mixture.overruled = overruled

    together = levit.predict(x)
    alone = [levit.predict(sample[None]) for sample in x]

    assert together.experts_B.tolist() == [int(one.experts_B) for one in alone]
    for whole, parts in (
        (together.probabilities_BK, [one.probabilities_BK for one in alone]),
        (together.novelty_B, [one.novelty_B for one in alone]),
    ):
        torch.testing.assert_close(whole, torch.cat(parts), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", GROWING)
def test_frozen_experts_never_change_a_byte(name: str) -> None:
    levit, batch = caught(name, "expanding")
    levit.observe(batch.x, batch.labels)
    frozen = levit.mixture.experts[0]
    before = facts(frozen)

    for later in islice(changing(levit.config, seed=1), CHANGE - 12, CHANGE + 6):
        levit.observe(later.x, later.labels)

    assert len(levit.mixture.experts) > 1
    assert facts(frozen) == before
    assert all(p.grad is None for p in [*frozen.network.parameters(), *frozen.vae.parameters()])


@pytest.mark.parametrize("name", GROWING)
def test_active_expert_does_change(name: str) -> None:
    """Negative control of the law of frozen experts."""
    levit, batch = caught(name, "learning")
    before = facts(levit.mixture.active)

    levit.observe(batch.x, batch.labels)

    after = facts(levit.mixture.active)
    moved = {path for path in before if before[path] != after[path]}
    assert {".network.embed.weight", ".network.head.weight_KD", ".usual.total"} <= moved
    assert any(path.startswith(".vae.") for path in moved)


def test_predict_changes_nothing(name: str) -> None:
    levit = grown(name)
    before = facts(levit)

    levit.predict(samples(name))

    assert facts(levit) == before


def test_observe_does_not_change_its_inputs(name: str) -> None:
    levit, x = grown(name), samples(name)
    y = torch.arange(len(x)) % 7
    copies = x.clone(), y.clone()

    levit.observe(x, y)

    assert torch.equal(x, copies[0])
    assert torch.equal(y, copies[1])


def test_caller_may_write_over_a_mini_batch_that_was_observed(name: str) -> None:
    overwritten, kept = AdaptiveLEViT(CONFIGS[name]), AdaptiveLEViT(CONFIGS[name])

    for batch in islice(changing(kept.config), 8):
        kept.observe(batch.x.clone(), batch.labels)
        overwritten.observe(batch.x, batch.labels)
        batch.x.zero_()

    assert facts(overwritten) == facts(kept)


def test_same_stream_and_seed_give_the_same_bits_whatever_the_global_generator(name: str) -> None:
    with torch.random.fork_rng():
        before = torch.Generator().manual_seed(1234).get_state()
        torch.set_rng_state(before)
        again = _learned(AdaptiveLEViT(CONFIGS[name]))
        assert torch.equal(torch.get_rng_state(), before)

    assert facts(again) == facts(grown(name))


def test_another_stream_gives_other_bits(name: str) -> None:
    one, other = (_learned(AdaptiveLEViT(CONFIGS[name]), seed=s, steps=2) for s in (0, 1))

    assert facts(one) != facts(other)


def _refused_batches(shape: tuple[int, ...]) -> Iterator[tuple[Tensor, Tensor]]:
    x, y = torch.rand(4, *shape), torch.zeros(4, dtype=torch.int64)
    broken = x.clone()
    broken.view(-1)[3] = torch.nan
    yield broken, y
    yield x, y[:3]
    yield x, y - 2
    yield x, y.float()
    yield x[:0], y[:0]
    yield x[:, :-1], y
    yield x.double(), y
    if len(shape) == 3:
        yield x + 1, y


@pytest.mark.parametrize("moment", ["fitting", "learning"])
def test_refused_mini_batch_leaves_no_trace(name: str, moment: str) -> None:
    levit, _ = caught(name, moment)
    before = facts(levit)

    for x, y in _refused_batches(levit.config.input_shape):
        with pytest.raises(ShapeError):
            levit.observe(x, y)

    assert facts(levit) == before


FAILURES: list[tuple[str, object, str]] = [
    ("fitting", Encoder, "fitted"),
    ("fitting", adaptive, "first_expert"),
    ("fitting", Knowledge, "add"),
    ("fitting", Knowledge, "judge"),
    ("learning", Knowledge, "add"),
    ("learning", ReplayBuffer, "add"),
    ("learning", AdaptiveTraining, "show_classes"),
    ("learning", AdaptiveTraining, "learn_views"),
    ("learning", AdaptiveTraining, "learn_lessons"),
    ("learning", Recent, "learned"),
    ("learning", Knowledge, "solve"),
    ("learning", Knowledge, "judge"),
    ("learning", Growth, "watched"),
    ("learning", Growth, "aged"),
    ("expanding", Growth, "restarted"),
    ("expanding", Knowledge, "solve_own"),
    ("expanding", adaptive, "heir"),
    ("expanding", Knowledge, "begin_own"),
    ("expanding", AdaptiveTraining, "restart"),
    ("expanding", AdaptiveTraining, "succeed"),
]
"""A moment, and a part that does its work in it and then fails."""


def _broken(owner: object, part: str) -> object:
    honest: Callable[..., object] = getattr(owner, part)

    def fails(*args: object, **options: object) -> None:
        honest(*args, **options)
        raise torch.OutOfMemoryError

    bound = isinstance(inspect.getattr_static(owner, part), classmethod)
    return staticmethod(fails) if bound else fails


def _awkward(levit: AdaptiveLEViT, x: Tensor) -> tuple[Tensor, list[int]]:
    """Return the samples as floats, though the buffer holds bytes, half of them of a new class."""
    known = [int(k) for k in levit.mixture.classes]
    return (x.float() / 255 if x.dtype == torch.uint8 else x), [77, known[0]] * (len(x) // 2)


@pytest.mark.parametrize(("moment", "owner", "part"), FAILURES)
@pytest.mark.parametrize("name", ["grey", "vectors"])
def test_running_out_of_memory_anywhere_leaves_no_trace(
    name: str, moment: str, owner: object, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    levit, batch = caught(name, moment)
    unharmed, before = copy.deepcopy(levit), facts(levit)
    x, labels = _awkward(levit, batch.x)
    y = torch.tensor(labels)

    with monkeypatch.context() as broken:
        broken.setattr(owner, part, _broken(owner, part))
        with pytest.raises(torch.OutOfMemoryError):
            levit.observe(x, y)

    assert facts(levit) == before
    assert levit.observe(x, y) == unharmed.observe(x, y)
    assert facts(levit) == facts(unharmed)


def _nan_at(call: int, honest: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return a loss that is NaN the n-th time it is asked for."""
    calls = 0

    def loss(*args: object) -> Tensor:
        nonlocal calls
        calls += 1
        return honest(*args) * (torch.nan if calls == call else 1.0)

    return loss


SEVERAL_STEPS = tiny((6,), budget=60.0)


def _failed_in_the_third_step(levit: AdaptiveLEViT, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = next(changing(levit.config, seed=5))
    monkeypatch.setattr("learner.adaptive_training.er_ace", _nan_at(3, er_ace))
    with pytest.raises(NonFiniteError, match="cross-entropy"):
        levit.observe(batch.x, batch.labels)


def test_loss_that_is_not_finite_after_good_steps_undoes_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    levit = _learned(AdaptiveLEViT(SEVERAL_STEPS), steps=8)
    before = facts(levit)

    with monkeypatch.context() as broken:
        _failed_in_the_third_step(levit, broken)

    assert facts(levit) == before
    assert levit.observe(samples("vectors")).step == 9


def test_without_undo_the_good_steps_would_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: the law above fails when the safety is taken out."""
    levit = _learned(AdaptiveLEViT(SEVERAL_STEPS), steps=8)
    before = facts(levit)

    with monkeypatch.context() as broken:
        broken.setattr(AdaptiveLEViT, "undo", lambda *_: None)
        _failed_in_the_third_step(levit, broken)

    assert facts(levit) != before


def test_density_that_is_not_finite_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    levit, batch = caught("grey", "learning")
    before = facts(levit)

    with monkeypatch.context() as broken:
        broken.setattr(VAE, "elbo", _nan_at(1, VAE.elbo))
        with pytest.raises(NonFiniteError, match="negative ELBO"):
            levit.observe(batch.x, batch.labels)

    assert facts(levit) == before


@pytest.mark.parametrize("name", ["vectors", "no-budget"])
def test_sums_do_not_depend_on_order_or_batches(name: str) -> None:
    one, other = grown(name), grown(name)
    x = samples(name, 40)
    y = torch.arange(6).repeat_interleave(40)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))

    for rows in torch.arange(len(x)).split(10):
        one.observe(x[rows], y[rows])
    for rows in order.split(7):
        other.observe(x[rows], y[rows])

    assert one.knowledge is not None
    assert other.knowledge is not None
    assert one.mixture.encoder is not None
    ours, theirs = one.knowledge.memory, other.knowledge.memory
    assert torch.equal(ours.counts_K, theirs.counts_K)
    phi_BF = one.mixture.encoder(samples(name, 100)).features_BF
    scores, same = (memory.read_out(0.1).scores(phi_BF) for memory in (ours, theirs))
    assert (scores - same).abs().max() < 1e-3 * (scores.max() - scores.min())
    assert (scores.argmax(1) == same.argmax(1)).double().mean() >= 0.999


def test_accuracy_before_learning_is_what_predict_says(name: str) -> None:
    levit, x = grown(name), samples(name, 20)
    said = sum(label == 1 for label in levit.predict(x).labels)

    report = levit.observe(x, torch.ones(len(x), dtype=torch.int64))

    assert report.correct == said


def test_learner_knows_the_classes_of_before_the_change(name: str) -> None:
    levit, x = grown(name), samples(name, 30)
    y = torch.arange(6).repeat_interleave(30)

    right = torch.tensor([a == b for a, b in zip(levit.predict(x).labels, y.tolist(), strict=True)])

    assert right.double().mean() > 0.95


@pytest.mark.parametrize(("budget", "overruled"), [(0.0, False), (8.0, True)])
def test_present_overrules_only_where_density_models_tell_its_samples(
    monkeypatch: pytest.MonkeyPatch, budget: float, overruled: bool
) -> None:
    monkeypatch.setattr(Recent, "overrules", lambda *_, **__: True)
    levit = AdaptiveLEViT(tiny((6,), budget=budget))

    _learned(levit, steps=20)

    assert levit.mixture.overruled is overruled
