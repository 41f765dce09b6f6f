"""Traces: one from a request to the step that learns it, off unless asked for."""

import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry

from service import tracing
from service.errors import SettingsError
from service.metrics import WorkerMetrics
from service.settings import Settings
from service.store.link import connect
from service.store.names import DEFAULT as names
from service.worker.learning import Learning
from tests.served import DOCUMENT, PIXELS
from tests.toy_engine import ToyEngines

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
HEADERS = {"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    """What is traced in this process."""
    kept = InMemorySpanExporter()
    tracing.send_to(SimpleSpanProcessor(kept), "test")
    yield kept
    tracing.stop()


def learned(settings: Settings) -> None:
    """Let a worker learn all that is in the log."""
    url = str(settings.redis_url)
    learning = Learning(settings, ToyEngines(), url, WorkerMetrics(CollectorRegistry()))
    learning.restore()
    for raw in learning.read(count=10, block_ms=None):
        learning.learn(raw)
    learning.close()


async def test_a_trace_goes_from_the_request_to_the_learned_step(
    spans: InMemorySpanExporter, api: httpx.AsyncClient, api_settings: Settings
) -> None:
    answer = await api.post("/observe", json=DOCUMENT, headers=HEADERS)
    assert answer.status_code == 202
    learned(api_settings)

    observe, learn = spans.get_finished_spans()
    assert (observe.name, learn.name) == ("observe", "learn")
    assert observe.parent is not None
    assert learn.parent is not None
    assert f"{observe.context.trace_id:032x}" == f"{learn.context.trace_id:032x}" == TRACE
    assert learn.parent.span_id == observe.context.span_id
    assert dict(learn.attributes or {}) == {"levit.position": answer.json()["position"]}


async def test_without_a_header_each_request_begins_a_trace(
    spans: InMemorySpanExporter, api: httpx.AsyncClient, api_settings: Settings
) -> None:
    for headers in ({}, {"traceparent": "nonsense"}):
        await api.post("/observe", json=DOCUMENT, headers=headers)
    learned(api_settings)

    first, second, *steps = spans.get_finished_spans()
    assert first.context.trace_id != second.context.trace_id
    assert [one.context.trace_id for one in steps] == [
        first.context.trace_id,
        second.context.trace_id,
    ]


async def test_predictions_are_traced(
    spans: InMemorySpanExporter, serving: httpx.AsyncClient
) -> None:
    await serving.post("/predict", json={"x": PIXELS.tolist()}, headers=HEADERS)

    (span,) = spans.get_finished_spans()
    assert (span.name, f"{span.context.trace_id:032x}") == ("predict", TRACE)


async def test_unless_asked_nothing_is_traced_or_kept(
    api: httpx.AsyncClient, api_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in tracing.ASKED_BY:
        monkeypatch.delenv(name, raising=False)
    tracing.configure("test")

    await api.post("/observe", json=DOCUMENT, headers=HEADERS)

    redis = connect(str(api_settings.redis_url))
    entries: Any = redis.xrange(names.log)
    redis.close()
    assert [b"traceparent" in fields for _, fields in entries] == [False]


def test_traces_are_sent_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[tuple[str, bytes]] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            taken.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        endpoint = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        tracing.configure("test")
        try:
            with tracing.span("observe"):
                pass
            waiting = threading.Event()
            for _ in range(200):
                if taken:
                    break
                waiting.wait(0.05)
        finally:
            tracing.stop()
            server.shutdown()

    ((path, body),) = taken
    assert path == "/v1/traces"
    assert b"levit-test" in body


def test_asked_for_without_the_package_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)

    with pytest.raises(SettingsError, match=r"levit-stream\[otel\]"):
        tracing.configure("test")
