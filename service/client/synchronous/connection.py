# Made out of asynchronous/connection.py by `make generate`; changes belong there.
"""The connection to one stream of one service: what is repeated, and for how long."""

from collections.abc import Iterator, Mapping
from time import sleep
from types import TracebackType
from typing import Any, Self

import httpx

from service.client import answers, requests
from service.client.pauses import Pauses
from service.client.requests import Body


class Connection:
    """Sends requests and reads documents; use it as a context manager."""

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        timeout_s: float = 30.0,
        *,
        key: str | None = None,
        stream: str | None = None,
        retry_s: float = 30.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """Connect lazily.

        Args:
            url: address of the service.
            timeout_s: longest wait for one answer.
            key: by which the service knows who asks; None where it wants none.
            stream: which of its streams; None for the one called `default`.
            retry_s: time in which a request is repeated that the service could not take now.
            transport: what httpx sends requests with; None for the network.
        """
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        self._http = httpx.Client(
            base_url=url, timeout=timeout_s, headers=headers, transport=transport
        )
        self._prefix = requests.prefix(stream)
        self._retry_s = retry_s

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def ready(self) -> bool:
        """Say whether the service accepts observations now; never waits for a retry."""
        try:
            return (self._http.get("/readyz")).status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    def document(self, path: str) -> dict[str, Any]:
        """Return the JSON document that lies under a path of the stream.

        Raises:
            ApiError: it was refused, or the service was away longer than `retry_s`.
        """
        return answers.document(self._send("GET", self._prefix + path))

    def command(self, path: str, document: Mapping[str, Any]) -> dict[str, Any]:
        """Return the answer to a command to the stream, which is sent once.

        Raises:
            ApiError: it was refused, or no answer came, and whether it was followed is not known.
        """
        return self._command(self._prefix + path, document)

    def _command(self, path: str, document: Mapping[str, Any]) -> dict[str, Any]:
        body = requests.document(document)
        try:
            answer = self._http.post(path, content=body.content, headers=body.headers)
        except httpx.TransportError as lost:
            raise answers.unreachable(self._http.base_url, lost) from lost
        if not answer.is_success:
            raise answers.refusal(answer)
        return answers.document(answer)

    def _send(
        self,
        method: str,
        path: str,
        body: Body | None = None,
        *,
        idempotency_key: str | None = None,
    ) -> httpx.Response:
        """Return the answer to a request, repeated until `retry_s` have gone by."""
        headers = {} if body is None else body.headers
        if idempotency_key is not None:
            headers["Idempotency-Key"] = idempotency_key
        content = None if body is None else body.content
        pauses = Pauses(self._retry_s)
        while True:
            try:
                answer = self._http.request(method, path, content=content, headers=headers)
            except httpx.TransportError as lost:
                refusal = answers.unreachable(self._http.base_url, lost)
            else:
                if answer.is_success:
                    return answer
                refusal = answers.refusal(answer)
            sleep(pauses.after(refusal))

    def _lines(self, path: str, headers: Mapping[str, str]) -> Iterator[str]:
        """Yield the lines of an answer as they come."""
        try:
            with self._http.stream("GET", path, headers=headers) as answer:
                if not answer.is_success:
                    answer.read()
                    raise answers.refusal(answer)
                for line in answer.iter_lines():
                    yield line
        except httpx.TransportError as lost:
            raise answers.unreachable(self._http.base_url, lost) from lost
