"""SECURITY.md says of each abuse which test shows the defence: those tests are there."""

import re
from pathlib import Path

import pytest

from service.settings import PREFIX, Settings

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
ROWS = {
    cells[0].strip(): cells[-1]
    for line in PAGE.splitlines()
    if line.startswith("| S") and (cells := line.strip("| ").split(" | "))
}


def absent(text: str) -> list[str]:
    """Return the tests that a text names and that are nowhere."""
    found = []
    for file, function in re.findall(r"`(tests/\w+\.py)(?:::(\w+))?`", text):
        path = ROOT / file
        source = path.read_text(encoding="utf-8") if path.exists() else ""
        if not source or (function and f"def {function}(" not in source):
            found.append(f"{file}::{function}")
    return found


def test_every_abuse_has_a_row() -> None:
    assert list(ROWS) == [f"S{number}" for number in range(1, 21)]


@pytest.mark.parametrize("abuse", ROWS)
def test_a_defence_has_a_test_that_is_there(abuse: str) -> None:
    assert "`tests/test_" in ROWS[abuse]
    assert absent(ROWS[abuse]) == []


def test_a_test_that_is_not_there_would_be_noticed() -> None:
    named = "`tests/test_absent.py` `tests/test_security_page.py::test_absent`"

    assert absent(named) == ["tests/test_absent.py::", "tests/test_security_page.py::test_absent"]


def test_the_settings_that_it_names_exist() -> None:
    named = set(re.findall(rf"{PREFIX}([A-Z_]+)", PAGE))

    assert named <= {name.upper() for name in Settings.model_fields}


def test_the_files_that_it_names_exist() -> None:
    named = re.findall(r"`((?:deploy|service)/[\w./-]+\.\w+)`", PAGE)

    assert len(named) > 5
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_readme_leads_to_it() -> None:
    assert "](SECURITY.md)" in (ROOT / "README.md").read_text(encoding="utf-8")
