"""Traces of what happens to a request, up to the step that learns it; off unless asked for.

On where OpenTelemetry is installed (`pip install 'levit-stream[otel]'`) and its own variable
OTEL_EXPORTER_OTLP_ENDPOINT, or the one of traces alone, says where traces go. Where a request has a
W3C `traceparent` its trace goes on, else a new one begins; the log entry carries it to the worker,
whose step may come much later and in another process. Nothing that is learned depends on it.
"""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

from service import __version__
from service.errors import SettingsError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor
    from opentelemetry.trace import Tracer

ASKED_BY = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
"""Variables of OpenTelemetry; one that is set switches traces on."""
HEADER = "traceparent"
_OFF = nullcontext(None)

_tracer: "Tracer | None" = None


def configure(process: str) -> None:
    """Begin to trace, if the environment asks for it.

    Args:
        process: `worker` or `api`; the name of the service is `levit-` and that.

    Raises:
        SettingsError: it is asked for, and OpenTelemetry is not installed.
    """
    asked = next((name for name in ASKED_BY if os.environ.get(name)), None)
    if asked is None:
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise SettingsError(
            f"{asked} asks for traces: expected OpenTelemetry, got {error}; install it with "
            "pip install 'levit-stream[otel]', or unset it"
        ) from error
    send_to(BatchSpanProcessor(OTLPSpanExporter()), process)


def send_to(processor: "SpanProcessor", process: str) -> None:
    """Begin to trace, and give what was traced to a processor."""
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider

    global _tracer  # noqa: PLW0603  one a process, as logs
    known = {"service.name": f"levit-{process}", "service.version": __version__}
    provider = TracerProvider(resource=Resource.create(known))
    provider.add_span_processor(processor)
    _tracer = provider.get_tracer("levit")


def stop() -> None:
    """Trace nothing any more."""
    global _tracer  # noqa: PLW0603  as above
    _tracer = None


def span(
    name: str, parent: str | None = None, **facts: str | int
) -> AbstractContextManager[str | None]:
    """Trace a block under a name; the block is given the traceparent for what follows from it.

    None where nothing is traced, and then this costs nothing.

    Args:
        name: of what is done, such as `observe`.
        parent: traceparent of what it follows from; anything else begins a trace.
        facts: attributes, prefixed with `levit.`.
    """
    return _OFF if _tracer is None else _span(_tracer, name, parent, facts)


@contextmanager
def _span(
    tracer: "Tracer", name: str, parent: str | None, facts: dict[str, str | int]
) -> Iterator[str | None]:
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    propagator = TraceContextTextMapPropagator()
    context = propagator.extract({HEADER: parent} if parent else {})
    named = {f"levit.{fact}": value for fact, value in facts.items()}
    with tracer.start_as_current_span(name, context, attributes=named):
        carrier: dict[str, str] = {}
        propagator.inject(carrier)
        yield carrier.get(HEADER)
