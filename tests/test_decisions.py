"""Decisions on disk: followed in order, never half, never changed."""

from dataclasses import replace
from pathlib import Path

import pytest

from service.errors import CorruptState
from service.store.decisions import FILE, Decision, Decisions

KILLED = Decision(kind="skip", after=4, until=5, reason="the worker died 3 times")
WENT_BACK = Decision(kind="skip", after=7, until=9, reason="diverged", checkpoint=2)
GREW = Decision(kind="expand", after=12, until=12, reason="drift")


def written(state_dir: Path) -> Path:
    decisions = Decisions(state_dir)
    for one in (KILLED, WENT_BACK, GREW):
        decisions.add(one)
    return state_dir / FILE


def test_decisions_come_back_in_order(state_dir: Path) -> None:
    written(state_dir)

    assert list(Decisions(state_dir)) == [KILLED, WENT_BACK, GREW]


def test_entries_are_set_aside_from_behind_the_first_number_to_the_last(state_dir: Path) -> None:
    written(state_dir)
    decisions = Decisions(state_dir)

    skipped = [number for number in range(1, 14) if decisions.skips(number) is not None]

    assert skipped == [5, 8, 9]
    assert decisions.skips(9) == "diverged"
    assert [number for number in range(1, 14) if decisions.expands(number)] == [12]


def test_what_was_decided_of_numbers_that_others_have_now_holds_no_longer(state_dir: Path) -> None:
    written(state_dir)
    Decisions(state_dir).add(Decision(kind="renumber", after=8, until=8, reason="lost"))
    decisions = Decisions(state_dir)

    skipped = [number for number in range(1, 14) if decisions.skips(number) is not None]
    grown = [number for number in range(1, 14) if decisions.expands(number)]
    decisions.add(replace(KILLED, after=10, until=11))

    assert (skipped, grown) == ([5, 8], [])
    assert [number for number in range(9, 14) if decisions.skips(number) is not None] == [11]


def test_only_decisions_not_followed_yet_are_rollbacks_to_follow(state_dir: Path) -> None:
    written(state_dir)
    decisions = Decisions(state_dir)

    assert decisions.rollbacks(since=0) == [(2, WENT_BACK)]
    assert decisions.rollbacks(since=2) == []


def test_a_line_torn_by_a_crash_was_never_decided_and_is_overwritten(state_dir: Path) -> None:
    path = written(state_dir)
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])

    decisions = Decisions(state_dir)
    assert list(decisions) == [KILLED, WENT_BACK]
    decisions.add(GREW)

    assert path.read_bytes() == whole


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_changed_line_is_detected(state_dir: Path, place: int) -> None:
    path = written(state_dir)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[place] = lines[place].replace(b'"until": ', b'"until": 1')
    path.write_bytes(b"".join(lines))

    with pytest.raises(CorruptState, match=f"line {place + 1} of"):
        Decisions(state_dir)


@pytest.mark.parametrize("place", [0, 1])
def test_a_missing_line_is_detected(state_dir: Path, place: int) -> None:
    path = written(state_dir)
    lines = path.read_bytes().splitlines(keepends=True)
    del lines[place]
    path.write_bytes(b"".join(lines))

    with pytest.raises(CorruptState, match=f"line {place + 1} of .* line before it is missing"):
        Decisions(state_dir)


@pytest.mark.parametrize("line", [b"{}\n", b"no JSON\n", b'{"sha256": 1}\n', b"[]\n"])
def test_a_line_that_is_no_decision_is_named(state_dir: Path, line: bytes) -> None:
    (state_dir / FILE).write_bytes(line)

    with pytest.raises(CorruptState, match="line 1 of"):
        Decisions(state_dir)


def test_a_decision_that_could_not_be_written_was_not_taken(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(state_dir)
    decisions = Decisions(state_dir)

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", full)
        with pytest.raises(OSError, match="No space"):
            decisions.add(KILLED)
    assert len(decisions) == 3
    decisions.add(GREW)

    assert list(Decisions(state_dir)) == [KILLED, WENT_BACK, GREW, GREW]
