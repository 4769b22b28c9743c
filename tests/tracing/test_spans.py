"""Spans lead from a call to the model calls it causes, hold no text, and are not there unless they are asked for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from rlm.v1 import run_pb2

from rlm_server.tracing import spans
from tests.servers import Served
from tests.system.stage import Play, code

SECRET = "SECRETTEXT"
TALK = Play(code(f"print(llm_query('{SECRET}'))", "FINAL(1)"))
TRACE = "0af7651916cd43dd8448eb211c80319c"


@pytest.fixture
def sent() -> Iterator[InMemorySpanExporter]:
    provider, exporter = TracerProvider(), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with spans.made_by(provider):
        yield exporter


def named(sent: InMemorySpanExporter, name: str) -> list[ReadableSpan]:
    return [span for span in sent.get_finished_spans() if span.name == name]


def above(sent: InMemorySpanExporter, span: ReadableSpan) -> list[str]:
    """The names of the spans that a span is below, the nearest first."""
    known = {one.context.span_id: one for one in sent.get_finished_spans() if one.context is not None}
    names = []
    while span.parent is not None and span.parent.span_id in known:
        span = known[span.parent.span_id]
        names.append(span.name)
    return names


async def test_a_model_call_is_below_its_turn_its_run_and_the_call_that_made_it(
    server: Served, sent: InMemorySpanExporter
) -> None:
    async with server(TALK) as served:
        parent: Any = ("traceparent", f"00-{TRACE}-b7ad6b7169203331-01")
        request = run_pb2.CreateRunRequest(question=SECRET)
        made = await served.caller.runs.CreateRun(request, metadata=(*served.caller.metadata, parent))
        await served.caller.ended(made.run.run_id)
    (call,) = named(sent, "rlm.v1.RunService/CreateRun")
    assert call.parent is not None
    assert call.context is not None
    assert format(call.context.trace_id, "032x") == TRACE
    chats = named(sent, "chat play")
    ways = [above(sent, chat) for chat in chats]
    assert ["run", "rlm.v1.RunService/CreateRun"] in ways, "the root model's"
    assert ["turn", "run", "rlm.v1.RunService/CreateRun"] in ways, "the code's own"
    for chat in chats:
        told = dict(chat.attributes or {})
        assert (told["gen_ai.operation.name"], told["gen_ai.request.model"]) == ("chat", "play")
        assert told["gen_ai.provider.name"] == "scripted"
        assert int(str(told["gen_ai.usage.input_tokens"])) > 0
        assert int(str(told["gen_ai.usage.output_tokens"])) > 0
    assert SECRET not in "".join(span.to_json() for span in sent.get_finished_spans())


async def test_a_call_that_fails_says_so(server: Served, sent: InMemorySpanExporter) -> None:
    async with server(TALK) as served:
        with pytest.raises(grpc.aio.AioRpcError):
            await served.caller.get("run_none")
    (call,) = named(sent, "rlm.v1.RunService/GetRun")
    told = dict(call.attributes or {})
    assert told["error.type"] == "NOT_FOUND"
    assert told["rpc.grpc.status_code"] == grpc.StatusCode.NOT_FOUND.value[0]
    assert told["rlm.tenant"] == "development"


def test_nothing_is_made_unless_the_environment_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in spans.ENDPOINTS:
        monkeypatch.delenv(name, raising=False)
    with spans.sending():
        assert spans.span("one") is spans.span("two") is spans.of_request("three") is spans.of_call("four", {})
