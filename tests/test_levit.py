"""The laws of the learner, for every configuration of the list."""

from collections.abc import Iterator
from itertools import islice

import pytest
import torch

from learner import LearnerConfig, LEViT, NonFiniteError, ShapeError, paper
from learner.training import Trainer
from learner.vae import VAE
from tests.streams import BATCH, CLASSES, CONFIGS, Shift, by_class, digest, learned


@pytest.fixture(params=list(CONFIGS.values()), ids=list(CONFIGS))
def config(request: pytest.FixtureRequest) -> LearnerConfig:
    assert isinstance(request.param, LearnerConfig)
    return request.param


@pytest.fixture
def samples(config: LearnerConfig) -> torch.Tensor:
    source = Shift(config.input_shape)
    return torch.cat([source.draw(k, 8) for k in range(CLASSES)])


def test_stream_with_changes_grows_the_mixture(config: LearnerConfig) -> None:
    levit = learned(config)

    assert len(levit.mixture.experts) > 1


def test_predictions_do_not_depend_on_batch_mates(
    config: LearnerConfig, samples: torch.Tensor
) -> None:
    levit = learned(config)

    together = levit.predict(samples)
    alone = [levit.predict(sample[None]) for sample in samples]

    assert together.experts_B.tolist() == [int(one.experts_B) for one in alone]
    torch.testing.assert_close(
        together.probabilities_BK,
        torch.cat([one.probabilities_BK for one in alone]),
        atol=1e-5,
        rtol=1e-4,
    )


def test_frozen_experts_never_change_a_byte(config: LearnerConfig) -> None:
    levit, before = LEViT(config), dict[tuple[int, str], torch.Tensor]()

    for batch in by_class(config):
        levit.observe(batch.x, batch.labels)
        for k, expert in enumerate(levit.mixture.frozen):
            for name, tensor in expert.state_dict().items():
                before.setdefault((k, name), tensor.clone())

    after = {
        (k, name): tensor
        for k, expert in enumerate(levit.mixture.frozen)
        for name, tensor in expert.state_dict().items()
    }
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in after)


def test_backbone_is_frozen_at_the_first_expansion(config: LearnerConfig) -> None:
    levit = LEViT(config)
    stream = by_class(config)
    while not levit.mixture.frozen:
        batch = next(stream)
        levit.observe(batch.x, batch.labels)
    before = {n: t.clone() for n, t in levit.mixture.backbone.state_dict().items()}

    for batch in stream:
        levit.observe(batch.x, batch.labels)

    after = levit.mixture.backbone.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_predict_changes_nothing(config: LearnerConfig, samples: torch.Tensor) -> None:
    levit = learned(config, steps=9)
    before = digest(levit)

    levit.predict(samples)

    assert digest(levit) == before


def test_observe_does_not_change_its_inputs(config: LearnerConfig) -> None:
    levit = learned(config, steps=4)
    x = Shift(config.input_shape).draw(0, BATCH)
    y = torch.zeros(BATCH, dtype=torch.int64)
    copies = x.clone(), y.clone()

    levit.observe(x, y)

    assert torch.equal(x, copies[0])
    assert torch.equal(y, copies[1])


def test_same_stream_and_seed_give_the_same_bytes(config: LearnerConfig) -> None:
    assert digest(learned(config)) == digest(learned(config))


def test_another_stream_gives_other_bytes(config: LearnerConfig) -> None:
    assert digest(learned(config, steps=2)) != digest(learned(config, steps=2, seed=1))


def test_global_random_state_is_neither_read_nor_moved(config: LearnerConfig) -> None:
    before = torch.get_rng_state()

    first = digest(learned(config, steps=7))

    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert digest(learned(config, steps=7)) == first


def test_replay_memory_and_mixture_keep_their_caps(config: LearnerConfig) -> None:
    levit = LEViT(config)

    sizes = []
    for batch in by_class(config):
        levit.observe(batch.x, batch.labels)
        sizes.append(len(levit.memory))

    assert max(sizes) <= config.replay.capacity


def test_every_parameter_of_the_active_expert_gets_a_gradient(config: LearnerConfig) -> None:
    levit = LEViT(config)
    stream = by_class(config)
    while len(levit.mixture.experts) < 2:
        batch = next(stream)
        levit.observe(batch.x, batch.labels)

    batch = next(b for b in stream if b.labels is not None)
    levit.observe(batch.x, batch.labels)

    names = dict(levit.mixture.active.named_parameters())
    assert [name for name, p in names.items() if p.grad is None] == []
    assert all(p.grad is None for e in levit.mixture.frozen for p in e.parameters())


def test_answer_lists_only_labels_seen(config: LearnerConfig, samples: torch.Tensor) -> None:
    levit = learned(config, steps=3)

    answer = levit.predict(samples)

    assert answer.classes == (0,)
    assert set(answer.labels) == {0}


def _refused_batches(config: LearnerConfig) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    x, y = Shift(config.input_shape).draw(0, 4).float() / 255, torch.zeros(4, dtype=torch.int64)
    broken = x.clone()
    broken.view(-1)[3] = torch.nan
    yield broken, y
    yield x, y[:3]
    yield x, y - 2
    yield x[:0], y[:0]
    yield x[:, :-1], y
    yield x.double(), y


def test_refused_mini_batch_leaves_no_trace(config: LearnerConfig) -> None:
    levit = learned(config, steps=8)
    before = digest(levit)

    refusals = 0
    for x, y in _refused_batches(config):
        with pytest.raises(ShapeError):
            levit.observe(x, y)
        refusals += 1

    assert refusals == 6
    assert digest(levit) == before


