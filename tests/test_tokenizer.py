"""The tokenizer: one convolution says what Coates and Ng's recipe on patches says."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from learner.responses import THRESHOLD
from learner.tokenizer import TOKEN_STEP, Tokenizer, fitted

Array = NDArray[np.float64]


def _generator(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def _images(n: int, *shape: int, seed: int = 0) -> Tensor:
    """Return smooth random images in [0, 1]."""
    noise = torch.rand(n, *shape, generator=_generator(seed))
    smooth = torch.nn.functional.avg_pool2d(noise, 3, stride=1, padding=1)
    return (smooth - smooth.amin()) / (smooth.amax() - smooth.amin())


def _blocks(side: int, cells: int) -> list[slice]:
    """Return where the cells of an adaptive average lie."""
    return [slice(i * side // cells, math.ceil((i + 1) * side / cells)) for i in range(cells)]


def _patches(image: Array, side: int, other: int) -> Array:
    """Return every patch as a row, [height, width, values], channel before row before column."""
    _, H, W = image.shape
    return np.array(
        [
            [image[:, i : i + side, j : j + other].reshape(-1) for j in range(W - other + 1)]
            for i in range(H - side + 1)
        ]
    )


def _answers(patches: Array, tokenizer: Tokenizer, contrast: float) -> Array:
    """Return the two-sided soft threshold of each patch's answers, [height, width, 2K]."""
    kernel = tokenizer.kernel.double().numpy().reshape(len(tokenizer.kernel), -1)
    normal = patches - patches.mean(2, keepdims=True)
    normal /= np.sqrt(patches.var(2, keepdims=True) + contrast)
    r = normal @ kernel.T - tokenizer.offset_K.double().numpy()
    halves = [np.maximum(r - THRESHOLD, 0), np.maximum(-r - THRESHOLD, 0)]
    return np.concatenate(halves, axis=2)


def _pooled(answers: Array, rows: int, columns: int) -> Array:
    """Return the mean of each cell, [rows, columns, 2K]."""
    H, W, _ = answers.shape
    return np.array(
        [
            [answers[down, across].mean((0, 1)) for across in _blocks(W, columns)]
            for down in _blocks(H, rows)
        ]
    )


def _recipe(
    image: Tensor, tokenizer: Tokenizer, contrast: float, cells: tuple[int, int], grid: int
) -> tuple[Array, Array]:
    """Return features and float tokens of one image [C, H, W], patch by patch in float64."""
    side, other = tokenizer.kernel.shape[2:]
    views = [image, image.flip(2)] if tokenizer.mirror else [image]
    answers = [
        _answers(_patches(view.double().numpy(), side, other), tokenizer, contrast)
        for view in views
    ]
    columns = grid if other > 1 else 1
    pooled = np.mean([_pooled(a, grid, columns) for a in answers], axis=0)
    centred = [_pooled(a, *cells).reshape(-1, a.shape[2]) for a in answers]
    mean, axes = tokenizer.token_mean.double().numpy(), tokenizer.token_axes.double().numpy()
    tokens = np.stack([(cell - mean) @ axes for cell in centred])
    return np.sqrt(np.moveaxis(pooled, 2, 0)).reshape(-1), tokens


@pytest.mark.parametrize("shape", [(1, 12, 12), (3, 14, 11)], ids=str)
def test_one_convolution_equals_the_recipe_on_materialised_patches(shape: tuple[int, ...]) -> None:
    images = _images(60, *shape)
    tokenizer = fitted(images, 400, _generator())
    x = _images(3, *shape, seed=1)

    grids = tokenizer(x)

    for i, image in enumerate(x):
        cells = tokenizer.token_grid(shape)
        features, tokens = _recipe(image, tokenizer, 10 / 255**2, cells, tokenizer.grid)
        np.testing.assert_allclose(grids.features_BF[i].numpy(), features, atol=2e-3)
        said = grids.tokens_BRNE[i].numpy() * TOKEN_STEP
        wanted = np.clip(tokens, -127 * TOKEN_STEP, 127 * TOKEN_STEP)
        assert np.abs(said - wanted).max() <= 0.5 * TOKEN_STEP + 5e-3


def test_series_follow_the_same_recipe_along_time() -> None:
    series = torch.randn(60, 30, 4, generator=_generator()) * 5 + 100
    tokenizer = fitted(series, 400, _generator())
    x = series[:2]

    grids = tokenizer(x)

    flat = series.double().reshape(-1, 4)
    scaled = ((x.double() - flat.mean(0)) / flat.std(0)).transpose(1, 2).unsqueeze(3).float()
    for i, image in enumerate(scaled):
        cells = tokenizer.token_grid((30, 4))
        features, tokens = _recipe(image, tokenizer, 0.1, cells, tokenizer.grid)
        np.testing.assert_allclose(grids.features_BF[i].numpy(), features, atol=2e-3)
        assert np.abs(grids.tokens_BRNE[i].numpy() * TOKEN_STEP - tokens).max() < 0.03


@pytest.mark.parametrize("shape", [(1, 9, 9), (3, 20, 13), (3, 70, 66)], ids=str)
def test_bits_of_a_sample_do_not_depend_on_its_batch(shape: tuple[int, ...]) -> None:
    tokenizer = fitted(_images(30, *shape), 400, _generator())
    x = (_images(5, *shape, seed=1) * 255).to(torch.uint8)

    together, alone = tokenizer(x), [tokenizer(sample[None]) for sample in x]

    assert torch.equal(together.features_BF, torch.cat([one.features_BF for one in alone]))
    assert torch.equal(together.tokens_BRNE, torch.cat([one.tokens_BRNE for one in alone]))


