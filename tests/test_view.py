"""The compact view: short standardised vectors of any sample, and features of a Gaussian kernel."""

import pytest
import torch
from torch import Generator, Tensor

from learner.view import WIDEST, FourierFeatures, View, compact


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=Generator().manual_seed(seed))


SHAPES = [(1, 28, 28), (3, 100, 90), (3, 8, 200), (50, 6), (2000, 3), (9, 1500), (7,), (5000,)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_view_of_any_sample_is_short_and_bounded(shape: tuple[int, ...]) -> None:
    x = torch.rand(20, *shape, generator=Generator().manual_seed(0))
    view = View.fitted(x)

    seen = view(x)
    wild = view(torch.full((2, *shape), 3e38) if len(shape) < 3 else torch.ones(2, *shape))

    most = max(WIDEST, shape[1]) if len(shape) == 2 else WIDEST
    assert seen.shape == (20, view.values)
    assert view.values <= most
    assert seen.abs().max() <= 5
    assert wild.abs().max() <= 5


def test_values_of_a_vector_are_standardised_one_by_one() -> None:
    x = _normal(400, 3) * torch.tensor([1.0, 15.0, 3.0]) + torch.tensor([0.0, 1e3, -7.0])

    seen = View.fitted(x)(x)

    torch.testing.assert_close(seen.mean(0), torch.zeros(3), atol=0.02, rtol=0)
    torch.testing.assert_close(seen.std(0), torch.ones(3), atol=0.02, rtol=0)


def test_images_keep_the_ratios_of_their_pixels_and_series_those_of_a_channel() -> None:
    dim = torch.tensor([1.0, 0.1]).view(1, 1, 1, 2)
    images = torch.rand(300, 1, 2, 2, generator=Generator().manual_seed(0)) * dim
    series = _normal(300, 4, 2) * torch.tensor([1.0, 15.0])

    pixels = View.fitted(images)(images).std(0).reshape(2, 2)
    steps = View.fitted(series)(series).std(0).reshape(2, 4)  # channel by channel

    assert pixels[:, 0].mean() / pixels[:, 1].mean() == pytest.approx(10, rel=0.1)
    torch.testing.assert_close(steps, torch.ones(2, 4), atol=0.15, rtol=0)


def test_value_that_never_varied_is_not_blown_up_when_it_does() -> None:
    x = _normal(200, 4)
    x[:, 3] = 1.0
    view = View.fitted(x)
    odd = x[:1].clone()
    odd[0, 3] += 0.01

    seen = (view(odd) - view(x[:1])).abs()

    assert seen.max() < 0.5


def test_wide_vectors_are_folded_so_that_their_products_stay() -> None:
    x, y = _normal(200, 6000), _normal(200, 6000, seed=1)

    folded = compact(x), compact(y)

    wanted, kept = (x * y).sum(1), (folded[0] * folded[1]).sum(1)
    assert folded[0].shape == (200, WIDEST)
    assert torch.corrcoef(torch.stack([x.square().sum(1), folded[0].square().sum(1)]))[0, 1] > 0
    assert ((kept - wanted).abs() < 6 * 6000 / WIDEST**0.5).all()
    assert (folded[0].square().sum(1) / x.square().sum(1) - 1).abs().mean() < 0.1
    torch.testing.assert_close(compact(x + y), folded[0] + folded[1], atol=1e-3, rtol=1e-4)


def test_images_are_averaged_down_and_never_up() -> None:
    x = torch.arange(64 * 64).float().reshape(1, 1, 64, 64) / 4096

    small = compact(x).reshape(32, 32)

    assert small[0, 0] == pytest.approx(x[0, 0, :2, :2].mean().item())
    assert torch.equal(compact(x[:, :, :5, :7]), x[:, :, :5, :7].flatten(1))


def test_fourier_features_multiply_to_a_gaussian_kernel() -> None:
    V, width = 12, 0.9
    features = FourierFeatures.drawn(V, 20_000, Generator().manual_seed(0), width=width)
    x = _normal(8, V)

    phi = features(x)

    distance = torch.cdist(x, x).square()
    kernel = torch.exp(-distance / (4 * V * width**2))
    torch.testing.assert_close(phi @ phi.T, kernel, atol=0.03, rtol=0)
