"""A service that follows a script: one answer after the other, whatever it is asked."""

from collections.abc import Callable

import httpx

from service.client import Client

ACCEPTED = {
    "batch_id": "a" * 32,
    "n": 2,
    "position": "1-0",
    "backlog": 1,
    "state": "queued",
    "status_url": "/observations/" + "a" * 32,
    "idempotent": True,
    "durability": "always",
}


class Script:
    """Gives one answer after the other and remembers what it was asked."""

    def __init__(self, *answers: Callable[[], httpx.Response]) -> None:
        self.requests: list[httpx.Request] = []
        self._answers = iter(answers)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        return next(self._answers)()

    @property
    def keys(self) -> list[str]:
        return [request.headers["Idempotency-Key"] for request in self.requests]


def scripted(
    script: Script, retry_s: float = 5, *, key: str | None = None, stream: str | None = None
) -> Client:
    transport = httpx.MockTransport(script)
    return Client("http://levit", retry_s=retry_s, transport=transport, key=key, stream=stream)


def answering(document: object, status: int = 200) -> Callable[[], httpx.Response]:
    return lambda: httpx.Response(status, json=document)


def accepted() -> httpx.Response:
    return httpx.Response(202, json=ACCEPTED)


def refused(status: int, retry_after: str = "0") -> Callable[[], httpx.Response]:
    code = {409: "conflict", 503: "redis_unavailable"}.get(status, "refused")
    problem = {"code": code, "detail": "redis did not answer"}
    return lambda: httpx.Response(status, json=problem, headers={"Retry-After": retry_after})


def lost() -> httpx.Response:
    raise httpx.ReadError("connection reset")
