"""The Python client: numpy in, numpy out, over the same HTTP as everyone; no torch.

    with Client() as client:
        receipt = client.observe(images, labels)
        client.wait_until_learned(receipt, timeout_s=60)
        print(client.predict(images).labels)

`observe` always sends an Idempotency-Key and repeats it when it retries, so that a lost answer
never trains a batch twice. One call is one request: nothing is split or joined.
Dimension key: B batch, K classes listed per sample.
"""

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpx
import numpy as np
from numpy.typing import NDArray

from service.engine.protocol import Array, Label
from service.wire import batch_body, classes_array, filled, labels_array

RETRIED_STATUSES = (409, 429, 503)
"""A lost race, too many requests, not now: the same request may succeed later."""
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.05, 2.0


class ApiError(Exception):
    """The service refused a request (`status` >= 400) or could not be reached (0)."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(f"{message} ({code})")
        self.status = status
        self.code = code
        self.message = message


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What the service said when it accepted a batch; from then on the batch is durable."""

    batch_id: str
    n: int
    position: str | None
    """Id in the log; None where a retry came before it was written down."""
    backlog: int
    """Entries accepted and not yet in a checkpoint."""
    replayed: bool
    """Whether the service had accepted this batch before."""
    durability: str
    """`always`: on disk before the answer; `everysec`: up to a second later; `no`: some time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What became of a batch."""

    batch_id: str
    state: str
    """`queued`, `learned` or `quarantined`."""
    n: int
    position: str | None
    step: int | None
    expert: int | None
    reason: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """The answers for B samples; row i is sample i.

    Labels are int64 with -1 for none, or strings with "" for none.
    """

    labels: Array
    """[B] the most probable class."""
    probabilities: NDArray[np.float64]
    """[B, K] of the most probable classes, descending; zeros fill up."""
    classes: Array
    """[B, K] the classes of `probabilities`."""
    experts: NDArray[np.int64]
    """[B] id of the expert that answered."""
    novelty: NDArray[np.float64]
    """[B] negative ELBO per input value, nats; NaN where it is not finite."""
    model_version: int
    position: str
    """Id of the newest log entry that this model has learned."""


