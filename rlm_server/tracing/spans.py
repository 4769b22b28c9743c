"""Spans of calls, runs, turns and model calls. Without `set_up` each costs the look at one variable.

No attribute holds a question, a text, code or an answer.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

log = logging.getLogger(__name__)

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
"""OpenTelemetry's own variables. Spans are made where one of them is set."""

Value = str | int | float

_tracer: Any = None


class Span:
    """A span that is open, or none."""

    __slots__ = ("_inner",)

    def __init__(self, inner: Any = None) -> None:
        self._inner = inner

    def note(self, **attributes: Value) -> None:
        """Add attributes; a `__` in a name stands for a dot."""
        if self._inner is not None:
            self._inner.set_attributes(_dotted(attributes))

    def fail(self, kind: str) -> None:
        """Say that what the span is of failed, and what kind of failure it was."""
        if self._inner is not None:
            from opentelemetry.trace import StatusCode

            self._inner.set_status(StatusCode.ERROR)
            self._inner.set_attribute("error.type", kind)


_OFF: AbstractContextManager[Span] = nullcontext(Span())


def span(name: str, **attributes: Value) -> AbstractContextManager[Span]:
    """Open a span below the one around it, for as long as the context is open. A `__` in a name stands for a dot."""
    return _OFF if _tracer is None else _opened(name, "internal", None, attributes)


def of_call(name: str, headers: Mapping[str, str], **attributes: Value) -> AbstractContextManager[Span]:
    """Open the span of a call, below its caller's where the headers name that."""
    return _OFF if _tracer is None else _opened(name, "server", headers, attributes)


def of_request(name: str, **attributes: Value) -> AbstractContextManager[Span]:
    """Open the span of a request to somebody else."""
    return _OFF if _tracer is None else _opened(name, "client", None, attributes)


@contextmanager
def _opened(name: str, kind: str, headers: Mapping[str, str] | None, attributes: Mapping[str, Value]) -> Iterator[Span]:
    from opentelemetry import propagate
    from opentelemetry.trace import SpanKind

    around = None if headers is None else propagate.extract(headers)
    with _tracer.start_as_current_span(
        name,
        around,
        kind=SpanKind[kind.upper()],
        attributes=_dotted(attributes),
        record_exception=False,  # its words may repeat a text
        set_status_on_exception=False,
    ) as inner:
        opened = Span(inner)
        try:
            yield opened
        except BaseException as error:
            opened.fail(type(error).__qualname__)
            raise


def _dotted(attributes: Mapping[str, Value]) -> dict[str, Value]:
    return {name.replace("__", "."): value for name, value in attributes.items()}


def wanted() -> bool:
    """Whether the environment names where spans are to be sent."""
    return any(os.environ.get(name) for name in ENDPOINTS)


@contextmanager
def sending() -> Iterator[None]:
    """Send spans where the environment says, for as long as the context is open; do nothing where it does not.

    OpenTelemetry's own variables say the rest. What is left is sent before the context ends, or given up in seconds.
    """
    if not wanted():
        yield
        return
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        log.warning("no spans are sent: install rlm-server[otel]")
        yield
        return
    name = os.environ.get("OTEL_SERVICE_NAME", "") or "rlm-server"
    provider = TracerProvider(resource=Resource.create({"service.name": name}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    with made_by(provider):
        try:
            yield
        finally:
            provider.shutdown()


@contextmanager
def made_by(provider: Any) -> Iterator[None]:
    """Have spans made by a provider of OpenTelemetry's, for as long as the context is open."""
    global _tracer
    _tracer = provider.get_tracer("rlm_server")
    try:
        yield
    finally:
        _tracer = None
