"""The analytic memory: sums that no order, cut or reading changes, and exact read-outs."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import Generator, Tensor

from learner.analytic import AnalyticMemory, memory_bytes
from learner.errors import NonFiniteError, ShapeError
from learner.readout import Kind, ReadOut

D, K = 300, 7  # two panels


def _samples(n: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return features >= 0 of low rank and little noise, [n, D], and classes, [n]."""
    fixed, generator = Generator().manual_seed(99), Generator().manual_seed(seed)
    mixing, means = torch.randn(40, D, generator=fixed), torch.randn(K, 40, generator=fixed)
    y = torch.randint(K, (n,), generator=generator)
    latent = 0.7 * means[y] + torch.randn(n, 40, generator=generator)
    noise = 0.1 * torch.randn(n, D, generator=generator)
    return torch.relu(latent @ mixing / 6 + noise + 0.5), y


def _memory(phi: Tensor, y: Tensor, *, cut: int = 64, classes: int = K) -> AnalyticMemory:
    memory = AnalyticMemory(phi.shape[1])
    for rows, labels in zip(phi.split(cut), y.split(cut), strict=True):
        memory.add(rows, labels, classes=classes)
    return memory


def _gram(memory: AnalyticMemory) -> Tensor:
    return memory._sums().times(torch.eye(memory.features, dtype=torch.float64))


def _copied(memory: AnalyticMemory) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in memory.tensors().items()}


def _same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def _assert_alike(one: AnalyticMemory, other: AnalyticMemory) -> None:
    """Equal counts, sums to 1e-6 of their size."""
    assert torch.equal(one.counts_K, other.counts_K)
    pairs = [(one._sums().sums_KD, other._sums().sums_KD), (_gram(one), _gram(other))]
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6 * theirs.abs().max().item())


def _range_error(scores: Tensor, expected: Tensor) -> float:
    """Return the largest difference, of the range; what is common to all classes is left out."""
    ours, theirs = (s.double() - s.double().mean(1, keepdim=True) for s in (scores, expected))
    return ((ours - theirs).abs().max() / (theirs.max() - theirs.min())).item()


def _lda(phi: Tensor, y: Tensor, ridge: float, asked: Tensor) -> Tensor:
    """Return the scores of streaming LDA as its formula reads, solved in float64 by numpy."""
    x, labels = phi.double().numpy(), y.numpy()
    means = np.stack([x[labels == k].mean(0) for k in range(K)])
    covariance = (x - means[labels]).T @ (x - means[labels]) / len(x)
    covariance += ridge * covariance.diagonal().mean() * np.eye(x.shape[1])
    weight = np.linalg.solve(covariance, means.T)
    bias = -0.5 * (means.T * weight).sum(0)
    return torch.from_numpy(asked.double().numpy() @ weight + bias)


def _ridge(phi: Tensor, y: Tensor, ridge: float, asked: Tensor) -> Tensor:
    """Return least squares on centred features and targets, by the stacked system in numpy."""
    x, targets = phi.double().numpy(), np.eye(K)[y.numpy()]
    mean, frequency = x.mean(0), targets.mean(0)
    strength = ridge * (x - mean).var(0).mean() * len(x)
    rows = np.concatenate([x - mean, np.sqrt(strength) * np.eye(x.shape[1])])
    right = np.concatenate([targets - frequency, np.zeros((x.shape[1], K))])
    weight = np.linalg.lstsq(rows, right, rcond=None)[0]
    return torch.from_numpy((asked.double().numpy() - mean) @ weight + frequency)


@pytest.mark.parametrize("ridge", [1e-4, 1e-2, 1.0])
@pytest.mark.parametrize("n", [90, 2000], ids=["fewer samples than features", "more"])
def test_lda_equals_a_float64_solve_of_its_formula(n: int, ridge: float) -> None:
    (phi, y), (asked, _) = _samples(n), _samples(500, seed=1)

    scores = _memory(phi, y).read_out(ridge).scores(asked)

    assert _range_error(scores, _lda(phi, y, ridge, asked)) < 1e-4


