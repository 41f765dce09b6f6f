"""For whom a service without keys answers: this machine, not web pages that found a way to it.

Without keys a browser is the way in. A page may point its own name at 127.0.0.1 (DNS rebinding),
which its Host header gives away, or send a simple POST from elsewhere, which its Origin does.
"""

import re

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.answers import answer_error
from service.errors import Forbidden, Misdirected, ServiceError

LOOPBACK = frozenset({b"127.0.0.1", b"localhost", b"[::1]"})
"""Names of this machine that no name server gives to somebody else."""
_HOST = re.compile(rb"(\[[0-9a-f:]+\]|[0-9a-z._-]+)(?::[0-9]+)?", re.IGNORECASE)
_ORIGIN = re.compile(rb"https?://" + _HOST.pattern, re.IGNORECASE)


class OnlyHosts:
    """Passes on what is addressed to a known host and, if a page sent it, to a page of one.

    The port does not matter: whoever has the name is this machine.
    """

    def __init__(self, app: ASGIApp, names: frozenset[bytes]) -> None:
        self._app = app
        self._names = names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or say who would be answered."""
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        if refusal is None:
            await self._app(scope, receive, send)
        else:
            answer = await answer_error(Request(scope), refusal)
            await answer(scope, receive, send)

    def _refusal(self, scope: Scope) -> ServiceError | None:
        """Return why a request is refused, or None."""
        hosts = [self._knows(_HOST, value) for name, value in scope["headers"] if name == b"host"]
        if hosts != [True]:
            return Misdirected(
                "unknown_host", "expected a Host of loopback or LEVIT_ALLOWED_HOSTS, got another"
            )
        pages = (value for name, value in scope["headers"] if name == b"origin")
        if all(self._knows(_ORIGIN, page) for page in pages):
            return None
        return Forbidden(
            "foreign_origin", "expected an Origin of loopback or LEVIT_ALLOWED_HOSTS, got another"
        )

    def _knows(self, form: re.Pattern[bytes], value: bytes) -> bool:
        found = form.fullmatch(value)
        return found is not None and found[1].lower() in self._names


def known_hosts(allowed: str | None) -> frozenset[bytes]:
    """Return the names that are answered: those of loopback, and `allowed`, split at commas."""
    names = [name.strip().lower() for name in (allowed or "").split(",")]
    return LOOPBACK | {name.encode() for name in names if name}
