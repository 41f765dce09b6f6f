"""The report: one page that a service's model fills, and that no label can take over."""

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from service import cli
from service.errors import Misused
from service.report.charts import shares
from service.settings import Settings

HOSTILE = "</title><script>alert(1)</script>"
X = np.stack([np.zeros((8, 8), np.uint8), np.full((8, 8), 200, np.uint8)] * 10)


def levit(*arguments: str) -> Result:
    """Run `levit` in this process."""
    return CliRunner().invoke(cli.app, arguments)


@pytest.fixture
def url(live: Settings) -> str:
    return f"http://127.0.0.1:{live.port}"


@pytest.mark.usefixtures("learning")
def test_the_page_tells_the_model_and_no_label_becomes_markup(url: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=X, y=np.array([HOSTILE, "plain"] * 10))
    levit("observe", str(tmp_path / "data.npz"), "--batch-size", "4", "--url", url)

    done = levit("report", str(tmp_path / "out.html"), "--url", url)

    page = (tmp_path / "out.html").read_text(encoding="utf-8")
    assert done.exit_code == 0, done.exception
    assert "20 samples learned by" in page
    assert "&lt;/title&gt;&lt;script&gt;alert(1)" in page
    assert "<script" not in page
    assert "http" not in page


@pytest.mark.usefixtures("learning")
def test_before_anything_was_learned_there_is_no_page(url: str, tmp_path: Path) -> None:
    done = levit("report", str(tmp_path / "out.html"), "--url", url)

    assert isinstance(done.exception, Misused)
    assert not (tmp_path / "out.html").exists()


def test_a_hostile_name_of_a_bar_stays_text() -> None:
    assert "<script" not in shares([(HOSTILE, 1)], x_label="class", y_label="%", name=HOSTILE)
