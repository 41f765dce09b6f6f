"""What the service answers is what its documents say, whatever is asked."""

import json
import re
import subprocess
from pathlib import Path

import httpx
import pytest

from tests.chaos.parts import ROOT
from tests.conformance import asked, asking

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

EXAMPLES = "8"


@pytest.mark.parametrize("keys", [False, True], ids=["insecure", "with keys"])
def test_all_checks_hold_and_no_answer_is_5xx(tmp_path: Path, *, keys: bool) -> None:
    report = tmp_path / "report.ndjson"
    with asked(tmp_path, keys=keys) as (service, token):
        code, said = ask(
            f"{service.url}/openapi.json",
            token,
            *("--max-examples", EXAMPLES, "--seed", "0"),
            *("--report", "ndjson", "--report-ndjson-path", str(report)),
        )
        alive = httpx.get(f"{service.url}/livez").status_code

    assert code == 0, said
    assert alive == 200
    assert "Selected: " in said
    answered = statuses(report)
    assert len(answered) > 1000
    assert [status for status in answered if status >= 500] == []


def ask(document: str, token: str, *options: str) -> tuple[int, str]:
    """Return the exit code of schemathesis for a document, and what it said."""
    done = subprocess.run(
        asking(document, token, *options),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


def statuses(report: Path) -> list[int]:
    """Return the status of every answer of a report."""
    return [int(one) for one in re.findall(r'"status_code": ?(\d+)', report.read_text())]


def test_a_document_that_says_less_than_is_answered_would_be_noticed(tmp_path: Path) -> None:
    with asked(tmp_path, keys=False) as (service, token):
        document = httpx.get(f"{service.url}/openapi.json").json()
        del document["paths"]["/predict"]["post"]["responses"]["415"]
        shorter = tmp_path / "openapi.json"
        shorter.write_text(json.dumps(document))
        code, said = ask(str(shorter), token, "--url", service.url, "--include-path", "/predict")

    assert code == 1
    assert "Undocumented status code" in said
