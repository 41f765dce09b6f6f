"""An absent system package is a skip on a developer's machine and a failure in CI."""

import pytest

from tests.system_packages import require

ABSENT = "no-such-program-anywhere"


def test_a_program_that_is_there_is_found() -> None:
    assert require("sh").endswith("/sh")


def test_an_absent_program_skips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REQUIRE_SYSTEM_PACKAGES", raising=False)

    with pytest.raises(pytest.skip.Exception, match=ABSENT):
        require(ABSENT)


def test_an_absent_program_fails_where_it_was_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUIRE_SYSTEM_PACKAGES", "1")

    with pytest.raises(pytest.fail.Exception, match=ABSENT):
        require(ABSENT)
