"""Who asks: what the auth middleware found out about a request, for the routes to read."""

from dataclasses import dataclass
from typing import Final

from starlette.requests import Request

from service.scopes import SCOPES, Scope

PRINCIPAL: Final = "levit.principal"
"""Where in the ASGI scope of a request its principal lies."""


@dataclass(frozen=True)
class Principal:
    """The key behind a request; the key itself is never here."""

    key_id: str
    scopes: frozenset[Scope]
    streams: frozenset[str] | None
    """Names of the streams it may touch; None: all."""


ANONYMOUS: Final = Principal("anonymous", SCOPES, None)
"""Everybody, while a service runs with --insecure and no key was ever made."""
NOBODY: Final = Principal("nobody", frozenset(), frozenset())
"""Whoever uses an open route without a key."""


def principal_of(request: Request) -> Principal:
    """Return who sent a request; the middleware let it pass, so its scope is checked."""
    found: Principal = request.scope[PRINCIPAL]
    return found
