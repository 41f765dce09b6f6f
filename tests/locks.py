"""The lock files, the floors below which none may fall, and what lies in them, read as data."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
LOCKS = (
    "requirements.lock",
    "requirements-dev.lock",
    "requirements-build.lock",
    "requirements-audit.lock",
)
TOGETHER = LOCKS[:3]
"""Those that one call of pip installs; the scanner has an environment of its own."""
_LOCKED = re.compile(
    r"(?P<name>[\w.-]+)(?:\[(?P<extras>[\w,.-]+)\])?==(?P<version>[\w.!+]+)"
    r"(?: ; (?P<marker>[^\\\n]+))?(?: \\\n    --hash=sha256:[0-9a-f]{64})+"
)


def unlocked(text: str) -> list[str]:
    """Return the requirements of a lock that are not pinned to one version with its hashes."""
    return [one for one in _requirements(text) if not _LOCKED.fullmatch(one)]


def locked(text: str, python: str | None = None) -> dict[str, str]:
    """Return the version of each package of a lock that one Python takes, or any, by its name."""
    found = filter(None, map(_LOCKED.fullmatch, _requirements(text)))
    return {
        canonicalize_name(one["name"]): one["version"]
        for one in found
        if python is None or _holds(one["marker"], python)
    }


def extras(text: str) -> dict[str, set[str]]:
    """Return the extras that a lock names beside each of its packages."""
    found = filter(None, map(_LOCKED.fullmatch, _requirements(text)))
    return {
        canonicalize_name(one["name"]): set(filter(None, (one["extras"] or "").split(",")))
        for one in found
    }


def floors() -> dict[str, SpecifierSet]:
    """Return the versions of each package that deploy/floors.txt allows."""
    lines = (ROOT / "deploy/floors.txt").read_text(encoding="utf-8").splitlines()
    said = [line.split("#", 1)[0].strip() for line in lines]
    return {
        canonicalize_name(one.name): one.specifier for one in map(Requirement, filter(None, said))
    }


def below_floor(versions: Mapping[str, str]) -> list[str]:
    """Return the packages whose version a floor forbids."""
    return [
        f"{name} {versions[name]}, floor {allowed}"
        for name, allowed in floors().items()
        if name in versions and versions[name] not in allowed
    ]


def image_python() -> str:
    """Return the release of Python in the image."""
    return _in_dockerfile(r"^FROM python:(\d+\.\d+\.\d+)-\S+$")


def torch_version() -> str:
    """Return the PyTorch of image and Makefile; no lock holds it, as its build is chosen."""
    return _in_dockerfile(r"^ARG TORCH=torch==(\S+)$")


def _in_dockerfile(pattern: str) -> str:
    found = re.search(pattern, (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert found is not None
    return found[1]


def _holds(marker: str | None, python: str) -> bool:
    return marker is None or Marker(marker).evaluate({"python_full_version": python})


def _requirements(text: str) -> Iterator[str]:
    """Yield the requirements of a lock with the lines that go on with them."""
    uncommented = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)
    yield from re.split(r"\n(?=\S)", uncommented.strip())
