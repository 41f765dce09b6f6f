"""Who asks: what the auth middleware found out about a request, for the routes to read."""

import asyncio
from dataclasses import dataclass
from typing import Final

from starlette.requests import Request

from service.errors import Forbidden
from service.scopes import ANONYMOUS_ID, SCOPES, Scope

PRINCIPAL: Final = "levit.principal"
"""Where in the ASGI scope of a request its principal lies."""
BATCH_ID: Final = "levit.batch_id"
"""Where a route leaves the id of the batch that it wrote, for the audit log."""
OWED_S: Final = "levit.owed_s"
"""Where the function lies that takes one more batch from the quota of the key."""

COUNTS: Final = "levit.counts"
"""Where the function lies that raises once the key of a request counts no more."""


@dataclass(frozen=True)
class Principal:
    """The key behind a request; the key itself is never here."""

    key_id: str
    scopes: frozenset[Scope]
    streams: frozenset[str] | None
    """Names of the streams it may touch; None: all."""


ANONYMOUS: Final = Principal(ANONYMOUS_ID, SCOPES, None)
"""Everybody, while a service runs with --insecure and no key was ever made."""
NOBODY: Final = Principal("nobody", frozenset(), frozenset())
"""Whoever uses an open route, or the listener for probes, without a key."""


def principal_of(request: Request) -> Principal:
    """Return who sent a request; the middleware let it pass, so its scope is checked.

    Where that does not stand, on the listener for probes, it is nobody.
    """
    found: Principal = request.scope.get(PRINCIPAL, NOBODY)
    return found


def check_scope(request: Request, scope: Scope) -> None:
    """Check a scope that only this form of a request needs, such as `/predict?keep=true`.

    Raises:
        Forbidden: `foreign_scope`.
    """
    principal = principal_of(request)
    if scope not in principal.scopes:
        raise foreign_scope(principal, scope)


def foreign_scope(principal: Principal, scope: Scope) -> Forbidden:
    """Return the refusal of a request that needs a scope which its key has not."""
    return Forbidden("foreign_scope", f"key {principal.key_id} has no scope {scope}")


async def wait_turn(request: Request) -> None:
    """Wait until the key of a request that goes on and on may hand in one more batch.

    Raises:
        Unauthorized: `unauthorized`, it was revoked meanwhile.
        TooMany: `rate_limited`, its turn is far away.
    """
    owed_s = request.scope.get(OWED_S, float)()
    if owed_s > 0:
        await asyncio.sleep(owed_s)


def check_counts(request: Request) -> None:
    """Check that the key of a request that goes on and on still counts; takes nothing of its quota.

    Raises:
        Unauthorized: `unauthorized`, it was revoked meanwhile.
        Unavailable: `keys_unreadable`.
    """
    request.scope[COUNTS]()


def note_batch(request: Request, batch_id: str) -> None:
    """Leave the id of the batch that a request wrote, for the audit log."""
    request.scope[BATCH_ID] = batch_id
