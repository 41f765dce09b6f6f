"""Why a sample is answered as it is: numbers that add up, and cells that matter."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from learner import (
    PARTS,
    AdaptiveConfig,
    AdaptiveLEViT,
    AdaptiveMixture,
    Explanation,
    LEViT,
    Mixture,
    drawn,
    explain,
    features,
    unit,
)
from learner.blend import Pool
from learner.explanation import rolled_out
from learner.places import CELLS, contributions
from learner.tokenizer import Tokenizer, fitted
from learner.vit import AttentionModule
from service.datafile import read_arrays
from tests.conftest import DATA
from tests.streams import CONFIGS, Shift

MNIST = Path(DATA or "") / "mnist.npz"
N = 6


@cache
def _paper(name: str) -> tuple[Mixture, Tensor]:
    """Return a mixture of several experts, and samples of all it has learned."""
    config = CONFIGS[name]
    stream, levit = Shift(config.input_shape), LEViT(config)
    for number in range(24):
        y = torch.tensor([number // 8 * 2, number // 8 * 2 + 1] * 5)
        levit.observe(stream.draw(y), y)
    assert len(levit.mixture.experts) > 1
    return levit.mixture, stream.draw(torch.arange(N))


@cache
def _default(shape: tuple[int, ...], budget: int = 8) -> tuple[AdaptiveMixture, Tensor]:
    config = AdaptiveConfig(input_shape=shape, budget=budget, statistics_bytes=2**20)
    stream, levit = Shift(shape), AdaptiveLEViT(config)
    for _ in range(30):
        y = torch.arange(10) % N
        levit.observe(stream.draw(y), y)
    return levit.mixture, stream.draw(torch.arange(N))


CASES: dict[str, Callable[[], tuple[Mixture | AdaptiveMixture, Tensor]]] = {
    "paper": lambda: _paper("vit-gated"),
    "paper-fixed": lambda: _paper("vit-fixed"),
    "paper-dense": lambda: _paper("dnn-gated"),
    "paper-vectors": lambda: _paper("vectors"),
    "default-grey": lambda: _default((1, 8, 8)),
    "default-colour": lambda: _default((3, 8, 8)),
    "default-vectors": lambda: _default((5,)),
    "default-series": lambda: _default((12, 3)),
}


def _explained(mixture: Mixture | AdaptiveMixture, x: Tensor) -> Explanation:
    told = explain(mixture, x)
    assert len(told.parts) == len(told.heat) == len(x)
    return told


def _patches(shape: tuple[int, ...], *, mirror: bool) -> Tokenizer:
    """Return a tokenizer of images that grow brighter downwards, so that even ones stand out."""
    x = torch.rand(40, *shape, generator=torch.Generator().manual_seed(1)) * 55
    x += torch.linspace(0, 200, shape[1])[:, None]
    made = fitted(x.to(torch.uint8), 64, torch.Generator().manual_seed(2))
    return replace(made, mirror=mirror)


@pytest.mark.parametrize("case", CASES)
def test_an_explanation_agrees_with_the_prediction_and_adds_up(case: str) -> None:
    mixture, x = CASES[case]()
    answer = mixture.predict(x)

    told = _explained(mixture, x)

    ones = [pytest.approx(1, abs=1e-5)] * N
    assert [sum(parts.values()) for parts in told.parts] == ones
    torch.testing.assert_close(told.novelty_B, answer.novelty_B)
    assert told.weights_BE.shape == (N, len(told.ids))
    if isinstance(mixture, Mixture):
        assert told.weights_BE.sum(1).tolist() == ones
        own_B = told.weights_BE[torch.arange(N), [told.ids.index(i) for i in answer.experts_B]]
        assert bool((own_B >= 0.5 - 1e-6).all())


@pytest.mark.parametrize("case", CASES)
def test_only_images_have_heat_and_it_reaches_from_0_to_1(case: str) -> None:
    mixture, x = CASES[case]()

    heat = _explained(mixture, x).heat

    if x.dim() != 4 or case == "paper-dense":
        assert heat == [None] * N
        return
    found = [one.cells for one in heat if one is not None]
    assert len(found) == N
    assert {(float(one.min()), float(one.max())) for one in found} == {(0.0, 1.0)}


@pytest.mark.parametrize("case", CASES)
def test_an_explanation_does_not_depend_on_batch_mates_and_changes_nothing(case: str) -> None:
    mixture, x = CASES[case]()
    before = mixture.predict(x).probabilities_BK

    whole, alone = _explained(mixture, x), _explained(mixture, x[2:3])

    torch.testing.assert_close(whole.weights_BE[2:3], alone.weights_BE)
    torch.testing.assert_close(features(mixture, x)[2:3], features(mixture, x[2:3]))
    assert (whole.heat[2] is None) == (alone.heat[0] is None)
    if whole.heat[2] is not None and alone.heat[0] is not None:
        torch.testing.assert_close(whole.heat[2].cells, alone.heat[0].cells, atol=1e-3, rtol=0)
    assert torch.equal(mixture.predict(x).probabilities_BK, before)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 8), (3, 12, 9)])
@pytest.mark.parametrize("mirror", [False, True])
def test_the_contributions_of_all_places_are_the_score_less_that_of_an_even_image(
    shape: tuple[int, ...],
    mirror: bool,
) -> None:
    patches = _patches(shape, mirror=mirror)
    x = Shift(shape, seed=3).draw(torch.arange(3))
    weight_D = torch.randn(patches.features, generator=torch.Generator().manual_seed(0))

    added = [float(contributions(patches, one, weight_D).sum()) for one in x.split(1)]

    even = patches(torch.full_like(x[:1], 77)).features_BF @ weight_D
    score_B = patches(x).features_BF @ weight_D
    assert added == pytest.approx((score_B - even).tolist(), abs=1e-3)
    assert added != pytest.approx(score_B.tolist(), abs=1e-1)  # the control: an even one counts


def test_a_filter_that_answers_in_one_corner_contributes_there_alone() -> None:
    patches = _patches((1, 8, 8), mirror=False)
    x = torch.full((1, 1, 8, 8), 90, dtype=torch.uint8)
    x[..., :2, :2] = 255  # all other patches than those that touch it are even

    added_HW = contributions(patches, x, torch.ones(patches.features))

    side = patches.kernel.shape[2]
    assert added_HW[0, 0].abs() > 1e-3
    assert added_HW[2:].abs().max() < 1e-5
    assert added_HW[:, 2:].abs().max() < 1e-5
    assert added_HW.shape == (9 - side, 9 - side)


@pytest.mark.parametrize("case", CASES)
def test_an_expert_draws_what_resembles_its_samples_and_always_the_same(case: str) -> None:
    mixture, x = CASES[case]()
    ids = explain(mixture, x).ids

    made = [drawn(mixture, id_, 4) for id_ in ids]

    for id_, samples in zip(ids, made, strict=True):
        assert samples.shape == (4, *mixture.config.input_shape)
        assert torch.equal(samples, drawn(mixture, id_, 4))
        middle = unit(x).mean(0)
        away = (samples.mean(0) - middle).abs().mean()
        assert away < (unit(x).amax() - unit(x).amin()) / 2.5
    if len(made) > 1:
        assert not torch.equal(made[0], made[1])


def test_an_expert_without_a_density_model_draws_nothing() -> None:
    mixture, _ = _default((1, 8, 8), budget=0)

    assert len(drawn(mixture, 0, 4)) == 0


def test_a_vector_wider_than_the_view_is_not_drawn_and_a_large_image_small() -> None:
    wide, _ = _default((1100,), 8)
    large, _ = _default((3, 24, 20), 8)

    assert len(drawn(wide, 0, 2)) == 0
    assert drawn(large, 0, 2).shape == (2, 3, 18, 18)


def test_roll_out_is_the_product_of_half_attention_and_half_identity() -> None:
    first, second = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)).softmax(3)

    read_BN = rolled_out([first, second])

    for b in range(3):
        own = np.eye(4)
        whole = (second[b].numpy() + own) / 2 @ ((first[b].numpy() + own) / 2)
        np.testing.assert_allclose(read_BN[b].numpy(), whole.mean(0), atol=1e-6)


@pytest.mark.parametrize("name", ["vit-gated", "colour"])
def test_attention_weights_are_those_that_the_answer_was_computed_with(name: str) -> None:
    mixture, x = _paper(name)
    module = mixture.ordered[0].features
    assert isinstance(module, AttentionModule)
    attention = module.attention
    t_BND = mixture.backbone(mixture.scaler(x)).detach()
    whole = nn.MultiheadAttention(t_BND.shape[2], attention.heads, batch_first=True)
    state = {"in_proj_weight": attention.qkv.weight, "in_proj_bias": attention.qkv.bias}
    whole.load_state_dict(state, strict=False)
    read = attention.norm(t_BND)

    told_BNN = attention.weights(t_BND)

    _, expected_BNN = whole(read, read, read, need_weights=True, average_attn_weights=True)
    torch.testing.assert_close(told_BNN, expected_BNN, atol=1e-5, rtol=1e-4)


def test_a_network_that_decides_shows_what_it_attends_to() -> None:
    mixture, x = _default((1, 8, 8))
    assert {one.kind for one in _explained(mixture, x).heat if one} == {"contribution"}
    pools = mixture.pools
    mixture.pools = {-1: Pool(torch.tensor([float(part == "network") for part in PARTS]))}

    told = _explained(mixture, x)

    mixture.pools = pools
    assert {one.kind for one in told.heat if one} == {"attention"}
    assert told.weights_BE[:, -1].tolist() == [1.0] * N
    assert told.parts[0]["network"] == 1.0


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.skipif(not MNIST.is_file(), reason="needs MNIST at LEVIT_DATA")
def test_a_digit_loses_more_of_its_score_with_its_hottest_cell_than_with_the_coldest() -> None:
    data = read_arrays(MNIST)
    x, y = (torch.from_numpy(data[f"{name}_train"][:1500]) for name in "xy")
    levit = AdaptiveLEViT(AdaptiveConfig(input_shape=(1, 28, 28), budget=0))
    for start in range(0, 1500, 100):
        levit.observe(x[start : start + 100, None], y[start : start + 100].long())
    mixture, tested = levit.mixture, torch.from_numpy(data["x_test"][:150])[:, None]
    encoder, read_out = mixture.encoder, mixture.read_out
    assert encoder is not None
    assert encoder.patches is not None
    assert read_out is not None
    side = encoder.patches.kernel.shape[2]
    column_B = mixture.predict(tested).probabilities_BK.argmax(1)

    def score(x: Tensor) -> Tensor:
        scores_BK = read_out.scores(encoder(x).features_BF)
        return scores_BK.gather(1, column_B[:, None]).squeeze(1)

    heat = [one.cells for one in explain(mixture, tested).heat if one is not None]
    without = [
        torch.stack([_blank(x, cell, side) for x, cell in zip(tested, cells, strict=True)])
        for cells in ([int(one.argmax()) for one in heat], [int(one.argmin()) for one in heat])
    ]
    hottest_B, coldest_B = (score(tested) - score(blanked) for blanked in without)

    assert (hottest_B > coldest_B).float().mean() > 0.6
    assert hottest_B.mean() > 1.3 * coldest_B.mean()


def _blank(x_CHW: Tensor, cell: int, side: int) -> Tensor:
    """Return a digit without the pixels that the patches of a cell see."""
    places, x_CHW = x_CHW.shape[1] - side + 1, x_CHW.clone()
    rows, columns = (
        slice(i * places // CELLS, -(-(i + 1) * places // CELLS) + side - 1)
        for i in divmod(cell, CELLS)
    )
    x_CHW[:, rows, columns] = 0
    return x_CHW
