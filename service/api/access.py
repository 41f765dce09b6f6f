"""Which scope each route needs: one table, and what is not in it does not exist for any client.

Whoever adds a route adds its row: `_OF_A_STREAM` for what exists plain (of the stream `default`)
and under /streams/{stream}, `_OF_A_MODEL` for what is under /v2/models/{stream} with and without a
version, `_OF_THE_SERVICE` for the rest.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from starlette.routing import compile_path

from service.scopes import Scope

Needed = Scope | Literal["any", "open"]
"""A scope; `any`: whoever has a key; or `open`: everybody, with or without one."""
STREAM_PREFIX: Final = "/streams/{stream}"
DEFAULT_STREAM: Final = "default"

_OF_THE_SERVICE: Mapping[tuple[str, str], Needed] = {
    ("GET", "/"): "open",
    ("GET", "/page/{name}"): "open",
    ("GET", "/livez"): "open",
    ("GET", "/readyz"): "open",
    ("GET", "/metrics"): "metrics",
    ("GET", "/docs"): "read",
    ("GET", "/openapi.json"): "read",
    ("GET", "/streams"): "read",
    ("POST", "/streams"): "admin",
}
_OF_A_STREAM: Mapping[tuple[str, str], Needed] = {
    ("POST", "/observe"): "observe",
    ("GET", "/observations/{batch_id}"): "observe",
    ("POST", "/labels"): "observe",
    ("POST", "/predict"): "predict",
    ("GET", "/experts"): "read",
    ("GET", "/experts/{expert}/samples"): "read",
    ("GET", "/events"): "read",
    ("GET", "/timeline"): "read",
    ("GET", "/live"): "read",
    ("GET", "/quarantine"): "read",
    ("GET", "/quarantine/{batch_id}"): "read",
    ("POST", "/quarantine/{batch_id}/retry"): "admin",
    ("POST", "/quarantine/{batch_id}/drop"): "admin",
    ("GET", "/checkpoints"): "read",
    ("POST", "/checkpoints/{seq}/rollback"): "admin",
    ("POST", "/checkpoints/{seq}/pin"): "admin",
    ("GET", "/snapshots"): "read",
    ("POST", "/resync"): "admin",
}
_OF_A_MODEL: tuple[tuple[str, str, Needed], ...] = (
    ("GET", "", "any"),
    ("GET", "/ready", "any"),
    ("POST", "/infer", "predict"),
)
_OF_THE_PROTOCOL: Mapping[tuple[str, str], Needed] = {
    ("GET", "/v2"): "any",
    ("GET", "/v2/health/live"): "any",
    ("GET", "/v2/health/ready"): "any",
    ("POST", "/v2/models/{stream}/observe"): "observe",
    **{
        (method, f"/v2/models/{{stream}}{version}{path}"): needed
        for version in ("", "/versions/{version}")
        for method, path, needed in _OF_A_MODEL
    },
}
"""The Open Inference Protocol, whose clients ask for health and metadata with the key they have."""
SCOPE_OF: Mapping[tuple[str, str], Needed] = {
    **_OF_THE_SERVICE,
    **_OF_A_STREAM,
    **_OF_THE_PROTOCOL,
    **{(method, STREAM_PREFIX + path): needed for (method, path), needed in _OF_A_STREAM.items()},
}
"""What each (method, route template) needs; a HEAD needs what its GET does."""


_METHODS: dict[str, dict[str, Needed]] = {}
for (_method, _template), _needed in SCOPE_OF.items():
    _METHODS.setdefault(_template, {})[_method] = _needed
_PATTERNS = {one: compile_path(one)[0] for one in _METHODS if "{" in one}


@dataclass(frozen=True, slots=True)
class Rule:
    """What the requests of one path need."""

    template: str
    needed: Mapping[str, Needed]
    """By method."""
    stream: str | None
    """The stream they are about; None: the service."""

    def of(self, method: str) -> Needed | None:
        """Return what a method needs; None when there is no such method."""
        return self.needed.get("GET" if method == "HEAD" else method)


def rule_of(path: str) -> Rule | None:
    """Return what requests of a path need, or None when it is of no row.

    >>> rule_of("/streams/har/observe")
    Rule(template='/streams/{stream}/observe', needed={'POST': 'observe'}, stream='har')
    >>> rule_of("/observe").of("DELETE") is None
    True
    """
    if path in _METHODS and path not in _PATTERNS:
        return Rule(path, _METHODS[path], _plain_stream(path))
    for template, pattern in _PATTERNS.items():
        if named := pattern.match(path):
            stream = named.groupdict().get("stream", _plain_stream(template))
            return Rule(template, _METHODS[template], stream)
    return None


def _plain_stream(template: str) -> str | None:
    return DEFAULT_STREAM if STREAM_PREFIX + template in _METHODS else None
