"""What bit-identity rests on besides the log, the seed and the settings."""

import importlib.metadata
import platform
import re
from pathlib import Path
from typing import Any

from service import __version__
from service.settings import Settings

CPU_INFO = Path("/proc/cpuinfo")


def environment(settings: Settings) -> dict[str, Any]:
    """Return versions, machine, CPU and threads, each under its name."""
    return {
        "levit": __version__,
        "torch": importlib.metadata.version("torch"),
        "numpy": importlib.metadata.version("numpy"),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpu": _cpu_capability(),
        "device": settings.device,
        "threads": settings.learner_threads,
    }


def _cpu_capability() -> str:
    """Return the vector instructions of this CPU by which torch chooses its kernels.

    `baseline` where it has none of them, `unknown` where the system does not list them.
    """
    try:
        listed = re.search(r"^flags\s*:(.*)$", CPU_INFO.read_text(), re.MULTILINE)
    except OSError:
        return "unknown"
    if listed is None:
        return "unknown"
    return " ".join(sorted({"avx2", "avx512f"}.intersection(listed[1].split()))) or "baseline"
