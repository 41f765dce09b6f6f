"""The laws of the learner, for every configuration of the list."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

import pytest
import torch

from learner import LearnerConfig, LEViT, NonFiniteError, ShapeError, paper
from learner.config import ExpansionConfig
from learner.mixture import Mixture
from learner.replay import WindowMemory
from learner.training import Trainer
from learner.vae import VAE
from tests.streams import BATCH, CLASSES, CONFIGS, Shift, digest, learned, phases

QUIET = CONFIGS["vit-full-window"]


@pytest.fixture(params=list(CONFIGS.values()), ids=list(CONFIGS))
def config(request: pytest.FixtureRequest) -> LearnerConfig:
    assert isinstance(request.param, LearnerConfig)
    return request.param


@pytest.fixture
def samples(config: LearnerConfig) -> torch.Tensor:
    source = Shift(config.input_shape)
    return torch.cat([source.of(k, 8) for k in range(CLASSES)])


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

    for batch in phases(config):
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
    stream = phases(config)
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
    x = Shift(config.input_shape).of(0, BATCH)
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


def test_replay_memory_holds_the_newest_samples_and_no_more(config: LearnerConfig) -> None:
    levit, seen = LEViT(config), list[tuple[int, int]]()

    for batch in phases(config):
        report = levit.observe(batch.x, batch.labels)
        seen += [(report.step, index) for index in range(BATCH)]
        if report.expanded:
            seen = []
        members = levit.memory.ids_M2[: len(levit.memory)].tolist()
        assert sorted(map(tuple, members)) == seen[-25:]


def test_every_parameter_that_learns_moves_the_loss(config: LearnerConfig) -> None:
    levit = LEViT(config)
    reached = dict[int, set[str]]()

    for batch in phases(config):
        levit.observe(batch.x, batch.labels)
        for name, parameter in levit.mixture.named_parameters():
            if parameter.grad is not None and parameter.grad.abs().sum() > 0:
                reached.setdefault(len(levit.mixture.experts), set()).add(name)

    names = {name for name, _ in levit.mixture.named_parameters()}
    assert reached[1] >= {name for name in names if name.startswith("backbone.")}
    for born in list(reached)[:3]:
        own = {name for name in names if name.startswith(f"experts.{born - 1}.")}
        gated_one = {f"experts.{born - 1}.fusion.query_D"} if born == 2 else set()
        assert own - reached[born] <= gated_one  # a gate over one expert has nothing to choose


def test_frozen_experts_hold_no_gradients(config: LearnerConfig) -> None:
    levit = learned(config)

    assert all(p.grad is None for e in levit.mixture.frozen for p in e.parameters())


def test_answer_lists_only_labels_seen(config: LearnerConfig, samples: torch.Tensor) -> None:
    levit = learned(config, steps=3)

    answer = levit.predict(samples)

    assert sorted(map(int, answer.classes)) == [0, 1]
    assert set(answer.labels) <= {0, 1}


def _refused_batches(config: LearnerConfig) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    x, y = Shift(config.input_shape).of(0, 4).float() / 255, torch.zeros(4, dtype=torch.int64)
    broken = x.clone()
    broken.view(-1)[3] = torch.nan
    yield broken, y
    yield x, y[:3]
    yield x, y - 2
    yield x, y.float()
    yield x, y[:, None]
    yield x[:0], y[:0]
    yield x[:, :-1], y
    yield x.double(), y
    yield x.sum(), y
    if x.dim() == 4:
        yield x - 1, y
        yield x + 1, y


def test_refused_mini_batch_leaves_no_trace(config: LearnerConfig) -> None:
    levit = learned(config, steps=8)
    before = digest(levit)

    for x, y in _refused_batches(config):
        with pytest.raises(ShapeError):
            levit.observe(x, y)

    assert digest(levit) == before


@pytest.mark.parametrize(
    "labels", [["a", 3], [None, "a"], ["a", "b"], [0.5, 1.5], [[1], [2]]], ids=str
)
def test_labels_of_another_kind_are_refused(labels: list[str]) -> None:
    levit = learned(CONFIGS["vit-gated"], steps=2)

    with pytest.raises(ShapeError, match="expected"):
        levit.observe(Shift((1, 8, 8)).of(0, 2), labels)


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
    x, y = Shift(config.input_shape).of(2, BATCH), torch.full((BATCH,), 77)

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
    x, y = Shift(config.input_shape).of(2, BATCH), torch.full((BATCH,), 77)

    with monkeypatch.context() as broken:
        _fail_at(3, broken)
        with pytest.raises(NonFiniteError):
            levit.observe(x, y)

    assert digest(levit) == before


@pytest.mark.parametrize(
    "part",
    [(WindowMemory, "add"), (WindowMemory, "clear"), (Mixture, "expand"), (Trainer, "restart")],
)
def test_running_out_of_memory_anywhere_leaves_no_trace(
    config: LearnerConfig, part: tuple[type, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each part does its work and fails at its end, in a mini-batch that expands the mixture."""
    levit = learned(config, steps=2)
    before, honest = digest(levit), getattr(*part)
    x, y = Shift(config.input_shape).of(2, BATCH), torch.full((BATCH,), 77)

    def fails(*args: object, **options: object) -> None:
        honest(*args, **options)
        raise torch.OutOfMemoryError

    with monkeypatch.context() as broken:
        broken.setattr(*part, fails)
        with pytest.raises(torch.OutOfMemoryError):
            levit.observe(x, y)

    assert digest(levit) == before
    assert levit.observe(x, y).expanded