class Client:
    """A connection to one service; use it as a context manager, from one thread at a time."""

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        timeout_s: float = 30.0,
        *,
        retry_s: float = 30.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """Connect lazily.

        Args:
            url: address of the service.
            timeout_s: longest wait for one answer.
            retry_s: time in which a request is repeated that the service could not take now.
            transport: what httpx sends requests with; None for the network.
        """
        self._http = httpx.Client(base_url=url, timeout=timeout_s, transport=transport)
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

    def observe(self, x: Array, labels: Array | Sequence[Label | None] | None = None) -> Receipt:
        """Hand in one batch to be learned; return as soon as it is durable.

        Args:
            x: samples [B, ...], uint8 or floats (sent as float32).
            labels: one per sample, all integers or all strings; None, -1 or "" for no label.

        Raises:
            ApiError: the batch was refused, or the service was away longer than `retry_s`.
            ValueError: `x` or `labels` are of a kind that the wire does not have.
        """
        answer = self._send("POST", "/observe", batch_body(x, labels), key=uuid.uuid4().hex)
        fields = ("batch_id", "n", "position", "backlog", "durability")
        said = answer.json()
        replayed = answer.headers.get("Idempotent-Replayed") == "true"
        return Receipt(replayed=replayed, **{name: said[name] for name in fields})

    def predict(self, x: Array) -> Answers:
        """Return the answers for samples `x` [B, ...]; changes nothing.

        Raises:
            ApiError: the request was refused, or no model was there within `retry_s`.
            ValueError: `x` is of a kind that the wire does not have.
        """
        said = self._send("POST", "/predict", batch_body(x, None)).json()
        return Answers(
            labels=labels_array(said["labels"]),
            probabilities=filled(said["probabilities"], 0.0),
            classes=classes_array(said["classes"]),
            experts=np.array(said["experts"], np.int64),
            novelty=np.array(said["novelty"], np.float64),
            model_version=said["model_version"],
            position=said["position"],
        )

    def observation(self, batch_id: str) -> Observation:
        """Return what became of a batch.

        Raises:
            ApiError: `unknown_batch`, or the service was away longer than `retry_s`.
        """
        said = self._send("GET", f"/observations/{batch_id}").json()
        return Observation(**{name: said[name] for name in Observation.__dataclass_fields__})

    def wait_until_learned(self, receipt: Receipt, timeout_s: float = 60.0) -> Observation:
        """Return what became of a batch: learned and part of the served model, or quarantined.

        Raises:
            TimeoutError: it was neither after `timeout_s`.
            ApiError: as `observation`.
        """
        deadline = time.monotonic() + timeout_s
        wait_s = _FIRST_WAIT_S
        while True:
            found = self.observation(receipt.batch_id)
            if found.state == "quarantined" or (found.state == "learned" and self._serves(found)):
                return found
            if time.monotonic() + wait_s > deadline:
                told = "still queued" if found.state == "queued" else "learned but not served"
                raise TimeoutError(f"batch {receipt.batch_id} is {told} after {timeout_s} s")
            time.sleep(wait_s)
            wait_s = min(2 * wait_s, 0.5)

    def _serves(self, found: Observation) -> bool:
        """Say whether the model that answers has learned this batch."""
        served, learned = self.experts()["position"] or "0-0", found.position or "0-0"
        return [int(part) for part in served.split("-")] >= [int(p) for p in learned.split("-")]

    def experts(self) -> dict[str, Any]:
        """Return what the served model is made of, as GET /experts shows it.

        Raises:
            ApiError: the service was away longer than `retry_s`.
        """
        return self.document("/experts")

    def ready(self) -> bool:
        """Say whether the service accepts observations now; never waits for a retry."""
        try:
            return self._http.get("/readyz").status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    def document(self, path: str) -> dict[str, Any]:
        """Return the JSON document that lies under a path of the service.

        Raises:
            ApiError: it was refused, or the service was away longer than `retry_s`.
        """
        found: dict[str, Any] = self._send("GET", path).json()
        return found

    def command(self, path: str, document: Mapping[str, Any]) -> dict[str, Any]:
        """Return the answer to a command, which is sent once.

        Raises:
            ApiError: it was refused, or no answer came, and whether it was followed is not known.
        """
        try:
            answer = self._http.post(path, json=document)
        except httpx.TransportError as lost:
            raise self._unreachable(lost) from lost
        if not answer.is_success:
            raise _refusal(answer)
        found: dict[str, Any] = answer.json()
        return found

    def _unreachable(self, lost: httpx.TransportError) -> ApiError:
        return ApiError(0, "unreachable", f"no answer from {self._http.base_url}: {lost}")

    def _send(
        self, method: str, path: str, body: bytes | None = None, *, key: str | None = None
    ) -> httpx.Response:
        """Return the answer to a request, repeated until `retry_s` have gone by."""
        headers = {"Content-Type": "application/x-safetensors"} if body is not None else {}
        if key is not None:
            headers["Idempotency-Key"] = key
        deadline = time.monotonic() + self._retry_s
        wait_s = _FIRST_WAIT_S
        while True:
            try:
                answer = self._http.request(method, path, content=body, headers=headers)
            except httpx.TransportError as lost:
                refusal, retried = self._unreachable(lost), True
            else:
                if answer.is_success:
                    return answer
                refusal, retried = _refusal(answer), answer.status_code in RETRIED_STATUSES
                wait_s = max(wait_s, _retry_after_s(answer))
            if not retried or time.monotonic() + wait_s > deadline:
                raise refusal
            time.sleep(wait_s)
            wait_s = min(2 * wait_s, _LONGEST_WAIT_S)


def _refusal(answer: httpx.Response) -> ApiError:
    """Return the error that a `problem+json` answer (or a proxy's) tells."""
    try:
        problem = answer.json()
    except ValueError:
        problem = None
    said: Mapping[str, Any] = problem if isinstance(problem, dict) else {}
    code, detail = said.get("code", "unknown"), said.get("detail", answer.reason_phrase)
    return ApiError(answer.status_code, str(code), str(detail))


def _retry_after_s(answer: httpx.Response) -> float:
    """Return the wait that the service asks for, in seconds; 0 where it does not."""
    text = answer.headers.get("Retry-After", "")
    return float(text) if text.isdecimal() else 0.0
