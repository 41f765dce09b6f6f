"""The share of one source in the replay buffer: a flood takes no room that others need."""

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from learner.reservoir import ReplayBuffer
from learner.splitmix import sample_keys

CAPACITY = 20
SALT = 1
Sample = tuple[int, int]
"""Entry number, which is the sample's only name here, and source."""


def _buffer(*, capacity: int = CAPACITY, share: float = 0.25) -> ReplayBuffer:
    return ReplayBuffer(capacity, (1,), salt=SALT, share=share)


def _ids(numbers: list[int]) -> Tensor:
    n = torch.tensor(numbers, dtype=torch.int64)
    return torch.stack([n, torch.zeros_like(n)], 1)


def _add(buffer: ReplayBuffer, samples: list[Sample]) -> None:
    n = torch.tensor([number for number, _ in samples], dtype=torch.int64)
    sources = torch.tensor([source for _, source in samples], dtype=torch.int32)
    buffer.add(n[:, None].float(), n, _ids(n.tolist()), sources)


def _members(buffer: ReplayBuffer) -> set[Sample]:
    state = buffer.tensors()
    assert torch.equal(state["x"][:, 0].long(), state["ids"][:, 0])
    return set(zip(state["ids"][:, 0].tolist(), state["source"].tolist(), strict=True))


def _by_source(buffer: ReplayBuffer) -> list[int]:
    return torch.bincount(buffer.tensors()["source"]).tolist()


def _key(sample: Sample) -> int:
    return int(sample_keys(_ids([sample[0]]), SALT))


def _naive(members: set[Sample], new: list[Sample], share: float) -> set[Sample]:
    """Return the members after some came, one leaving after the other."""
    members = members | set(new)
    most = max(int(share * CAPACITY), -(-CAPACITY // len({source for _, source in members})))
    while len(members) > CAPACITY:
        counts = Counter(source for _, source in members)
        over = [one for one in members if counts[one[1]] > most]
        members.remove(max(over or members, key=_key))
    return members


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from([0, 0, 0, 0, 1, 1, 2, 3, 4]), max_size=25), max_size=9),
    st.sampled_from([0.05, 0.25, 0.6, 1.0]),
)
def test_who_leaves_is_the_largest_key_among_those_over_their_share(
    batches: list[list[int]], share: float
) -> None:
    buffer, sent, expected = _buffer(share=share), 0, set[Sample]()

    for sources in batches:
        new = list(enumerate(sources, sent))
        sent += len(new)
        _add(buffer, new)
        if new:
            expected = _naive(expected, new, share)
        assert _members(buffer) == expected


def _flooded(share: float) -> ReplayBuffer:
    """Return a buffer that four modest sources and one of a hundred times as much have written."""
    buffer, sent = _buffer(capacity=2000, share=share), 0
    for _ in range(10):
        for source, n in enumerate([10_000, 100, 100, 100, 100]):
            _add(buffer, [(sent + i, source) for i in range(n)])
            sent += n
    return buffer


def test_a_flood_has_at_most_its_share_where_others_can_fill_the_rest() -> None:
    flood, *others = _by_source(_flooded(0.25))

    assert flood == 500
    assert sum(others) == 1500


def test_without_a_share_the_flood_has_nearly_all() -> None:
    assert _by_source(_flooded(1.0))[0] > 1850


@pytest.mark.parametrize("sources", [2, 3])
def test_few_sources_share_evenly_whoever_writes_most(sources: int) -> None:
    buffer = _buffer(capacity=300)

    for number in range(100):
        _add(buffer, [(number * 1000 + i, 0) for i in range(400)])
        _add(buffer, [(number * 1000 + 500 + i, 1 + i % (sources - 1)) for i in range(20)])

    assert _by_source(buffer) == [300 // sources] * sources


def test_a_flood_fills_what_nobody_needs_and_gives_it_back() -> None:
    buffer = _buffer(capacity=1000)
    _add(buffer, [(i, 0) for i in range(5000)])
    _add(buffer, [(5000 + i, 1) for i in range(30)])
    alone = _by_source(buffer)

    _add(buffer, [(6000 + i, 1 + i % 4) for i in range(4000)])

    assert alone == [970, 30]
    assert _by_source(buffer)[0] == 250


def test_within_its_share_a_source_keeps_a_uniform_sample_of_its_past() -> None:
    buffer = _buffer(capacity=400)
    for start in range(0, 20_000, 100):
        _add(buffer, [(start + i, 0 if i % 10 else 1) for i in range(100)])

    for source in (0, 1):
        kept = {sample for sample in _members(buffer) if sample[1] == source}
        sent = [(n, 0 if n % 10 else 1) for n in range(20_000)]
        theirs = sorted((one for one in sent if one[1] == source), key=_key)
        assert kept == set(theirs[:200])


@pytest.mark.parametrize("members", [60, 600], ids=["filling", "full"])
def test_undo_gives_back_what_others_took(members: int) -> None:
    buffer, twin = _buffer(capacity=300), _buffer(capacity=300)
    for each in (buffer, twin):
        _add(each, [(i, i % 2) for i in range(members)])

    point = buffer.undo_point()
    _add(buffer, [(1000 + i, 2) for i in range(200)])
    changed = _members(buffer) != _members(twin)
    buffer.undo(point)

    assert changed
    for name, tensor in twin.tensors().items():
        assert torch.equal(buffer.tensors()[name], tensor)
    for each in (buffer, twin):
        _add(each, [(2000 + i, 3) for i in range(200)])
    assert torch.equal(buffer.tensors()["ids"], twin.tensors()["ids"])


def test_a_dropped_source_leaves_the_others_in_their_order() -> None:
    buffer = _buffer(capacity=300)
    buffer.register("doubled", (1,), torch.float32)
    numbers = torch.arange(400)
    sources = (numbers % 3).int()
    x = numbers[:, None].float()
    buffer.add(x, numbers, _ids(numbers.tolist()), sources, doubled=2 * x)
    before = buffer.tensors()["ids"][:, 0].tolist()

    x, y_D, ids_D2 = buffer.drop(1)

    left = buffer.tensors()["ids"][:, 0].tolist()
    assert sorted(left + ids_D2[:, 0].tolist()) == sorted(before)
    assert left == [n for n in before if n % 3 != 1]
    assert torch.equal(x[:, 0].long(), y_D)
    assert torch.equal(buffer.columns["doubled"][: len(buffer), 0].long(), 2 * torch.tensor(left))
    assert len(buffer.drop(1)[0]) == 0


def test_a_buffer_goes_on_after_a_drop_as_one_restored_there() -> None:
    buffer, restored = _buffer(capacity=300), _buffer(capacity=300)
    _add(buffer, [(i, i % 3) for i in range(500)])
    buffer.drop(2)

    restored.restore({name: tensor.clone() for name, tensor in buffer.tensors().items()})
    for each in (buffer, restored):
        _add(each, [(1000 + i, i % 5) for i in range(400)])

    for name, tensor in buffer.tensors().items():
        assert torch.equal(restored.tensors()[name], tensor)
