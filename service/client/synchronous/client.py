# Made out of asynchronous/client.py by `make generate`; changes belong there.
"""`Client`: observe, label, predict, watch.

`observe` always sends an Idempotency-Key and repeats it when it retries, so that a lost answer
never trains a batch twice. One call is one request, but for `observe_all`.
Dimension key: B batch, N samples of a run.
"""

import uuid
from collections.abc import Callable, Generator, Mapping, Sequence
from time import sleep
from typing import Any

import httpx
import numpy as np

from service.client import answers, requests
from service.client.models import Answers, ApiError, Event, Observation, Receipt, Sent
from service.client.pauses import Pauses
from service.client.requests import Body
from service.client.runs import Run
from service.client.synchronous.connection import Connection
from service.engine.protocol import Array, Label


class Client(Connection):
    """A connection to one stream of one service; use it as a context manager."""

    def observe(self, x: Array, labels: Array | Sequence[Label | None] | None = None) -> Receipt:
        """Hand in one batch to be learned; return as soon as it is durable.

        Args:
            x: samples [B, ...], uint8 or floats (sent as float32).
            labels: one per sample, all integers or all strings; None, -1 or "" for no label.

        Raises:
            ApiError: the batch was refused, or the service was away longer than `retry_s`.
            ValueError: `x` or `labels` are of a kind that the wire does not have.
        """
        return self._observe(requests.tensors(x, labels), uuid.uuid4().hex)

    def observe_all(
        self,
        x: Array,
        labels: Array | Sequence[Label | None] | None = None,
        *,
        batch_size: int = 100,
        run: str | None = None,
        first_batch: int = 0,
        progress: Callable[[Sent], None] = lambda _: None,
    ) -> Sent:
        """Hand in many samples in their order, batch after batch; return when all are durable.

        Stopped anywhere and called again, it loses and doubles nothing: the keys of its batches
        follow from the run and their numbers, and the service knows those it has. It does so for
        a day, and then for its last 50,000 batches; a longer run goes on with `first_batch`.

        Args:
            x: samples [N, ...], uint8 or floats (sent as float32); a memory-mapped array will do.
            labels: one per sample, as `observe`.
            batch_size: samples in one request.
            run: names what is sent; None for its content. To learn the same samples once more,
                give the second time a name.
            first_batch: number of the batch to begin with; those before are taken for accepted.
            progress: called after each batch.

        Raises:
            ApiError: a batch was refused, or the service was away longer than `retry_s`; the
                batches before it are durable.
            ValueError: `x` or `labels` are of a kind that the wire does not have, or none.
        """
        sending = Run.of(x, labels, batch_size=batch_size, name=run)
        sent: Sent | None = None
        for number, body, key in sending.batches(first_batch):
            try:
                receipt = self._observe(body, key)
            except ApiError as refusal:
                raise sending.refused(number, refusal) from refusal
            sent = sending.sent(number, receipt, sent)
            progress(sent)
        if sent is None:
            raise ValueError(f"expected a first batch of the run's, got {first_batch}")
        return sent

    def _observe(self, body: Body, key: str) -> Receipt:
        answer = self._send("POST", f"{self._prefix}/observe", body, idempotency_key=key)
        return answers.receipt(answer)

    def label(self, labels: Mapping[str, Label | np.integer[Any]]) -> Receipt:
        """Tell labels of samples that were observed, or predicted and kept, without one.

        What became of each is known when they are learned: `wait_until_learned` returns it.

        Args:
            labels: by sample id, as `Receipt.sample_ids` and `Answers.sample_ids` list them.

        Raises:
            ApiError: the request was refused, or the service was away longer than `retry_s`.
        """
        path, body = f"{self._prefix}/labels", requests.late_labels(labels)
        answer = self._send("POST", path, body, idempotency_key=uuid.uuid4().hex)
        return answers.receipt(answer)

    def predict(
        self, x: Array, *, keep: bool = False, explain: bool = False, wait_for: str | None = None
    ) -> Answers:
        """Return the answers for samples `x` [B, ...].

        Args:
            x: as `observe`.
            keep: whether the service keeps samples and answers for labels that come later; else
                nothing is changed.
            explain: whether the answers come with `Answers.explanations`, for 16 samples at most.
            wait_for: position in the log that the answering model must have learned.

        Raises:
            ApiError: the request was refused, or no such model was there within `retry_s`.
            ValueError: `x` is of a kind that the wire does not have.
        """
        asked = {"keep": keep, "explain": explain, "wait_for": wait_for}
        return self._predict(requests.tensors(x), asked)

    def predict_image(
        self,
        content: bytes,
        *,
        keep: bool = False,
        explain: bool = False,
        wait_for: str | None = None,
    ) -> Answers:
        """Return the answer for one PNG or JPEG, which the service brings to its stream's shape.

        Args:
            content: the bytes of the file.
            keep: as `predict`; so are the others.
            explain: whether it comes with its explanation.
            wait_for: position in the log.

        Raises:
            ApiError: as `predict`.
            ValueError: the bytes are neither PNG nor JPEG.
        """
        asked = {"keep": keep, "explain": explain, "wait_for": wait_for}
        return self._predict(requests.image(content), asked)

    def _predict(self, body: Body, asked: Mapping[str, str | bool | None]) -> Answers:
        chosen = {name: value for name, value in asked.items() if value}
        key = uuid.uuid4().hex if asked["keep"] else None
        path = str(httpx.URL(f"{self._prefix}/predict", params=chosen))
        return answers.answers(self._send("POST", path, body, idempotency_key=key))

    def observation(self, batch_id: str) -> Observation:
        """Return what became of a batch.

        Raises:
            ApiError: `unknown_batch`, or the service was away longer than `retry_s`.
        """
        return answers.observation(self._send("GET", f"{self._prefix}/observations/{batch_id}"))

    def wait_until_learned(self, receipt: Receipt, timeout_s: float = 60.0) -> Observation:
        """Return what became of a batch: learned and part of the served model, or quarantined.

        A key without the scope `read` cannot see the served model: learned is enough then.

        Raises:
            TimeoutError: it was neither after `timeout_s`.
            ApiError: as `observation`.
        """
        pauses = Pauses(timeout_s, longest_s=0.5)
        while True:
            found = self.observation(receipt.batch_id)
            if found.state == "quarantined":
                return found
            if found.state == "learned" and self._serves(found.position):
                return found
            pause_s = pauses.next_s()
            if pause_s is None:
                told = "still queued" if found.state == "queued" else "learned but not served"
                raise TimeoutError(f"batch {receipt.batch_id} is {told} after {timeout_s} s")
            sleep(pause_s)

    def _serves(self, position: str | None) -> bool:
        """Say whether the model that answers has learned it, as far as this key may look."""
        try:
            return answers.reached((self.experts())["position"], position)
        except ApiError as refusal:
            if refusal.status == httpx.codes.FORBIDDEN:
                return True
            raise

    def experts(self) -> dict[str, Any]:
        """Return what the served model is made of, as GET /experts shows it.

        Raises:
            ApiError: the service was away longer than `retry_s`.
        """
        return self.document("/experts")

    def samples(self, expert: int, n: int = 8) -> dict[str, Any]:
        """Return samples of an expert, as GET /experts/{expert}/samples shows them.

        Args:
            expert: its id.
            n: most of each kind, 1 to 32.

        Raises:
            ApiError: `unknown_expert`, or the service was away longer than `retry_s`.
        """
        return self.document(f"/experts/{expert}/samples?n={n}")

    def timeline(self) -> dict[str, Any]:
        """Return the life of the stream so far, as GET /timeline shows it.

        Raises:
            ApiError: the service was away longer than `retry_s`.
        """
        return self.document("/timeline")

    def metrics(self) -> str:
        """Return every metric of the API, as Prometheus text.

        Raises:
            ApiError: it was refused, or the service was away longer than `retry_s`.
        """
        return (self._send("GET", "/metrics")).text

    def streams(self) -> list[dict[str, Any]]:
        """Return the streams of the service, as GET /streams shows them.

        Raises:
            ApiError: the service was away longer than `retry_s`.
        """
        said = answers.document(self._send("GET", "/streams"))
        found: list[dict[str, Any]] = said["streams"]
        return found

    def create_stream(
        self,
        name: str,
        input: str | None = None,
        *,
        labels: Sequence[Label] | None = None,
        **options: object,
    ) -> dict[str, Any]:
        """Declare a stream, once however often it is called; return it as the service shows it.

        Args:
            name: of the stream; a client of it is made with `stream=name`.
            input: what a sample is, such as `image:28x28x1`; None for what comes first.
            labels: the only ones it takes; None for any.
            options: its other settings, such as `preset` or `max_experts`.

        Raises:
            ApiError: `bad_stream`, `stream_exists` where it was declared otherwise before,
                `too_many_streams`, or the service was away longer than `retry_s`.
        """
        declared = {"name": name, "input": input, "labels": labels, **options}
        known = {field: value for field, value in declared.items() if value is not None}
        return answers.document(self._send("POST", "/streams", requests.document(known)))

    def events(self, after: str | None = None) -> Generator[Event]:
        """Yield what happens, for ever, and across lost connections without a gap.

        Args:
            after: id of the event to go on behind; None for what happens from now on.

        Raises:
            ApiError: it was refused, or the service was away longer than `retry_s`.
        """
        pauses: Pauses | None = None
        while True:
            reader = answers.EventReader()
            headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": after} if after else {})
            refusal = ApiError(0, "unreachable", "the events ended")
            try:
                for line in self._lines("/events", headers):
                    pauses = None
                    event = reader.feed(line)
                    after = reader.last_id or after
                    if event is not None:
                        yield event
            except ApiError as refused:
                refusal = refused
            pauses = pauses or Pauses(self._retry_s)
            sleep(pauses.after(refusal))
