"""What may stand in no file of ours: loaders that run code out of data, and ways to fetch a URL.

Comparable servers fell to each of them: pickled bodies, `torch.load` with `weights_only` (twice),
models fetched from any address. Names are followed through `import ... as ...`.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted(
    path for folder in ("learner", "service", "bench") for path in (ROOT / folder).rglob("*.py")
)
LOADERS = {
    "pickle",
    "_pickle",
    "cPickle",
    "marshal",
    "shelve",
    "dill",
    "joblib",
    "cloudpickle",
    "yaml",
}
"""Modules that make objects, and so run code, out of bytes."""
RUNNERS = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "builtins.eval",
    "builtins.exec",
    "importlib.reload",
    "numpy.fromfile",
    "numpy.memmap",
    "os.popen",
    "os.system",
    "subprocess.getoutput",
    "subprocess.getstatusoutput",
    "torch.export.load",
    "torch.hub.load",
    "torch.jit.load",
    "torch.load",
    "torch.save",
}
"""Functions that run code, or make objects, out of what they are given."""
FETCHERS = {
    "urllib.request",
    "http.client",
    "requests",
    "aiohttp",
    "urllib3",
    "ftplib",
    "socketserver",
}
"""Modules that could fetch an address; that only the client has httpx is an import contract."""
ONE_PLACE = {
    "numpy.load": {"service/datafile.py"},
    "importlib.import_module": {"bench/methods.py", "bench/peers/library.py"},
}
"""Functions with the files that may call them: for files of the CLI, for names of our own."""


def imports(tree: ast.Module) -> dict[str, str]:
    """Return what each imported name of a file stands for."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                whole = alias.name if alias.asname else alias.name.split(".")[0]
                found[alias.asname or whole] = whole
                found[alias.name] = alias.name
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                found[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return found


def calls(tree: ast.Module, known: dict[str, str]) -> Iterator[tuple[str, ast.Call]]:
    """Yield each call of a file, with the whole name of what is called."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            first, dot, rest = ast.unparse(node.func).partition(".")
            yield known.get(first, first) + dot + rest, node


def switched_on(call: ast.Call) -> bool:
    """Say whether a call may go through a shell or a pickle."""
    return any(
        given.arg in {"shell", "allow_pickle"}
        and not (isinstance(given.value, ast.Constant) and given.value.value is False)
        for given in call.keywords
    )


def within(name: str, modules: set[str]) -> bool:
    """Say whether a whole name is a module of these, or lies in one."""
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def banned(path: Path, *, may_fetch: bool = False) -> list[str]:
    """Return what stands in a file and must not."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    known, modules = imports(tree), LOADERS | (set() if may_fetch else FETCHERS)
    place = str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name
    found = [name for name in sorted(set(known.values())) if within(name, modules)]
    for name, call in calls(tree, known):
        if name in RUNNERS or place not in ONE_PLACE.get(name, {place}):
            found.append(name)
        if switched_on(call):
            found.append(ast.unparse(call))
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_runs_code_out_of_data_or_fetches_an_address(path: Path) -> None:
    assert banned(path, may_fetch=path.is_relative_to(ROOT / "bench")) == []


@pytest.mark.parametrize(
    "planted",
    [
        "import pickle",
        "from pickle import loads",
        "import pickle as harmless",
        "import dill",
        "from joblib import load",
        "import yaml; yaml.load(body)",
        "import torch; torch.load(body, weights_only=True)",
        "import torch as t; t.load(body)",
        "from torch import load as restore; restore(body)",
        "import torch.export; torch.export.load(body)",
        "from torch import export; export.load(body)",
        "import numpy as np; np.load(body)",
        "from numpy import load; load(body)",
        "import numpy as np; np.savez(body, allow_pickle=True)",
        "eval(body)",
        "exec(body)",
        "import builtins; builtins.eval(body)",
        "__import__(body)",
        "import importlib; importlib.import_module(body)",
        "import subprocess; subprocess.run(body, shell=True)",
        "import subprocess; subprocess.run(body, shell=asked)",
        "import os; os.system(body)",
        "import urllib.request",
        "from urllib import request",
        "from urllib.request import urlopen",
        "import requests; requests.get(body)",
    ],
)
def test_it_would_be_noticed(planted: str, tmp_path: Path) -> None:
    (tmp_path / "planted.py").write_text(planted)

    assert banned(tmp_path / "planted.py")


@pytest.mark.parametrize(
    "harmless",
    [
        "model.eval()",
        "import re; re.compile(text)",
        "from safetensors.numpy import load; load(body)",
        "from urllib.parse import quote",
        "from starlette.requests import Request",
        "import numpy as np; np.savez(body, allow_pickle=False)",
    ],
)
def test_what_only_looks_like_it_is_let_through(harmless: str, tmp_path: Path) -> None:
    (tmp_path / "planted.py").write_text(harmless)

    assert banned(tmp_path / "planted.py") == []
