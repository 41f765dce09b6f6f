"""Whether the Redis server keeps what a 202 promises, and how full it is.

Measured: with `appendfsync everysec` a mere SIGKILL of Redis loses acknowledged batches, with
`always` none. A weaker server is used all the same, but never silently: every receipt carries its
`appendfsync`, and the API is not ready.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

EXPECTED = {
    "appendonly": "yes",
    "appendfsync": "always",
    "no-appendfsync-on-rewrite": "no",
    "maxmemory-policy": "noeviction",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFacts:
    """What was read of the server itself."""

    durability: str
    """`always`, `everysec` or `no`."""
    memory_used: int
    """Bytes."""
    memory_most: float
    """`maxmemory` in bytes; infinite when there is no limit."""
    problems: list[str]
    """Differences from the shipped configuration, each named; empty when there are none."""


def ask_server(pipe: Any) -> None:  # noqa: ANN401  redis-py's types are a union over protocols
    """Queue the two commands whose answers `server_facts` takes."""
    pipe.config_get("append*", "maxmemory*", "no-appendfsync*")
    pipe.info("memory")


def server_facts(config: Mapping[str, str], memory: Mapping[str, Any]) -> ServerFacts:
    """Return what a server says of itself: its configuration, and its memory."""
    return ServerFacts(
        durability=config["appendfsync"] if config["appendonly"] == "yes" else "no",
        memory_used=memory["used_memory"],
        memory_most=memory["maxmemory"] or math.inf,
        problems=_problems(config),
    )


def _problems(config: Mapping[str, str]) -> list[str]:
    problems = [
        f"{name} is {config[name]}, expected {value}"
        for name, value in EXPECTED.items()
        if config[name] != value
    ]
    if config["maxmemory"] == "0":
        problems.append("maxmemory is 0, expected a limit")
    return problems