@pytest.mark.parametrize("n", [90, 2000], ids=["fewer samples than features", "more"])
def test_ridge_equals_least_squares_with_a_penalty(n: int) -> None:
    (phi, y), (asked, _) = _samples(n), _samples(500, seed=1)

    scores = _memory(phi, y).read_out(1e-2, kind="ridge").scores(asked)

    torch.testing.assert_close(scores.double(), _ridge(phi, y, 1e-2, asked), atol=1e-4, rtol=0)


def test_lda_with_class_frequencies_answers_as_sklearn_on_digits() -> None:
    digits = load_digits()
    x, y = torch.from_numpy(digits.data).float(), torch.from_numpy(digits.target).long()
    theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=None).fit(x[:1200], y[:1200])

    read_out = _memory(x[:1200], y[:1200], classes=10).read_out(1e-6)
    ours = (read_out.scores(x[1200:]) + read_out.log_frequency_K).softmax(1)

    expected = torch.from_numpy(theirs.predict_proba(x[1200:])).float()
    torch.testing.assert_close(ours, expected, atol=1e-2, rtol=0)  # ours has a ridge of 1e-6
    assert torch.equal(ours.argmax(1), expected.argmax(1))


@given(st.integers(0, 2**32), st.integers(10, 1500))
@settings(max_examples=8, deadline=None)
def test_no_permutation_and_no_cut_changes_what_is_known(seed: int, cut: int) -> None:
    (phi, y), (asked, _) = _samples(1500), _samples(2000, seed=1)
    permuted = torch.randperm(1500, generator=Generator().manual_seed(seed))

    straight = _memory(phi, y)
    shuffled = _memory(phi[permuted], y[permuted], cut=cut)

    _assert_alike(shuffled, straight)
    scores, expected = (m.read_out(1e-2).scores(asked) for m in (shuffled, straight))
    assert _range_error(scores, expected) < 1e-3
    assert (scores.argmax(1) == expected.argmax(1)).float().mean() >= 0.999


@given(st.lists(st.integers(0, 700), max_size=12))
@settings(max_examples=15, deadline=None)
def test_cut_of_a_stream_changes_no_bit(cuts: list[int]) -> None:
    phi, y = _samples(700)
    memory = AnalyticMemory(D)
    for start, end in pairwise([0, *sorted(cuts), 700]):
        memory.add(phi[start:end], y[start:end], classes=K)

    assert _same(memory.tensors(), _memory(phi, y, cut=10).tensors())


def test_order_of_a_stream_changes_bits() -> None:
    phi, y = _samples(700)  # so that the comparison above can fail

    assert not _same(_memory(phi.flip(0), y.flip(0)).tensors(), _memory(phi, y).tensors())


def test_reading_changes_no_later_bit() -> None:
    phi, y = _samples(700)
    read, unread = AnalyticMemory(D), AnalyticMemory(D)

    for rows, labels in zip(phi.split(60), y.split(60), strict=True):
        unread.add(rows, labels, classes=K)
        read.add(rows, labels, classes=K)
        read.read_out(1e-2, without=(rows[:20], labels[:20]))
        read.tensors()

    assert _same(read.tensors(), unread.tensors())


def test_undo_leaves_no_trace() -> None:
    phi, y = _samples(1500)
    memory, twin = (_memory(phi[:600], y[:600] % 5, classes=5) for _ in range(2))

    point = memory.undo_point()
    memory.add(phi[600:1300], y[600:1300], classes=K)
    memory.remove(phi[:20], y[:20] % 5)
    memory.add(phi[1300:1400], y[1300:1400], classes=K)
    memory.scale(0.5)
    changed = memory.read_out(1e-2)
    memory.undo(point)

    assert changed.weight_DK.shape == (D, K)
    assert _same(memory.tensors(), twin.tensors())
    for each in (memory, twin):
        each.add(phi[600:1500], y[600:1500], classes=K)
    assert _same(memory.tensors(), twin.tensors())


