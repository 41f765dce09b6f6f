"""Programs that tests take from the system: absent means skipped, or failed where CI promised them.

Set REQUIRE_SYSTEM_PACKAGES=1 where they are installed on purpose, so that no skip hides there.
"""

import os
import shutil

import pytest


def require(program: str) -> str:
    """Return the path of `program`; without it skip the test, or fail it where it is required."""
    path = shutil.which(program)
    if path is not None:
        return path
    reason = f"{program} is not installed (Debian has a package)"
    if os.environ.get("REQUIRE_SYSTEM_PACKAGES") == "1":
        pytest.fail(reason)
    pytest.skip(reason)
