"""When a mixture grows: soon after a change of inputs or of labels, and what it grows from."""

import pytest
import torch
from torch import Tensor

from learner.adaptive import AdaptiveLEViT
from learner.adaptive_config import AdaptiveConfig
from learner.adaptive_mixture import GROWN
from learner.growth import WARM_UP
from learner.report import Expansion
from tests.adaptive_streams import CHANGE, CONFIGS, GROWING, caught, changing, facts, grown, samples
from tests.streams import BATCH, Shift


def _relabelled(config: AdaptiveConfig, *, swapped_after: int, steps: int) -> AdaptiveLEViT:
    """Return a learner of three classes whose names move on by one after some mini-batches."""
    levit, source = AdaptiveLEViT(config), Shift(config.input_shape, seed=1)
    for number in range(steps):
        y_B = torch.randint(3, (BATCH,), generator=source.generator)
        x = source.draw(y_B)
        levit.observe(x, (y_B + 1) % 3 if number >= swapped_after else y_B)
    return levit


def _cause(levit: AdaptiveLEViT) -> Expansion:
    expansion = levit.mixture.experts[1].expansion
    assert expansion is not None
    return expansion


@pytest.mark.parametrize("name", GROWING)
def test_new_inputs_expand_within_fifty_samples_and_say_why(name: str) -> None:
    levit = grown(name)

    (expert,) = levit.mixture.experts[1:]

    cause = _cause(levit)
    assert CHANGE < expert.life.born_step <= CHANGE + 5
    assert cause.cause == "inputs"
    assert cause.novelty >= cause.threshold == pytest.approx(4.0)
    assert cause.p_value is not None
    assert cause.p_value < 0.1
    assert expert.life.novelty == cause.novelty


def test_other_labels_on_familiar_inputs_expand_by_their_errors() -> None:
    levit = _relabelled(CONFIGS["vectors"], swapped_after=60, steps=75)

    assert len(levit.mixture.experts) == 2
    assert _cause(levit).cause == "errors"
    assert _cause(levit).p_value is None
    assert 60 < levit.mixture.experts[1].life.born_step <= 72


def test_labels_that_keep_their_meaning_expand_nothing() -> None:
    """Negative control of the test above."""
    levit = _relabelled(CONFIGS["vectors"], swapped_after=75, steps=75)

    assert len(levit.mixture.experts) == 1


def test_nothing_is_watched_before_an_expert_is_warm() -> None:
    levit = AdaptiveLEViT(CONFIGS["vectors"])

    for batch in changing(levit.config):
        watching = levit.growth.scorer is not None
        warm = levit.mixture.experts and levit.mixture.active.life.samples >= WARM_UP
        assert watching == bool(warm)
        report = levit.observe(batch.x, batch.labels)
        assert (report.novelty is None) == (levit.growth.scorer is None and not report.expanded)


def test_evidence_is_told_as_the_power_of_ten_that_expands_at_the_threshold() -> None:
    levit, batch = caught("vectors", "expanding")
    before = levit.growth.novelty

    report = levit.observe(batch.x, batch.labels)

    assert 0 <= before < levit.growth.threshold
    assert report.novelty == _cause(levit).novelty >= levit.growth.threshold
    assert levit.growth.novelty == 0


def _routed(levit: AdaptiveLEViT, x: Tensor) -> list[int]:
    return levit.predict(x).experts_B.tolist()


@pytest.mark.parametrize("name", GROWING)
def test_inputs_of_before_the_change_are_routed_to_the_expert_that_learned_them(name: str) -> None:
    levit, source = grown(name), Shift(CONFIGS[name].input_shape)
    old, new = samples(name, 20)[:60], samples(name, 20)[60:]
    for _ in range(GROWN // BATCH):
        y_B = torch.randint(3, 6, (BATCH,), generator=source.generator)
        levit.observe(source.draw(y_B), y_B)

    assert _routed(levit, old).count(0) > 45
    assert _routed(levit, new).count(1) > 45


def test_newborn_is_not_routed_to() -> None:
    levit, batch = caught("vectors", "expanding")

    levit.observe(batch.x, batch.labels)

    assert set(_routed(levit, batch.x)) == {0}


@pytest.mark.parametrize("name", GROWING)
def test_heir_answers_exactly_as_its_parent_at_birth(name: str) -> None:
    levit, batch = caught(name, "expanding")
    levit.observe(batch.x, batch.labels)
    parent, heir = levit.mixture.experts
    assert levit.mixture.encoder is not None
    encoded = levit.mixture.encoder(samples(name))

    scores = [levit.mixture._network(expert, encoded.tokens_BRNE) for expert in (parent, heir)]

    assert torch.equal(*scores)
    assert facts(parent.vae.state_dict()) == facts(heir.vae.state_dict())


@pytest.mark.parametrize(("name", "reads"), [("vectors", 0), ("colour", 0), ("series", None)])
def test_heir_reads_from_a_frozen_expert_where_fusion_is_on(name: str, reads: int | None) -> None:
    levit = grown(name)

    heir = levit.mixture.active

    assert heir.reads == reads
    assert (heir.network.fusion_scale is None) == (reads is None)
    if heir.network.fusion_scale is not None:
        assert heir.network.fusion_scale.item() != 0  # it has begun to use what it reads


def test_frozen_expert_learns_nothing_and_its_heir_everything() -> None:
    parent, heir = grown("grey").mixture.experts

    frozen = [*parent.network.parameters(), *parent.vae.parameters()]
    learning = [*heir.network.parameters(), *heir.vae.parameters()]

    assert not any(parameter.requires_grad for parameter in frozen)
    assert all(parameter.requires_grad for parameter in learning)
    assert parent.life.frozen_step == heir.life.born_step