def test_taking_undo_points_changes_no_bit_and_keeps_the_queue_short() -> None:
    phi, y = _samples(700)
    memory, queued = AnalyticMemory(D), list[int]()

    for rows, labels in zip(phi.split(90), y.split(90), strict=True):
        memory.undo_point()
        memory.add(rows, labels, classes=K)
        queued.append(sum(len(rows.y_Q) for rows in memory._queue))

    assert max(queued) < 256 + 90
    assert _same(memory.tensors(), _memory(phi, y).tensors())


def test_restored_memory_goes_on_as_if_never_stopped() -> None:
    phi, y = _samples(700)
    memory, restored = _memory(phi[:330], y[:330]), AnalyticMemory(D)
    memory.scale(0.9)

    restored.restore(_copied(memory))

    assert torch.equal(restored.read_out(0.1).weight_DK, memory.read_out(0.1).weight_DK)
    for each in (memory, restored):
        each.add(phi[330:], y[330:], classes=K)
    assert _same(restored.tensors(), memory.tensors())


@pytest.mark.parametrize("n", [90, 700], ids=["in the queue", "in the panels"])
def test_unlearned_samples_were_never_seen(n: int) -> None:
    phi, y = _samples(1500)

    memory = _memory(phi, y)
    memory.remove(phi[1500 - n :], y[1500 - n :])

    _assert_alike(memory, _memory(phi[: 1500 - n], y[: 1500 - n]))


def test_merged_memories_know_both_streams() -> None:
    phi, y = _samples(1500)
    few = y < 5
    memory, other = _memory(phi[few], y[few], classes=5), _memory(phi[~few], y[~few])
    before = _copied(other)

    memory.merge(other)

    _assert_alike(memory, _memory(phi, y))
    assert _same(other.tensors(), before)


def test_merged_faded_memories_are_faded_each_on_its_own() -> None:
    phi, y = _samples(900)
    memory, other = _memory(phi[:600], y[:600]), _memory(phi[600:], y[600:])
    expected = 0.5 * _gram(memory) + 0.25 * _gram(other)

    memory.scale(0.5)
    other.scale(0.25)
    memory.merge(other)

    torch.testing.assert_close(_gram(memory), expected, rtol=1e-6, atol=1e-6)


def test_scaled_samples_count_as_their_share() -> None:
    phi, y = _samples(900)
    memory = AnalyticMemory(D)
    for rows, labels in zip(phi.split(100), y.split(100), strict=True):
        memory.scale(0.8)
        memory.add(rows, labels, classes=K)

    share = (0.8 ** torch.arange(8, -1, -1, dtype=torch.float64)).repeat_interleave(100)
    gram = (phi.double() * share[:, None]).T @ phi.double()
    torch.testing.assert_close(memory.counts_K, torch.bincount(y, share, K))
    torch.testing.assert_close(_gram(memory), gram, rtol=1e-6, atol=1e-4)


def test_held_out_samples_miss_one_solve_and_nothing_else() -> None:
    (phi, y), (asked, _) = _samples(900), _samples(200, seed=1)
    memory = _memory(phi, y)
    before = _copied(memory)

    judged = memory.read_out(1e-2, without=(phi[600:], y[600:])).scores(asked)

    assert _range_error(judged, _memory(phi[:600], y[:600]).read_out(1e-2).scores(asked)) < 1e-5
    assert _same(memory.tensors(), before)
    assert _range_error(memory.read_out(1e-2).scores(asked), judged) > 1e-3


