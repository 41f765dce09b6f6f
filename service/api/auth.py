"""The door: no request reaches a route before this middleware knows who asks, and lets them.

It stands outside the router and decides by `access` alone: what has no row there is refused. Each
write of a key is one line of the log, `audit`: who, which route, which batch, which status; never
what was in it.
"""

from contextlib import ExitStack, suppress
from functools import partial
from http import HTTPStatus
from typing import Final

import structlog
from prometheus_client import Counter
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.access import Needed, Rule, rule_of
from service.api.answers import answer_error
from service.api.keyring import Keyring
from service.api.principal import (
    ANONYMOUS,
    BATCH_ID,
    COUNTS,
    NOBODY,
    OWED_S,
    PRINCIPAL,
    Principal,
    foreign_scope,
)
from service.errors import Forbidden, ServiceError, Unauthorized, Unavailable
from service.store.keys import Key

WRITES: Final = frozenset({"observe", "admin"})
"""Scopes whose requests change something, unless they are a GET."""
READING: Final = frozenset({"GET", "HEAD"})
_STREAM_TEXT: Final = 64
"""Most characters of a stream's name in a line of the log: whoever asked may have made it up."""

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class Authentication:
    """Pure ASGI middleware: finds the principal of each request, and refuses."""

    def __init__(self, app: ASGIApp, keyring: Keyring, refusals: Counter) -> None:
        self._app = app
        self._keyring = keyring
        self._refusals = refusals

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand a request on with its principal, or answer it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        rule = rule_of(scope["path"])
        needed = None if rule is None else rule.of(scope["method"])
        with ExitStack() as held:
            try:
                scope[PRINCIPAL] = principal = self._principal(scope, needed, held)
                _check(principal, rule, needed)
            except (ServiceError, HTTPException) as refusal:
                await self._refuse(refusal, scope, receive, send)
                return
            scope[OWED_S] = partial(self._owed_s, scope)
            scope[COUNTS] = partial(self._check_counts, scope)
            if principal is ANONYMOUS or scope["method"] in READING:
                await self._app(scope, receive, send)
            else:
                await self._audited(scope, receive, send, needed)

    def _principal(self, scope: Scope, needed: Needed | None, held: ExitStack) -> Principal:
        """Return who asks, and take one request from its quota until `held` ends.

        Raises:
            Unauthorized: `unauthorized`.
            TooMany: `rate_limited`, `too_many_in_flight`.
            Unavailable: `keys_unreadable`.
        """
        if self._keyring.open:
            return ANONYMOUS
        if needed == "open":
            with suppress(Unauthorized, Unavailable):
                return _principal_of(self._key(scope))
            return NOBODY
        key = self._key(scope)
        held.enter_context(self._keyring.quota_of(key).taken(key))
        return _principal_of(key)

    def _owed_s(self, scope: Scope) -> float:
        """Take one more batch of a request from its quota; return the seconds until its turn.

        Raises:
            Unauthorized: `unauthorized`, the key counts no more.
            TooMany: `rate_limited`, its turn is far away.
            Unavailable: `keys_unreadable`.
        """
        if self._keyring.open:
            return 0.0
        key = self._key(scope)
        return self._keyring.quota_of(key).owed_s(key)

    def _check_counts(self, scope: Scope) -> None:
        """Check that the key of a request counts, or that there is still none.

        Raises:
            Unauthorized: `unauthorized`.
            Unavailable: `keys_unreadable`.
        """
        if not self._keyring.open:
            self._key(scope)

    def _key(self, scope: Scope) -> Key:
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        scheme, _, token = given[0].partition(b" ") if len(given) == 1 else (b"", b"", b"")
        key = self._keyring.find(token.strip().decode("latin-1"))
        if key is None or scheme.lower() != b"bearer":
            raise Unauthorized(
                "unauthorized", "expected the header Authorization: Bearer, with a key that counts"
            )
        return key

    async def _refuse(
        self, refusal: ServiceError | HTTPException, scope: Scope, receive: Receive, send: Send
    ) -> None:
        reason = refusal.code if isinstance(refusal, ServiceError) else "no_route"
        self._refusals.labels(reason).inc()
        answer = await answer_error(Request(scope), refusal)
        await answer(scope, receive, send)
        if isinstance(refusal, Forbidden):
            log.info("audit", **_facts(scope), status=refusal.status)

    async def _audited(
        self, scope: Scope, receive: Receive, send: Send, needed: Needed | None
    ) -> None:
        """Hand a request on; write into the log that it changed something, or was forbidden to."""
        status = 500

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            forbidden = status == HTTPStatus.FORBIDDEN  # by `principal.check_scope`
            if forbidden:
                self._refusals.labels("foreign_scope").inc()
            if forbidden or needed in WRITES or BATCH_ID in scope:
                log.info("audit", **_facts(scope), status=status)


def _principal_of(key: Key) -> Principal:
    return Principal(key.id, key.scopes, key.streams)


def _check(principal: Principal, rule: Rule | None, needed: Needed | None) -> None:
    """Check that this principal may do this, if there is such a thing.

    Raises:
        HTTPException: 404 or 405.
        Forbidden: `foreign_scope`, `foreign_stream`.
    """
    if rule is None:
        raise HTTPException(404)
    if needed is None:
        raise HTTPException(405, headers={"Allow": ", ".join(sorted(rule.needed))})
    if needed == "open" or principal is ANONYMOUS:
        return
    if needed != "any" and needed not in principal.scopes:
        raise foreign_scope(principal, needed)
    if principal.streams is not None:
        _check_stream(principal, principal.streams, rule.stream, needed)


def _check_stream(
    principal: Principal, streams: frozenset[str], stream: str | None, needed: Needed
) -> None:
    """Check the stream of a request, or that it does not administer them all."""
    if stream is None and needed == "admin":
        raise Forbidden("foreign_stream", f"key {principal.key_id} is not for all streams")
    if stream is not None and stream not in streams:
        raise Forbidden("foreign_stream", f"key {principal.key_id} is not for this stream")


def _facts(scope: Scope) -> dict[str, str | None]:
    """Return what a line of the audit log says of a request."""
    rule = rule_of(scope["path"])
    stream = None if rule is None or rule.stream is None else rule.stream[:_STREAM_TEXT]
    return {
        "key_id": scope[PRINCIPAL].key_id,
        "method": scope["method"],
        "route": None if rule is None else rule.template,
        "scope": None if rule is None else rule.of(scope["method"]),
        "stream": stream,
        "batch_id": scope.get(BATCH_ID),
    }
