"""The replay buffer: a uniform sample of the whole past, the same in any order."""

from collections import Counter
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from learner.reservoir import AddReport, ReplayBuffer
from learner.splitmix import sample_keys

CAPACITY = 20


def _buffer(capacity: int = CAPACITY, *, salt: int = 1, share: float = 0.25) -> ReplayBuffer:
    return ReplayBuffer(capacity, (2,), salt=salt, share=share)


def _ids(samples: list[int]) -> Tensor:
    """Return the id of each sample of a stream that comes in mini-batches of 10."""
    n = torch.tensor(samples, dtype=torch.int64)
    return torch.stack([n // 10, n % 10], 1)


def _one(n: int) -> Tensor:
    return torch.zeros(n, dtype=torch.int32)


def _add(buffer: ReplayBuffer, samples: list[int], *, source: int = 0) -> AddReport:
    n = torch.tensor(samples, dtype=torch.int64)
    x = torch.stack([n, -n], 1).float()
    derived = dict.fromkeys(buffer.columns, 3 * x)
    return buffer.add(x, n, _ids(samples), _one(len(n)) + source, **derived)


def _numbers(ids_B2: Tensor) -> list[int]:
    return sorted((10 * ids_B2[:, 0] + ids_B2[:, 1]).tolist())


def _members(buffer: ReplayBuffer) -> list[int]:
    return _numbers(buffer.tensors()["ids"])


def _smallest(samples: range, *, salt: int = 1) -> list[int]:
    """Return the samples of the smallest keys, by a SplitMix64 in Python's whole numbers."""
    word = 2**64

    def splitmix(seed: int, i: int) -> int:
        z = (seed + (i + 1) * 0x9E3779B97F4A7C15) % word
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % word
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % word
        return z ^ (z >> 31)

    assert [splitmix(1234567, i) for i in range(2)] == [6457827717110365317, 3203168211198807973]

    def key(n: int) -> int:
        unsigned = splitmix(splitmix(splitmix(salt, 0), n // 10), n % 10)
        return unsigned - word if unsigned >= word // 2 else unsigned

    return sorted(sorted(samples, key=key)[:CAPACITY])


@settings(max_examples=40, deadline=None)
@given(st.permutations(range(60)), st.lists(st.integers(0, 60), max_size=8))
def test_members_are_the_smallest_keys_whatever_the_order_and_the_cut(
    order: list[int], cuts: list[int]
) -> None:
    buffer, edges = _buffer(), [0, *sorted(cuts), 60]

    for start, end in pairwise(edges):
        _add(buffer, order[start:end])
        assert len(buffer) == min(CAPACITY, end)

    assert _members(buffer) == _smallest(range(60))


@given(st.lists(st.lists(st.integers(0, 99), unique=True, max_size=15), max_size=12))
def test_taking_samples_in_again_changes_nothing(batches: list[list[int]]) -> None:
    buffer = _buffer()
    for batch in batches:
        _add(buffer, batch)
    before = {name: tensor.clone() for name, tensor in buffer.tensors().items()}

    reports = [_add(buffer, batch) for batch in batches]

    assert [len(report.added) for report in reports] == [0] * len(batches)
    assert all(torch.equal(buffer.tensors()[name], before[name]) for name in before)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 30), max_size=10))
def test_report_names_what_came_and_what_went(sizes: list[int]) -> None:
    buffer, sent = _buffer(), 0
    members = set[int]()

    for size in sizes:
        batch = list(range(sent, sent + size))
        sent += size
        report = _add(buffer, batch)
        members |= {batch[i] for i in report.added.tolist()}
        members -= set(_numbers(report.evicted_E2))

    assert sorted(members) == _members(buffer)


def test_every_array_holds_the_same_member_in_the_same_slot() -> None:
    buffer = _buffer(300)
    buffer.register("tripled", (2,), torch.float16)
    for start in range(0, 1000, 40):
        _add(buffer, list(range(start, start + 40)))

    state, n = buffer.tensors(), len(buffer)
    number = 10 * state["ids"][:, 0] + state["ids"][:, 1]

    assert n == 300
    assert torch.equal(state["y"], number)
    assert torch.equal(state["x"], torch.stack([number, -number], 1).float())
    assert torch.equal(buffer.columns["tripled"][:n], (3 * state["x"]).half())


def _chi_square(kept: list[int]) -> float:
    """Return the statistic of how evenly members come from ten stretches of 1,000 arrivals."""
    counts = Counter(n // 100 for n in kept)
    expected = len(kept) / 10
    return sum((counts[k] - expected) ** 2 / expected for k in range(10))


def test_members_are_uniform_over_the_past() -> None:
    kept = []
    for salt in range(200):
        buffer = _buffer(50, salt=salt)
        _add(buffer, list(range(1000)))
        kept += _members(buffer)

    quantile = 27.9  # 99.9 % at 9 degrees of freedom
    assert _chi_square(kept) < quantile
    assert _chi_square([n for n in range(1000) if n >= 200]) > quantile  # a window of the newest


def test_keys_of_neighbouring_ids_are_spread_over_the_whole_range() -> None:
    keys = sample_keys(_ids(list(range(20_000))), salt=-5)

    quarters = torch.bincount((keys >> 62) + 2, minlength=4).double()
    assert len(keys.unique()) == 20_000
    assert ((quarters - 5000).square() / 5000).sum() < 16.3  # 99.9 %, 3 degrees of freedom


def test_another_salt_keeps_other_samples() -> None:
    members = []
    for salt in (1, 2):
        buffer = _buffer(salt=salt)
        _add(buffer, list(range(1000)))
        members.append(_members(buffer))

    assert members[0] != members[1]


@pytest.mark.parametrize("members", [3, 200, 3000], ids=["filling", "growing", "full"])
def test_undo_leaves_no_trace(members: int) -> None:
    buffer, twin = (ReplayBuffer(2000, (2,), salt=1) for _ in range(2))
    for each in (buffer, twin):
        each.register("tripled", (2,), torch.float32)
        x = torch.zeros(members, 2, dtype=torch.uint8)
        ids = _ids(list(range(members)))
        each.add(x, torch.zeros(members).long(), ids, _one(members), tripled=x)

    point = buffer.undo_point()
    _add(buffer, list(range(5000, 5400)))
    _add(buffer, list(range(5400, 5700)))
    changed = not torch.equal(buffer.tensors()["ids"], twin.tensors()["ids"])
    buffer.undo(point)

    assert changed
    assert buffer.nbytes == twin.nbytes
    _assert_equal(buffer, twin)
    _add(buffer, list(range(6000, 6400)))
    _add(twin, list(range(6000, 6400)))
    _assert_equal(buffer, twin)


def _assert_equal(one: ReplayBuffer, other: ReplayBuffer) -> None:
    ours, theirs = one.tensors(), other.tensors()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=0)
    for name, column in one.columns.items():
        assert torch.equal(column[: len(one)], other.columns[name][: len(other)])
    draws = [each.draw(30, torch.Generator().manual_seed(0)) for each in (one, other)]
    assert torch.equal(*draws)


@pytest.mark.parametrize("members", [7, 500], ids=["filling", "full"])
def test_restored_buffer_goes_on_as_if_never_stopped(members: int) -> None:
    buffer, restored = _buffer(300), _buffer(300)
    _add(buffer, list(range(members)))

    restored.restore({name: tensor.clone() for name, tensor in buffer.tensors().items()})

    _assert_equal(restored, buffer)
    for each in (buffer, restored):
        _add(each, list(range(members, members + 250)))
    _assert_equal(restored, buffer)
    assert restored.nbytes == buffer.nbytes


def test_images_stay_bytes_until_a_float_comes() -> None:
    buffer = ReplayBuffer(4, (1, 2, 2), salt=0)
    none = torch.tensor([-1])
    buffer.add(torch.full((1, 1, 2, 2), 51, dtype=torch.uint8), none, _ids([0]), _one(1))
    bytes_held = buffer.x.dtype

    buffer.add(torch.full((1, 1, 2, 2), 0.4), none, _ids([1]), _one(1))
    buffer.add(torch.full((1, 1, 2, 2), 153, dtype=torch.uint8), none, _ids([2]), _one(1))

    assert bytes_held == torch.uint8
    torch.testing.assert_close(buffer.x[:3, 0, 0, 0], torch.tensor([0.2, 0.4, 0.6]))


def test_storage_follows_the_members_not_the_capacity() -> None:
    buffer = ReplayBuffer(100_000, (3, 32, 32), salt=0)
    empty = buffer.nbytes

    x = torch.zeros(300, 3, 32, 32, dtype=torch.uint8)
    buffer.add(x, torch.zeros(300).long(), _ids(list(range(300))), _one(300))

    assert empty == 0
    assert x.nbytes < buffer.nbytes < 2 * x.nbytes


def test_draw_makes_whole_passes_and_a_partial_one() -> None:
    buffer = _buffer(10)
    _add(buffer, list(range(40)))

    counts = Counter(buffer.draw(34, torch.Generator().manual_seed(0)).tolist())

    assert sorted(counts) == list(range(10))
    assert sorted(counts.values()) == [3] * 6 + [4] * 4


@pytest.mark.parametrize("n", [3, 7], ids=["few", "most"])
def test_partial_draws_are_distinct_and_uniform_in_every_place(n: int) -> None:
    buffer, generator = _buffer(10), torch.Generator().manual_seed(0)
    _add(buffer, list(range(40)))

    draws = torch.stack([buffer.draw(n, generator) for _ in range(3000)])

    counts = torch.stack([torch.bincount(place, minlength=10) for place in draws.T]).double()
    assert (draws.sort(1).values.diff(dim=1) > 0).all()
    assert ((counts - 300).square() / 300).sum(1).max() < 31  # 99.97 % at 9 degrees of freedom


def test_small_draw_does_not_order_all_members(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer, generator = _buffer(500), torch.Generator().manual_seed(0)
    _add(buffer, list(range(500)))

    def refuse(*_: object, **__: object) -> Tensor:
        raise AssertionError

    monkeypatch.setattr(torch, "randperm", refuse)
    few = buffer.draw(54, generator)

    assert len(few.unique()) == 54
    with pytest.raises(AssertionError):
        buffer.draw(500, generator)


def test_empty_buffer_replays_nothing() -> None:
    buffer = _buffer()

    assert buffer.draw(5, torch.Generator()).numel() == 0
    report = _add(buffer, [])
    assert len(report.added) == len(report.evicted_E2) == len(buffer) == 0