@pytest.mark.parametrize("kind", ["lda", "ridge"])
def test_several_ridges_give_what_each_gives_alone(kind: Kind) -> None:
    memory, ridges = _memory(*_samples(400)), [1e-3, 1e-1]

    together = memory.read_outs(ridges, kind=kind)

    for ridge, read_out in zip(ridges, together, strict=True):
        alone = memory.read_out(ridge, kind=kind)
        assert torch.equal(read_out.weight_DK, alone.weight_DK)
        assert torch.equal(read_out.bias_K, alone.bias_K)
    assert not torch.equal(together[0].weight_DK, together[1].weight_DK)


@pytest.mark.parametrize("kind", ["lda", "ridge"])
def test_new_class_is_a_new_column_without_an_answer_until_its_first_sample(kind: Kind) -> None:
    (phi, y), (asked, _) = _samples(600), _samples(50, seed=1)
    known = y != 2
    memory = _memory(phi[known], y[known])
    before = memory.read_out(1e-2, kind=kind)

    memory.add(phi[~known], y[~known], classes=K + 1)
    after = memory.read_out(1e-2, kind=kind)

    assert (before.scores(asked)[:, 2] == -torch.inf).all()
    assert before.scores(asked)[:, [0, 1, 3, 4, 5, 6]].isfinite().all()
    assert before.log_frequency_K[2] == -torch.inf
    assert after.scores(asked)[:, :K].isfinite().all()
    assert (after.scores(asked)[:, K] == -torch.inf).all()


def test_empty_memory_answers_no_class() -> None:
    memory = AnalyticMemory(D)
    memory.add(torch.empty(0, D), torch.empty(0, dtype=torch.int64), classes=3)

    scores = memory.read_out(1e-2).scores(torch.ones(2, D))

    assert torch.equal(scores, torch.full((2, 3), -torch.inf))


def test_one_sample_of_each_class_is_told_by_the_nearest_mean() -> None:
    phi, _ = _samples(K)
    y = torch.arange(K)

    scores = _memory(phi, y).read_out(1e-2).scores(phi)

    assert torch.equal(scores.argmax(1), y)


def test_constant_features_give_equal_scores() -> None:
    scores = _memory(torch.zeros(4, D), torch.arange(4)).read_out(1e-2).scores(torch.zeros(1, D))

    assert torch.equal(scores, torch.zeros(1, K).index_fill(1, torch.arange(4, K), -torch.inf))


def test_prediction_does_not_depend_on_batch_mates() -> None:
    (phi, y), (asked, _) = _samples(600), _samples(40, seed=1)
    read_out: ReadOut = _memory(phi, y).read_out(1e-2)

    alone = torch.cat([read_out.scores(row) for row in asked.split(1)])

    assert _range_error(read_out.scores(asked), alone) < 1e-6


def test_wrong_number_of_features_is_refused_and_leaves_no_trace() -> None:
    memory = _memory(*_samples(20))
    before = _copied(memory)

    with pytest.raises(ShapeError, match=r"\[2, 300\], got \(2, 299\)"):
        memory.add(torch.zeros(2, D - 1), torch.tensor([0, 9]), classes=10)
    with pytest.raises(ShapeError, match="300 features, got 4"):
        memory.merge(AnalyticMemory(4))

    assert _same(memory.tensors(), before)


def test_infinite_features_are_named_and_not_solved() -> None:
    phi, y = _samples(20)
    phi[3, 5] = torch.inf

    with pytest.raises(NonFiniteError, match="not finite"):
        _memory(phi, y).read_out(1e-2)


@pytest.mark.parametrize("features", [5, 256, 600])
def test_bytes_are_those_of_the_tensors_with_the_queue_full(features: int) -> None:
    memory = AnalyticMemory(features)
    memory.add(torch.zeros(255, features), torch.zeros(255, dtype=torch.int64), classes=3)

    held = sum(tensor.nbytes for name, tensor in memory.tensors().items() if name != "faded")

    one_more = 4 * features + 12
    assert memory.nbytes == memory_bytes(features, 3) == held + one_more
