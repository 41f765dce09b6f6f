"""What is installed is what was locked, is not known to be bad, and runs nothing unasked."""

import os
import re
import shutil
import site
import subprocess
from importlib.metadata import distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.locks import (
    LOCKS,
    ROOT,
    TOGETHER,
    below_floor,
    extras,
    floors,
    locked,
    torch_version,
    unlocked,
)
from tests.sbom import bill

STARTERS = {"a1_coverage.pth", "distutils-precedence.pth", "_virtualenv.pth"}
"""Files that run code whenever Python starts: of coverage, setuptools and virtualenv."""
EDITABLE = re.compile(r"__editable__\.levit_stream-[\w.]+\.pth")
"""Ours, where it is installed to be edited."""


NOTHING_FETCHED = re.compile(r"--no-deps (?:--no-build-isolation|--no-index) ")
"""How our own package is installed: neither what it needs nor what builds it is fetched."""
TORCH = {
    "Dockerfile": '${TORCH_INDEX:+--extra-index-url ${TORCH_INDEX}} "${TORCH}"',
    "Makefile": "$(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX) --retries 2 --timeout 30) "
    '"$(TORCH)"',
}
"""The one package that is installed by its version alone, as its build is chosen."""


def starters(packages: Path) -> list[str]:
    """Return the files of a folder of packages that run at every start and that nobody named."""
    found = [path.name for path in packages.glob("*.pth")]
    return [name for name in found if name not in STARTERS and not EDITABLE.fullmatch(name)]


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_pins_every_package_with_its_hashes(lock: str) -> None:
    text = (ROOT / lock).read_text(encoding="utf-8")

    assert unlocked(text) == []
    assert locked(text)


@pytest.mark.parametrize(
    "line",
    [
        "torch",
        "torch>=2.10",
        "torch==2.13.0",
        "torch==2.*",
        "--index-url https://somewhere",
        "-e .",
    ],
)
def test_a_requirement_without_version_or_hash_would_be_noticed(line: str) -> None:
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")

    assert unlocked(text + line + "\n") == [line]


@pytest.mark.parametrize("lock", LOCKS)
def test_no_locked_package_is_below_its_floor(lock: str) -> None:
    assert below_floor(locked((ROOT / lock).read_text(encoding="utf-8"))) == []


def test_the_installed_torch_is_not_below_its_floor() -> None:
    assert below_floor({"torch": torch_version()}) == []


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("torch", "2.9.1"),
        ("starlette", "0.49.0"),
        ("h11", "0.14.0"),
        ("pillow", "12.1.1"),
        ("python-multipart", "0.0.17"),
    ],
)
def test_a_version_below_its_floor_would_be_noticed(name: str, version: str) -> None:
    assert len(below_floor({name: version})) == 1


def test_what_we_ask_for_by_name_is_not_below_its_floor() -> None:
    asked = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    least = dict(re.findall(r'"([\w.-]+)>=([\d.]+)', asked))

    assert {"torch", "starlette", "h11"} <= set(least) & set(floors())
    assert below_floor(least) == []


@pytest.mark.parametrize("python", ["3.11.0", "3.12.0", "3.13.0"])
def test_what_a_locked_package_needs_on_any_python_is_locked_too(python: str) -> None:
    versions = locked((ROOT / "requirements.lock").read_text(encoding="utf-8"))
    marker = {"python_version": python[:4], "python_full_version": python, "extra": ""}

    needed = {
        canonicalize_name(one.name)
        for installed in distributions()
        if canonicalize_name(installed.name) in versions
        for one in map(Requirement, installed.requires or [])
        if one.marker is None or one.marker.evaluate(marker)
    }

    assert needed - set(versions) == set()


def without_extras(named: dict[str, set[str]]) -> list[str]:
    """Return what installed packages of a lock ask for with an extra that the lock leaves out.

    pip takes such a requirement for one of its own, finds no hash for the newest release, and
    refuses to install anything from the day that one is newer than the lock.
    """
    asked = [
        (installed.name, one)
        for installed in distributions()
        if canonicalize_name(installed.name) in named
        for one in map(Requirement, installed.requires or [])
        if one.extras and (one.marker is None or one.marker.evaluate({"extra": ""}))
    ]
    return [
        f"{name} asks for {one}"
        for name, one in asked
        if not one.extras <= named.get(canonicalize_name(one.name), set())
    ]


