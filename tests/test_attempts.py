"""How often a worker died during an entry is counted, over any number of restarts."""

from contextlib import suppress
from pathlib import Path

import pytest

from service.worker.attempts import Attempts


def die_during(state_dir: Path, number: int) -> None:
    """Leave the files as a worker that is killed in the middle of an entry."""
    attempts = Attempts(state_dir)
    with suppress(OSError), attempts.of(number):
        left = (state_dir / "attempt").read_bytes()
        raise OSError("unwound")
    attempts.close()
    (state_dir / "attempt").write_bytes(left)


def test_deaths_during_an_entry_add_up(state_dir: Path) -> None:
    for deaths in range(4):
        attempts = Attempts(state_dir)
        assert attempts.deaths(7) == deaths
        assert attempts.deaths(6) == 0
        attempts.close()
        die_during(state_dir, 7)


def test_entries_learned_again_before_it_do_not_clear_its_count(state_dir: Path) -> None:
    die_during(state_dir, 7)
    attempts = Attempts(state_dir)
    for number in (5, 6):
        with attempts.of(number):
            pass
    attempts.close()
    die_during(state_dir, 7)

    assert Attempts(state_dir).deaths(7) == 2


def test_an_entry_that_fails_without_killing_the_worker_is_no_death(state_dir: Path) -> None:
    attempts = Attempts(state_dir)
    with pytest.raises(OSError, match="full"), attempts.of(7):
        raise OSError("full")
    attempts.close()

    assert Attempts(state_dir).deaths(7) == 0


def test_a_death_between_entries_counts_for_none(state_dir: Path) -> None:
    attempts = Attempts(state_dir)
    with attempts.of(7):
        pass
    attempts.close()

    assert [Attempts(state_dir).deaths(number) for number in (0, 7, 8)] == [0, 0, 0]


def test_an_entry_that_is_learned_after_all_is_cleared_for_good(state_dir: Path) -> None:
    die_during(state_dir, 7)
    attempts = Attempts(state_dir)
    with attempts.of(7):
        pass
    attempts.close()

    assert Attempts(state_dir).deaths(7) == 0


def test_counts_that_no_restart_can_need_are_forgotten(state_dir: Path) -> None:
    die_during(state_dir, 7)
    attempts = Attempts(state_dir)
    attempts.forget_until(7)

    assert attempts.deaths(7) == 0