def _fail_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the loss of the `step`-th optimiser step from now NaN."""
    honest, calls = VAE.elbo, [0]

    def elbo(vae: VAE, x: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        calls[0] += 1
        return honest(vae, x, noise) * (torch.nan if calls[0] == step else 1.0)

    monkeypatch.setattr(VAE, "elbo", elbo)


def test_non_finite_loss_leaves_no_trace(
    config: LearnerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    levit = learned(config, steps=8)
    before = digest(levit)
    x, y = Shift(config.input_shape).draw(2, BATCH), torch.full((BATCH,), 77)

    with monkeypatch.context() as broken:
        _fail_at(1, broken)
        with pytest.raises(NonFiniteError, match="negative ELBO"):
            levit.observe(x, y)

    assert digest(levit) == before
    assert levit.observe(x, y).step == 9


def test_non_finite_loss_after_good_steps_undoes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    config = CONFIGS["vit-several-steps"]
    levit = learned(config, steps=8)
    before = digest(levit)
    x, y = Shift(config.input_shape).draw(2, BATCH), torch.full((BATCH,), 77)

    with monkeypatch.context() as broken:
        _fail_at(3, broken)
        with pytest.raises(NonFiniteError):
            levit.observe(x, y)

    assert digest(levit) == before


def test_without_undo_the_good_steps_would_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: the law above fails when the safety is taken out."""
    config = CONFIGS["vit-several-steps"]
    levit = learned(config, steps=8)
    before = digest(levit)

    with monkeypatch.context() as broken:
        _fail_at(3, broken)
        broken.setattr(Trainer, "undo", lambda *_: None)
        with pytest.raises(NonFiniteError):
            levit.observe(Shift(config.input_shape).draw(2, BATCH))

    assert digest(levit) != before


def test_wild_but_finite_vectors_are_learned() -> None:
    levit = learned(CONFIGS["vectors"])

    levit.observe(torch.full((5, 6), 3e38), torch.zeros(5, dtype=torch.int64))

    assert levit.predict(torch.full((1, 6), -3e38)).novelty_B.isfinite().all()


def test_labels_may_be_strings_and_new_at_any_time() -> None:
    config = CONFIGS["vit-gated"]
    levit, source = LEViT(config), Shift(config.input_shape)

    levit.observe(source.draw(0, 4), ["cat", "", "cat", "dog"])
    levit.observe(source.draw(1, 2), ["emu", "dog"])

    assert levit.classes == ["cat", "dog", "emu"]
    assert levit.counts.labelled == 5


def test_unlabelled_stream_builds_density_and_expands_but_names_no_class() -> None:
    config = CONFIGS["vit-gated"]
    levit = LEViT(config)

    for batch in by_class(config):
        levit.observe(batch.x)

    answer = levit.predict(Shift(config.input_shape).draw(0, 3))
    assert len(levit.mixture.experts) > 1
    assert answer.labels == [None] * 3
    assert answer.probabilities_BK.shape == (3, 0)


def test_labels_that_come_late_are_answered_although_older_experts_never_saw_one() -> None:
    config = CONFIGS["vit-gated"]
    levit, source = LEViT(config), Shift(config.input_shape)
    for _ in range(6):
        levit.observe(source.draw(0, BATCH))

    levit.observe(source.draw(1, BATCH), torch.full((BATCH,), 5))

    assert levit.predict(source.draw(0, 3)).labels == [5, 5, 5]


def test_expansion_beyond_the_cap_is_refused_and_counted() -> None:
    config = paper((1, 8, 8), capacity=20, per_batch=22, threshold=1e-9, max_experts=2)

    levit = learned(config)

    assert len(levit.mixture.experts) == 2
    assert levit.counts.refused_max_experts > 0


def test_unchanging_stream_with_a_high_threshold_expands_once() -> None:
    config = paper((1, 8, 8), capacity=20, per_batch=22, threshold=50.0)
    levit, source = LEViT(config), Shift(config.input_shape)

    for _ in range(20):
        levit.observe(source.draw(0, BATCH))

    assert levit.counts.expansions == 1


def test_young_active_expert_is_not_routed_to() -> None:
    config = CONFIGS["vit-gated"]
    levit, source = LEViT(config), Shift(config.input_shape)
    while not levit.mixture.frozen:
        levit.observe(source.draw(0, BATCH), torch.zeros(BATCH, dtype=torch.int64))

    levit.observe(source.draw(1, 4), torch.ones(4, dtype=torch.int64))

    assert set(levit.predict(source.draw(1, 5)).experts_B.tolist()) == {0}


def test_mini_batch_larger_than_the_memory_is_learned() -> None:
    config = CONFIGS["vit-gated"]
    levit = LEViT(config)

    report = levit.observe(Shift(config.input_shape).draw(0, 50))

    assert report.expanded
    assert list(report.added) == list(range(30, 50))


def test_accuracy_before_learning_is_what_predict_says() -> None:
    config = CONFIGS["vit-gated"]
    levit = learned(config, steps=11)
    batch = Shift(config.input_shape).draw(1, 30)
    said = [label == 1 for label in levit.predict(batch).labels]

    report = levit.observe(batch, torch.ones(30, dtype=torch.int64))

    assert report.correct == sum(said)


def test_golden_trace_of_losses() -> None:
    """Only a commit that says so may change these numbers (one thread)."""
    config = CONFIGS["vit-gated"]
    levit = LEViT(config)

    stream = islice(by_class(config), len(GOLDEN))
    traced = [levit.observe(b.x, b.labels).losses.negative_elbo for b in stream]

    torch.testing.assert_close(torch.tensor(traced), torch.tensor(GOLDEN), atol=5e-3, rtol=0)


GOLDEN = [46.970, 39.003, 48.068, 39.126, 44.958, 48.400]
