"""README's "Five minutes": each command as it stands there, in an empty directory, offline."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.parts import free_port
from tests.system_packages import require

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(bash)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NOWHERE = "http://127.0.0.1:9"
"""A proxy that is not there."""
MARK = "-- end of what block {} says --"


def section() -> list[tuple[str, str | None]]:
    """Return the commands of each block, with what README says that they say."""
    text = README.split("\n## Five minutes\n", 1)[1].split("\n## ", 1)[0]
    found: list[tuple[str, str | None]] = []
    for language, block in BLOCK.findall(text):
        if language:
            found.append((block, None))
        elif found[-1][1] is None:
            found[-1] = (found[-1][0], block)
    return found


def alone() -> list[str]:
    """Return what runs a command where nothing but this machine can be reached, if possible."""
    without = ["unshare", "--map-root-user", "--net"]
    if shutil.which("unshare") and shutil.which("ip"):
        tried = subprocess.run([*without, "ip", "link", "set", "lo", "up"], check=False)
        if tried.returncode == 0:
            return [*without, "sh", "-c", 'ip link set lo up; exec "$@"', "sh"]
    return []


def run(commands: list[str], directory: Path) -> list[str]:
    """Run blocks of commands in one shell as a reader does; return what each one says.

    Only the port is another, as 8000 may be taken.
    """
    port = str(free_port())
    script = "".join(f"{block}echo '{MARK.format(at)}'\n" for at, block in enumerate(commands))
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(directory),
        "COLUMNS": "100",
        "LEVIT_PORT": port,
        "LEVIT_WORKER_METRICS_PORT": str(free_port()),
        "http_proxy": NOWHERE,
        "https_proxy": NOWHERE,
        "no_proxy": "localhost,127.0.0.1",
    }
    done = subprocess.run(
        [*alone(), "bash", "-euc", script.replace("localhost:8000", f"localhost:{port}")],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    log = directory / "levit.log"
    assert done.returncode == 0, done.stderr + (log.read_text() if log.exists() else "")
    return re.split(MARK.format(r"\d+") + "\n", done.stdout)[:-1]


def test_each_command_of_five_minutes_says_what_the_readme_says(tmp_path: Path) -> None:
    require("curl")
    blocks = section()

    said = run([commands for commands, _ in blocks], tmp_path)

    assert len(said) == len(blocks) >= 5
    for (_, expected), found in zip(blocks, said, strict=True):
        if expected is not None:
            assert list(json.loads(found)) == list(json.loads(expected))
    assert json.loads(said[2])["labels"] == json.loads(blocks[2][1] or "")["labels"] == ["run"]
    assert "learned 3 samples" in said[-1] or "learned 4 samples" in said[-1]
    assert "Traceback" not in (tmp_path / "levit.log").read_text()


def test_a_command_that_fails_would_be_noticed(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="no-such-command"):
        run(["no-such-command\n"], tmp_path)


def test_the_section_has_every_step() -> None:
    commands = "".join(block for block, _ in section())

    for step in ("keys create", "serve", "/observe", "/predict", "keep=true", "/labels", "watch"):
        assert step in commands
