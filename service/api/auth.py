"""The door: no request reaches a route before this middleware knows who asks.

It stands outside the router and refuses whatever `access` has no row for. There are no keys yet,
so everybody is anonymous; `check_exposure` keeps such a service on loopback.
"""

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.access import rule_of
from service.api.answers import answer_error
from service.api.principal import ANONYMOUS, PRINCIPAL


class Authentication:
    """Pure ASGI middleware: finds the principal of each request, and refuses."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand a request on with its principal, or answer it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        rule = rule_of(scope["path"])
        if rule is None:
            refused = await answer_error(Request(scope), HTTPException(404))
            await refused(scope, receive, send)
            return
        scope[PRINCIPAL] = ANONYMOUS
        await self._app(scope, receive, send)
