"""Requests that /openapi.json allows, and many that it does not, against the running service.

`python -m tests.conformance [EXAMPLES]`, or `make conformance`, asks for as long as that takes;
tests/test_conformance.py asks less. All checks of schemathesis; see schemathesis.toml beside this.
"""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from service.scopes import SCOPES
from service.store.keys import create_key
from service.store.server import bundled_binary
from tests.chaos.clients import until_up
from tests.chaos.parts import ROOT, Service, chaos_settings

EXAMPLES = 400
"""Per route and kind of request, unless the first argument says another number."""
_CONFIG = Path(__file__).parent / "schemathesis.toml"


@contextmanager
def asked(home: Path, *, keys: bool) -> Iterator[tuple[Service, str]]:
    """Yield a service of processes that serves a model, and a key of all scopes if it wants one."""
    settings = chaos_settings(home, input="vector:3", insecure=not keys)
    settings.state_dir.mkdir(parents=True)
    token = create_key(settings.state_dir, name="asks", scopes=list(SCOPES))[1] if keys else ""
    header = {"Authorization": f"Bearer {token}"} if keys else {}
    with (
        Service(settings, bundled_binary()) as service,
        httpx.Client(base_url=service.url, headers=header) as client,
    ):
        until_up(settings.port)
        learned = client.post("/observe", json={"x": [[0.1, 0.2, 0.3]] * 2, "y": [0, 1]})
        query = {"wait_for": learned.json()["position"], "wait_s": 30}
        client.post(
            "/predict", json={"x": [[0, 0, 0]]}, params=query, timeout=60
        ).raise_for_status()
        yield service, token


def asking(document: str, token: str, *options: str) -> list[str]:
    """Return the command line by which schemathesis asks all that a document allows."""
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(_CONFIG), "run"]
    key = ["-H", f"Authorization: Bearer {token}"] if token else []
    return [*command, document, *key, *options]


def main(examples: str = str(EXAMPLES)) -> int:
    """Ask an insecure service and one with keys; return the exit code of the worse."""
    codes = []
    for keys in (False, True):
        with (
            tempfile.TemporaryDirectory() as home,
            asked(Path(home), keys=keys) as (service, token),
        ):
            document = f"{service.url}/openapi.json"
            command = asking(document, token, "--max-examples", examples)
            codes.append(subprocess.call(command, cwd=ROOT))
    return max(codes)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
