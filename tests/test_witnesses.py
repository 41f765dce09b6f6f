"""Where several sources write, what one of them alone finds new makes no expert for everybody."""

import pytest
import torch

from learner import witnesses
from learner.adaptive import AdaptiveLEViT
from learner.adaptive_state import dump, restore
from learner.witnesses import LATELY, Witnesses
from tests.adaptive_streams import CONFIGS, HALF
from tests.streams import BATCH, Shift

QUIET = 30
"""Mini-batches before anything changes."""


class Streams:
    """A learner, and sources that write in turn what has changed for some of them."""

    def __init__(self) -> None:
        self.levit = AdaptiveLEViT(CONFIGS["vectors"])
        self._shift = Shift(self.levit.config.input_shape)

    def writes(self, source: int, *, changed: bool) -> None:
        """Let the learner observe a mini-batch of a source."""
        k = HALF if changed else 0
        y_B = torch.randint(k, k + HALF, (BATCH,), generator=self._shift.generator)
        self.levit.observe(self._shift.draw(y_B), y_B, source=source)

    @property
    def experts(self) -> int:
        """How many there are."""
        return len(self.levit.mixture.experts)


def _quiet(sources: tuple[int, ...]) -> Streams:
    streams = Streams()
    for number in range(QUIET):
        streams.writes(sources[number % len(sources)], changed=False)
    return streams


def _flooded(sources: tuple[int, int], entries: int) -> Streams:
    """Return what the second source's flood of new samples has made; each tenth entry is usual."""
    streams = _quiet(sources)
    for number in range(entries):
        flood = number % 10 != 9
        streams.writes(sources[flood], changed=flood)
    return streams


def test_novelty_of_one_of_two_sources_expands_nothing_and_is_counted() -> None:
    streams = _flooded((1, 2), entries=30)
    for _ in range(LATELY):
        streams.writes(1, changed=False)

    assert streams.experts == 1
    assert streams.levit.growth.witnesses.refused == 1


def test_the_same_samples_from_one_source_expand() -> None:
    """Negative control of the test above."""
    streams = _flooded((1, 1), entries=30)

    assert streams.experts == 2
    assert streams.levit.growth.witnesses.refused == 0


def test_a_change_that_both_see_expands_however_late_the_second_one_comes() -> None:
    streams = _flooded((1, 2), entries=60)
    assert streams.experts == 1
    for number in range(10):
        streams.writes(1 + number % 2, changed=True)

    assert streams.experts == 2


def test_an_alarm_that_waits_survives_a_restart() -> None:
    streams = _flooded((1, 2), entries=40)
    assert streams.levit.growth.witnesses.since is not None

    again = restore(dump(streams.levit))

    assert again.growth.witnesses == streams.levit.growth.witnesses


def test_a_source_that_fell_silent_is_no_writer_any_more() -> None:
    usual, unusual = torch.tensor([0.5, 0.9]), torch.tensor([0.01, 0.02])
    both = Witnesses().heard(1, 1, usual).heard(2, 2, unusual)

    assert both.alone
    assert both.heard(2, LATELY, unusual).alone
    assert not both.heard(2, LATELY + 1, unusual).alone


def test_a_second_witness_is_one_whose_own_samples_are_unusual() -> None:
    unusual = torch.full((10,), 0.01)
    both = Witnesses().heard(1, 1, torch.full((20,), 0.5)).heard(2, 2, unusual)

    assert both.alone
    assert not both.heard(1, 3, unusual).alone


def test_sources_beyond_a_bound_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(witnesses, "_MOST", 3)
    known = Witnesses()
    for source in range(10):
        known = known.heard(source, source, torch.tensor([0.5]))

    assert [one.source for one in known.writers] == [7, 8, 9]
