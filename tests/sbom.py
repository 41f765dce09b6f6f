"""The bill of materials of what the image holds, as CycloneDX 1.6; `make sbom` writes it.

It is made of requirements.lock, the PyTorch of the Dockerfile and our own version alone, so the
same files give the same bytes. It has no hashes, as they differ from platform to platform: those
of every file that may be installed stand in the lock.
"""

import json
import sys
from typing import Any

import service
from tests.locks import ROOT, image_python, locked, torch_version


def bill() -> str:
    """Return the document."""
    packages = locked((ROOT / "requirements.lock").read_text(encoding="utf-8"), image_python())
    packages["torch"] = torch_version()
    document = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": _component("levit-stream", service.__version__, kind="application")
        },
        "components": [_component(name, version) for name, version in sorted(packages.items())],
    }
    return json.dumps(document, indent=2) + "\n"


def _component(name: str, version: str, *, kind: str = "library") -> dict[str, Any]:
    purl = f"pkg:pypi/{name}@{version}"
    return {"type": kind, "bom-ref": purl, "name": name, "version": version, "purl": purl}


if __name__ == "__main__":
    sys.stdout.write(bill())
