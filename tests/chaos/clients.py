"""Clients that remember: a batch and its key are kept until a 202 says that it is durable.

They use Python's own HTTP and retry without waiting long, as the product's client would hide what
is to be seen. What they were told is the evidence that the checker works with.
"""

import http.client
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from service.client import RETRIED_STATUSES
from tests.chaos.parts import Part
from tests.chaos.workload import Workload

RETRY_S = 0.02
TIMEOUT_S = 10.0
SAFETENSORS = {"Content-Type": "application/x-safetensors"}


@dataclass(slots=True)
class Acked:
    """One batch that a 202 acknowledged."""

    client: int
    number: int
    batch_id: str
    position: str | None
    """None until it is known: a retry may be told of it only once it is learned."""


@dataclass(frozen=True, slots=True)
class Heard:
    """One answer of the service."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> dict[str, Any]:
        said: dict[str, Any] = json.loads(self.body)
        return said


class Connection:
    """One connection that is made anew when it was lost."""

    def __init__(self, port: int) -> None:
        self._http = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)

    def ask(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> Heard | None:
        """Return the answer, or None where none came."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            self._http.request(method, path, body, (SAFETENSORS if body else {}) | named)
            answer = self._http.getresponse()
            content = answer.read()
        except (OSError, http.client.HTTPException):
            self._http.close()
            return None
        return Heard(answer.status, {k.lower(): v for k, v in answer.getheaders()}, content)

    def close(self) -> None:
        self._http.close()


class RetryingClient(threading.Thread):
    """Sends batch after batch, each until it is acknowledged."""

    def __init__(
        self,
        number: int,
        port: int,
        workload: Workload,
        *,
        new_key_per_try: bool = False,
        pause_s: float = 0.0,
    ) -> None:
        """Name it; `start` starts it, `finish` ends it after the batch it is at.

        Args:
            number: of the client.
            port: of the API.
            workload: what it sends.
            new_key_per_try: a mistake, for negative controls.
            pause_s: between two batches.
        """
        super().__init__(name=f"client {number}", daemon=True)
        self.number = number
        self._workload = workload
        self._connection = Connection(port)
        self._new_key_per_try = new_key_per_try
        self._pause_s = pause_s
        self._stopping = threading.Event()
        self.acked: list[Acked] = []
        self.statuses: Counter[int] = Counter()
        """Answers by status; 0 is none."""
        self.retried = 0
        self.refusals: list[str] = []
        """Answers that a good batch must never get."""
        self.durability: Counter[str] = Counter()
        self.latencies_s: list[float] = []
        """Of acknowledgements."""
        self.slowest_s = 0.0
        """Longest wait for an answer of any kind."""
        self.acked_at: list[float] = []
        self._unplaced: list[Acked] = []

    def finish(self) -> None:
        self._stopping.set()

    def run(self) -> None:
        number = 0
        while not self._stopping.is_set() and not self.refusals:
            acked = self._send(number)
            if acked is None:
                break
            self.acked.append(acked)
            self.acked_at.append(time.monotonic())
            if acked.position is None:
                self._unplaced.append(acked)
            self._place_one()
            number += 1
            time.sleep(self._pause_s)
        while self._unplaced and not self.refusals:
            self._place_one()
            time.sleep(RETRY_S)
        self._connection.close()

    def _send(self, number: int) -> Acked | None:
        """Return the acknowledgement of one batch, however often it must be sent."""
        body = self._workload.body(self.number, number)
        tries = 0
        while True:
            salt = f"{tries}." if self._new_key_per_try else ""
            key = salt.replace(".", "_") + self._workload.key(self.number, number)
            started_at = time.monotonic()
            heard = self._connection.ask("POST", "/observe", body, Idempotency_Key=key)
            self.slowest_s = max(self.slowest_s, time.monotonic() - started_at)
            status = 0 if heard is None else heard.status
            self.statuses[status] += 1
            if heard is not None and status == http.client.ACCEPTED:
                said = heard.json()
                self.latencies_s.append(time.monotonic() - started_at)
                self.durability[said["durability"]] += 1
                self.retried += tries > 0
                return Acked(self.number, number, said["batch_id"], said["position"])
            if heard is not None and status not in RETRIED_STATUSES:
                self.refusals.append(f"client {self.number}: {status} {heard.body[:300]!r}")
                return None
            tries += 1
            time.sleep(RETRY_S)

    def _place_one(self) -> None:
        """Ask where a batch lies whose place in the log is not known yet."""
        if not self._unplaced:
            return
        one = self._unplaced[0]
        heard = self._connection.ask("GET", f"/observations/{one.batch_id}")
        if heard is not None and heard.status == http.client.OK:
            one.position = heard.json()["position"]
        elif heard is not None and heard.status not in RETRIED_STATUSES:
            self.refusals.append(f"status of {one.batch_id}: {heard.status} {heard.body[:300]!r}")
        if one.position is not None:
            self._unplaced.pop(0)


@dataclass
class Probed:
    """What the prober found."""

    asked: int = 0
    answered: int = 0
    failures: list[str] = field(default_factory=list)
    """Questions that a living API with a model did not answer."""
    latencies_s: list[float] = field(default_factory=list)
    restarts_s: list[float] = field(default_factory=list)
    """From the start of an API process to its first answer, where a model was there."""


class Prober(threading.Thread):
    """Asks /predict all the time; only a death of the API itself is an excuse for silence."""

    def __init__(self, port: int, api: Part, workload: Workload, *, pause_s: float = 0.02) -> None:
        super().__init__(name="prober", daemon=True)
        self._connection = Connection(port)
        self._api = api
        self._pause_s = pause_s
        self._body = workload.body(0, 2)
        self._stopping = threading.Event()
        self.found = Probed()
        self._answered_in_life = -1
        self._model_seen = False

    def finish(self) -> None:
        self._stopping.set()

    def run(self) -> None:
        while not self._stopping.is_set():
            self._probe()
            time.sleep(self._pause_s)
        self._connection.close()

    def _probe(self) -> None:
        life, started_at = self._api.life, time.monotonic()
        heard = self._connection.ask("POST", "/predict", self._body)
        found, now = self.found, time.monotonic()
        found.asked += 1
        if heard is not None and heard.status == http.client.OK:
            found.answered += 1
            found.latencies_s.append(now - started_at)
            if self._answered_in_life != life == self._api.life:
                if self._model_seen:
                    found.restarts_s.append(now - self._api.started_at)
                self._answered_in_life, self._model_seen = life, True
        elif self._answered_in_life == life == self._api.life:
            told = "no answer" if heard is None else f"{heard.status} {heard.body[:300]!r}"
            found.failures.append(told)


def until_up(port: int, *, within_s: float = 60.0) -> None:
    """Wait until an API answers."""
    connection, deadline = Connection(port), time.monotonic() + within_s
    while connection.ask("GET", "/livez") is None:
        if time.monotonic() > deadline:
            raise TimeoutError(f"nobody listens on port {port} after {within_s} s")
        time.sleep(RETRY_S)
    connection.close()


def finish_all(
    clients: Sequence[RetryingClient], tend: Callable[[], None], *, within_s: float = 60.0
) -> None:
    """Let every client end with an acknowledged batch while `tend` keeps the service alive."""
    for client in clients:
        client.finish()
    deadline = time.monotonic() + within_s
    while any(client.is_alive() for client in clients):
        tend()
        if time.monotonic() > deadline:
            raise TimeoutError(f"clients were not acknowledged within {within_s} s")
        time.sleep(0.01)
