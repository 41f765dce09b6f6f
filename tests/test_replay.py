"""The window memory: first in, first out, within capacity, evenly replayed."""

from collections import Counter

import torch
from hypothesis import given
from hypothesis import strategies as st

from learner import paper
from learner.arrivals import Arrivals
from learner.replay import WindowMemory


def _memory(capacity: int = 10) -> WindowMemory:
    return WindowMemory(paper((3,), capacity=capacity), torch.device("cpu"))


def _add(memory: WindowMemory, values: list[int], *, source: int = 0) -> range:
    n, frozen = len(values), memory.means_MJZ.shape[1]
    arrivals = Arrivals(
        torch.tensor(values, dtype=torch.float32)[:, None].expand(n, 3),
        torch.tensor(values),
        torch.stack([torch.tensor(values), torch.zeros(n, dtype=torch.int64)], 1),
        torch.full((n,), fill_value=True),
        torch.full((n,), source, dtype=torch.int32),
    )
    known = (torch.zeros(n, frozen, memory.latent), torch.zeros(n, frozen, memory.width))
    return memory.add(arrivals, known)


@given(st.lists(st.integers(1, 25), max_size=12))
def test_window_holds_the_newest_samples_in_every_array(sizes: list[int]) -> None:
    memory, sent = _memory(), list[int]()

    for size in sizes:
        batch = list(range(len(sent), len(sent) + size))
        added = _add(memory, batch)
        sent += batch
        assert added == range(max(0, size - 10), size)

    newest = sorted(sent[-10:])
    n = len(memory)
    assert n == len(newest)
    assert sorted(memory.y_M[:n].tolist()) == newest
    assert torch.equal(memory.x[:n, 0].long(), memory.y_M[:n])
    assert torch.equal(memory.ids_M2[:n, 0], memory.y_M[:n])


def test_draw_makes_whole_passes_and_a_partial_one() -> None:
    memory = _memory()
    _add(memory, list(range(10)))

    counts = Counter(memory.draw(34, torch.Generator().manual_seed(0)).tolist())

    assert sorted(counts) == list(range(10))
    assert sorted(counts.values()) == [3] * 6 + [4] * 4


def test_partial_draws_are_uniform() -> None:
    memory, generator = _memory(), torch.Generator().manual_seed(0)
    _add(memory, list(range(10)))

    counts = Counter(i for _ in range(2000) for i in memory.draw(3, generator).tolist())

    chi_square = sum((counts[i] - 600) ** 2 / 600 for i in range(10))
    assert chi_square < 27.9  # 99.9 % quantile at 9 degrees of freedom


def test_a_purged_window_keeps_the_others_and_still_drops_the_oldest_first() -> None:
    memory = _memory()
    for value in range(14):
        _add(memory, [value], source=value % 3)

    dropped = memory.drop(1)
    left = memory.y_M[: len(memory)].tolist()
    _add(memory, [20, 21, 22, 23, 24])

    assert (dropped, left) == (4, [5, 6, 8, 9, 11, 12])
    assert sorted(memory.y_M.tolist()) == [6, 8, 9, 11, 12, 20, 21, 22, 23, 24]
    assert torch.equal(memory.x[:, 0].long(), memory.y_M)
    assert torch.equal(memory.ids_M2[:, 0], memory.y_M)


def test_empty_memory_replays_nothing() -> None:
    memory = _memory()
    assert memory.draw(5, torch.Generator()).numel() == 0

    _add(memory, [1, 2])
    assert memory.draw(0, torch.Generator()).numel() == 0

    memory.clear(frozen=1)
    assert memory.draw(5, torch.Generator()).numel() == 0
    assert not memory.full
