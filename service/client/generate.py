"""Makes the synchronous edition of the client: `python -m service.client.generate`.

It takes the `async` out, word by word; what the two editions do is the same by construction. The
idea is that of encode/httpcore's `unasync.py`.
"""

import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
SOURCES = sorted((HERE / "asynchronous").glob("*.py"))
HEADER = "# Made out of {source} by `make generate`; changes belong there.\n"
WORDS = (
    ("from asyncio import sleep", "from time import sleep"),
    ("The client with `async` and `await`: written by hand, source of the other edition.",
     "The client without `async`: made by `generate`; from one thread at a time."),
    (r"async (def|with|for)", r"\1"),
    ("await ", ""),
    (r"Async([A-Z]\w+)", r"\1"),
    (r"__a(enter|exit)__", r"__\1__"),
    (r"a(close|read|iter_lines)\(", r"\1("),
    (r"client\.asynchronous", "client.synchronous"),
)  # fmt: skip
"""What stands in one edition and in the other, as regular expressions."""


def editions() -> dict[Path, str]:
    """Return the files of the synchronous edition as they should be."""
    return {
        HERE / "synchronous" / source.name: synchronous(
            HEADER.format(source=source.relative_to(HERE)) + source.read_text(encoding="utf-8")
        )
        for source in SOURCES
    }


def synchronous(source: str) -> str:
    """Return the synchronous edition of an asynchronous source, formatted."""
    for before, after in WORDS:
        source = re.sub(rf"(?<!\w){before}", after, source)
    return _ruff("format", _ruff("check", source, "--select", "I", "--fix", "--quiet"))


def _ruff(command: str, source: str, *options: str) -> str:
    """Return what one command of ruff makes of a source."""
    called = [sys.executable, "-m", "ruff", command, *options, "--stdin-filename", __file__, "-"]
    return subprocess.run(called, input=source, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    for path, text in editions().items():
        path.write_text(text, encoding="utf-8")