def test_without_undo_the_good_steps_would_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: the law above fails when the safety is taken out."""
    config = CONFIGS["vit-several-steps"]
    levit = learned(config, steps=8)
    before = digest(levit)

    with monkeypatch.context() as broken:
        _fail_at(3, broken)
        broken.setattr(LEViT, "_undo", lambda *_: None)
        with pytest.raises(NonFiniteError):
            levit.observe(Shift(config.input_shape).of(2, BATCH))

    assert digest(levit) != before


def test_wild_but_finite_vectors_are_learned() -> None:
    levit = learned(CONFIGS["vectors"])

    levit.observe(torch.full((5, 6), 3e38), torch.zeros(5, dtype=torch.int64))

    assert levit.predict(torch.full((1, 6), -3e38)).novelty_B.isfinite().all()


def test_labels_may_be_strings_and_new_at_any_time() -> None:
    config = CONFIGS["vit-gated"]
    levit, source = LEViT(config), Shift(config.input_shape)

    levit.observe(source.of(0, 4), ["cat", "", "cat", "dog"])
    levit.observe(source.of(1, 2), ["emu", "dog"])

    assert levit.mixture.classes == ["cat", "dog", "emu"]
    assert levit.counts.labelled == 5


def test_unlabelled_stream_builds_density_and_expands_but_names_no_class() -> None:
    config = CONFIGS["vit-gated"]
    levit = LEViT(config)

    for batch in phases(config):
        levit.observe(batch.x)

    answer = levit.predict(Shift(config.input_shape).of(0, 3))
    assert len(levit.mixture.experts) > 1
    assert answer.labels == [None] * 3
    assert answer.probabilities_BK.shape == (3, 0)


def test_labels_that_come_late_are_answered_although_older_experts_never_saw_one() -> None:
    levit, source = LEViT(QUIET), Shift(QUIET.input_shape)
    for _ in range(6):
        levit.observe(source.of(0, BATCH))

    levit.observe(source.of(1, BATCH), torch.full((BATCH,), 5))

    assert levit.predict(source.of(0, 3)).labels == [5, 5, 5]


def test_expansion_beyond_the_cap_is_refused_and_counted() -> None:
    levit = learned(replace(QUIET, expansion=ExpansionConfig(threshold=1e-9, max_experts=2)))

    assert len(levit.mixture.experts) == 2
    assert levit.counts.refused_max_experts > 0


@pytest.mark.parametrize("capacity", [10, 30, 100])
def test_unchanging_stream_expands_once_at_the_default_threshold(capacity: int) -> None:
    config = paper((1, 8, 8), capacity=capacity, per_batch=22)
    levit, source = LEViT(config), Shift(config.input_shape)

    for _ in range(5 * capacity // BATCH):
        levit.observe(source.of(0, BATCH))

    assert levit.counts.expansions == 1


def test_novelty_is_told_only_of_a_full_memory() -> None:
    levit = LEViT(CONFIGS["vit-gated"])

    reports = [levit.observe(b.x, b.labels) for b in phases(levit.config)]

    told = [report.step for report in reports if report.novelty is not None]
    full_again = [report.step + 3 for report in reports if report.expanded]
    assert told == [step for step in full_again if step <= len(reports)]


def test_novelty_is_measured_when_a_twentieth_of_the_window_is_new() -> None:
    config = paper((1, 8, 8), capacity=100, per_batch=5, threshold=1e9)
    levit, source = LEViT(config), Shift(config.input_shape)
    levit.observe(source.of(0, 100))
    levit.observe(source.of(0, 100))
    first = levit.novelty

    single = [levit.observe(source.of(1, 1)).novelty for _ in range(6)]

    assert single[:4] == [first] * 4
    assert single[4] != first
    assert single[5] == single[4]


def test_young_active_expert_is_not_routed_to() -> None:
    config = CONFIGS["vit-gated"]
    levit, source = LEViT(config), Shift(config.input_shape)
    while not levit.mixture.frozen:
        levit.observe(source.of(0, BATCH), torch.zeros(BATCH, dtype=torch.int64))

    levit.observe(source.of(1, 4), torch.ones(4, dtype=torch.int64))

    assert set(levit.predict(source.of(1, 5)).experts_B.tolist()) == {0}


def test_mini_batch_larger_than_the_memory_is_learned() -> None:
    config = CONFIGS["vit-gated"]
    levit = LEViT(config)

    first = levit.observe(Shift(config.input_shape).of(0, 50))
    second = levit.observe(Shift(config.input_shape).of(0, 12))

    assert (first.expanded, list(first.added)) == (True, [])
    assert list(second.added) == list(range(12))


def test_accuracy_before_learning_is_what_predict_says() -> None:
    config = CONFIGS["vit-gated"]
    levit = learned(config, steps=11)
    batch = Shift(config.input_shape).of(1, 30)
    said = [label == 1 for label in levit.predict(batch).labels]

    report = levit.observe(batch, torch.ones(30, dtype=torch.int64))

    assert report.correct == sum(said)


def test_golden_trace_of_losses_and_novelty() -> None:
    """Only a commit that says so may change these numbers (one thread)."""
    config = CONFIGS["vit-several-steps"]
    levit = LEViT(config)

    reports = [levit.observe(b.x, b.labels) for b in islice(phases(config), 8)]

    traced = [
        [r.losses.cross_entropy or 0.0, r.losses.negative_elbo, r.novelty or 0.0] for r in reports
    ]
    torch.testing.assert_close(torch.tensor(traced), torch.tensor(GOLDEN), atol=5e-3, rtol=1e-4)


GOLDEN = [
    [0.7979, 47.645, 0],
    [0.6562, 42.128, 0],
    [0.6597, 41.702, 0],
    [1.2944, 47.835, 0],
    [0.7446, 42.346, 0],
    [1.1507, 41.904, 0.3614],
    [1.588, 42.78, 0.9748],
    [0.6695, 47.529, 0],
]