def test_a_lock_names_the_extras_that_its_packages_ask_for() -> None:
    together = "".join((ROOT / lock).read_text(encoding="utf-8") for lock in TOGETHER)

    assert without_extras(extras(together)) == []


def test_an_extra_that_a_lock_leaves_out_would_be_noticed() -> None:
    together = "".join((ROOT / lock).read_text(encoding="utf-8") for lock in TOGETHER)
    named = extras(together.replace("coverage[toml]==", "coverage=="))

    assert len(without_extras(named)) == 1


def test_torch_is_in_no_lock_and_the_same_version_everywhere() -> None:
    held = set().union(*(locked((ROOT / lock).read_text(encoding="utf-8")) for lock in TOGETHER))

    assert "torch" not in held
    assert f"TORCH ?= torch=={torch_version()}\n" in (ROOT / "Makefile").read_text()


def test_the_image_and_the_makefile_install_by_hash_only() -> None:
    for name in ("Dockerfile", "Makefile"):
        text = (ROOT / name).read_text(encoding="utf-8").replace("\\\n", " ")
        installed = re.findall(r"(?:pip|PIP\)) install (.+)", text)
        unhashed = [one for one in installed if "--require-hashes" not in one]

        assert len(installed) > len(unhashed) > 0
        assert [one for one in unhashed if not NOTHING_FETCHED.search(one)] == [TORCH[name]]
        assert "--no-build-isolation" in text


def test_an_audit_that_learns_nothing_fails() -> None:
    recipe = re.findall(r"^\t(.*pip-audit .*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)

    assert len(recipe) == len(["torch", *LOCKS]) - len(["requirements-audit.lock"])
    assert all("--strict" in line for line in recipe)


DOCKER = """#!/bin/sh
case "$6" in python:*) echo sha256:{python} ;; *) echo sha256:{other} ;; esac
"""


def test_images_are_pinned_by_what_the_registry_says_and_only_once(tmp_path: Path) -> None:
    for name in ("Dockerfile", "docker-compose.yml", "deploy/pin-images.sh"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    docker = tmp_path / "bin" / "docker"
    docker.parent.mkdir()
    docker.write_text(DOCKER.format(python="a" * 64, other="b" * 64))
    docker.chmod(0o700)
    path = {"PATH": f"{docker.parent}:{os.environ['PATH']}"}

    told = [
        subprocess.run(
            [tmp_path / "deploy/pin-images.sh"], env=path, check=True, stdout=subprocess.PIPE
        ).stdout.splitlines()
        for _ in range(2)
    ]

    bases = re.findall(r"^FROM (\S+)", (tmp_path / "Dockerfile").read_text(), re.MULTILINE)
    images = re.findall(
        r"^    image: (\S+)", (tmp_path / "docker-compose.yml").read_text(), re.MULTILINE
    )
    assert [len(lines) for lines in told] == [4, 0]
    assert {base.split("@")[1] for base in bases} == {f"sha256:{'a' * 64}"}
    assert [image.endswith(f"@sha256:{'b' * 64}") for image in images] == [True] * 3
    assert yaml.safe_load((tmp_path / "docker-compose.yml").read_text())["services"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "Dockerfile",
        "bin",
        "deploy",
        "docker-compose.yml",
    ]


def test_the_bill_of_materials_is_that_of_the_lock() -> None:
    assert (ROOT / "deploy/sbom.json").read_text(encoding="utf-8") == bill(), "run make sbom"


def test_nothing_unknown_runs_when_python_starts() -> None:
    assert [name for folder in site.getsitepackages() for name in starters(Path(folder))] == []


def test_a_starter_that_a_package_brought_would_be_noticed(tmp_path: Path) -> None:
    for name in ("litellm_init.pth", "distutils-precedence.pth"):
        (tmp_path / name).write_text("import os")

    assert starters(tmp_path) == ["litellm_init.pth"]