@pytest.mark.parametrize(
    "shape",
    [(1, 8, 8), (3, 32, 32), (1, 28, 28), (1, 3, 9), (3, 100, 70), (12, 3), (3, 2), (90, 1)],
    ids=str,
)
def test_sizes_are_what_the_tokenizer_says_they_are(shape: tuple[int, ...]) -> None:
    x = torch.rand(20, *shape, generator=_generator())
    tokenizer = fitted(x, 300, _generator())

    features, tokens = tokenizer(x)

    rows, columns = tokenizer.token_grid(shape)
    renditions, width = (2 if tokenizer.mirror else 1), tokenizer.token_axes.shape[1]
    assert features.shape == (20, tokenizer.features)
    assert tokenizer.features <= 300
    assert tokens.shape == (20, renditions, rows * columns, width)
    assert (features.dtype, tokens.dtype) == (torch.float32, torch.int8)
    assert (features >= 0).all()


def test_filters_answer_to_whitened_patches_as_unit_vectors() -> None:
    """Spread over random patches, the answers of the filters are of one size, not of the data's."""
    images = _images(100, 1, 12, 12)
    tokenizer = fitted(images, 400, _generator())

    answers = np.concatenate(
        [_plain_answers(image.double().numpy(), tokenizer) for image in images[:30]]
    )

    deviation = answers.std(0)
    raw = np.concatenate([_patches(i.double().numpy(), 4, 4).reshape(-1, 16) for i in images[:30]])
    spread = np.linalg.eigvalsh(np.cov(raw.T))[1:]
    assert spread.max() / spread.min() > 30  # neighbouring pixels are alike before whitening
    assert deviation.max() / deviation.min() < 3
    assert np.abs(answers.mean(0)).max() < 0.1


def _plain_answers(image: Array, tokenizer: Tokenizer) -> Array:
    side = tokenizer.kernel.shape[2]
    patches = _patches(image, side, side).reshape(-1, side * side)
    normal = patches - patches.mean(1, keepdims=True)
    normal /= np.sqrt(patches.var(1, keepdims=True) + 10 / 255**2)
    kernel = tokenizer.kernel.double().numpy().reshape(len(tokenizer.kernel), -1)
    answers: Array = normal @ kernel.T - tokenizer.offset_K.double().numpy()
    return answers


def test_tokens_of_the_samples_it_was_fitted_on_have_mean_zero_and_unit_variance() -> None:
    images = _images(200, 3, 16, 16)
    tokenizer = fitted(images, 400, _generator())

    tokens = tokenizer(images).tokens_BRNE[:, 0].float().flatten(0, 1) * TOKEN_STEP

    torch.testing.assert_close(tokens.mean(0), torch.zeros(tokens.shape[1]), atol=0.05, rtol=0)
    assert 0.8 < tokens[:, :16].std(0).min() <= tokens[:, :16].std(0).max() < 1.1


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_images_as_likely_as_their_mirror_images_are_mirrored(seed: int) -> None:
    images = _images(200, 1, 12, 12, seed=seed)

    tokenizer = fitted(images, 200, _generator())

    grids = tokenizer(images[:4])
    mirrored = tokenizer(images[:4].flip(3))
    assert tokenizer.mirror
    torch.testing.assert_close(grids.features_BF, mirrored.features_BF, atol=1e-4, rtol=1e-3)
    assert (grids.tokens_BRNE - mirrored.tokens_BRNE.flip(1)).abs().max() <= 1


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_images_told_from_their_mirror_images_are_not_mirrored(seed: int) -> None:
    """Each has a bright left edge: a handed pattern, of whatever class."""
    images = 0.5 * _images(200, 1, 12, 12, seed=seed)
    images[:, :, :, :4] += torch.rand(200, 1, 1, 1, generator=_generator(seed)) * 0.5
    images[:, :, 2:5, 1:3] = 1.0

    assert not fitted(images, 200, _generator()).mirror


def test_tokenizer_restored_from_its_tensors_gives_the_same_bits() -> None:
    x = _images(30, 3, 12, 12)
    tokenizer = fitted(x, 200, _generator())
    tensors = {name: tensor.clone() for name, tensor in tokenizer.tensors().items()}

    again = Tokenizer.restored(tensors, mirror=tokenizer.mirror, grid=tokenizer.grid)

    assert torch.equal(again(x).features_BF, tokenizer(x).features_BF)
    assert torch.equal(again(x).tokens_BRNE, tokenizer(x).tokens_BRNE)


@pytest.mark.parametrize("shape", [(3, 12, 12), (30, 4)])
def test_without_tokens_features_are_the_same(shape: tuple[int, ...]) -> None:
    x = _images(30, *shape)
    whole, bare = (fitted(x, 200, _generator(), tokens=wanted) for wanted in (True, False))

    features, tokens = bare(x)

    assert torch.equal(features, whole(x).features_BF)
    assert tokens.shape == (*whole(x).tokens_BRNE.shape[:3], 0)
    again = Tokenizer.restored(bare.tensors(), mirror=bare.mirror, grid=bare.grid)
    assert torch.equal(again(x).features_BF, features)


def test_other_draws_give_other_filters() -> None:
    x = _images(30, 1, 9, 9)

    one, other = (fitted(x, 200, _generator(seed)) for seed in (0, 1))

    assert not torch.equal(one.kernel, other.kernel)
    assert torch.equal(one.kernel, fitted(x, 200, _generator()).kernel)
