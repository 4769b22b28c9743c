"""Writes the server's values as messages of the protocol."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, fields
from typing import Any

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from rlm.v1 import budget_pb2, context_pb2, run_pb2, session_pb2, types_pb2

from rlm_server.contexts.context_table import Context
from rlm_server.ledger import Amounts, Balance, Limit, Usage
from rlm_server.repl.coverage import Coverage
from rlm_server.repl.events import (
    CallTraced,
    FinishedCall,
    Printed,
    TurnRestarted,
    UntoldCalls,
)
from rlm_server.runs.cuts import CutText, beginning_of
from rlm_server.runs.events import Body, Event
from rlm_server.runs.journal import NodeRow
from rlm_server.runs.state import RunState
from rlm_server.sessions.happenings import LeftOut
from sandbox.corpora.corpus import Kind
from sandbox.turn import Status, Turn

_STREAMS = {"stdout": session_pb2.OUTPUT_STREAM_STDOUT, "stderr": session_pb2.OUTPUT_STREAM_STDERR}
_STATUSES = {
    Status.OK: session_pb2.TURN_STATUS_OK,
    Status.ERROR: session_pb2.TURN_STATUS_ERROR,
    Status.ROLLED_BACK: session_pb2.TURN_STATUS_ROLLED_BACK,
}
_KINDS = {Kind.TEXT: context_pb2.CONTEXT_KIND_TEXT, Kind.DOCUMENTS: context_pb2.CONTEXT_KIND_DOCUMENTS}
_STATES = {state: run_pb2.RunState.Value(f"RUN_STATE_{state.upper()}") for state in RunState}


def time(milliseconds: int) -> Timestamp:
    """Write a time in Unix milliseconds."""
    stamp = Timestamp()
    stamp.FromMilliseconds(milliseconds)
    return stamp


def amounts(value: Amounts) -> types_pb2.Amounts:
    """Write amounts of every unit."""
    return types_pb2.Amounts(nano_usd=value.nano_usd, tokens=value.tokens, calls=value.calls, cpu_ms=value.cpu_ms)


def budget(value: Limit) -> types_pb2.Budget:
    """Write a budget. An amount that is not limited is left out."""
    return types_pb2.Budget(**asdict(value))


def allowance(value: Limit) -> budget_pb2.Allowance:
    """Write what is left of a budget. An amount that is not limited is left out."""
    return budget_pb2.Allowance(**asdict(value))


def token_usage(value: Usage) -> budget_pb2.TokenUsage:
    """Write the tokens that a provider counted."""
    return budget_pb2.TokenUsage(**asdict(value))


def context(value: Context) -> context_pb2.Context:
    """Write a context."""
    return context_pb2.Context(
        context_id=value.id,
        name=value.name,
        size_bytes=value.size_bytes,
        characters=value.characters,
        sha256=value.sha256,
        create_time=time(value.created_at),
        kind=_KINDS[value.kind],
        documents=value.documents,
    )


def page_token(list_name: str, *places: int | str) -> str:
    """Write where a list's next page begins; `requests.page_token` and `page_key` read it."""
    return base64.urlsafe_b64encode(json.dumps([list_name, *places]).encode()).decode()


def state(value: RunState) -> run_pb2.RunState.ValueType:
    """Write the state of a run or a node."""
    return _STATES[value]


def turn_result(value: Turn) -> session_pb2.TurnResult:
    """Write how a turn ended."""
    error = value.error
    return session_pb2.TurnResult(
        status=_STATUSES[value.status],
        error=session_pb2.TurnError(type=error.type, message=error.message, traceback=error.traceback)
        if error
        else None,
        output_bytes=value.output_bytes,
        truncated=value.truncated,
        running_milliseconds=value.running_seconds * 1000,
        variables=[session_pb2.Variable(name=v.name, type=v.type, length=v.length) for v in value.variables],
    )


def output(value: Printed) -> session_pb2.Output:
    """Write something printed."""
    return session_pb2.Output(stream=_STREAMS[value.stream], text=value.text)


def turn_restarted(value: TurnRestarted) -> session_pb2.TurnRestarted:
    """Write that a turn began again."""
    return session_pb2.TurnRestarted(reason=value.reason)


def finished_call(value: FinishedCall) -> session_pb2.ModelCallFinished:
    """Write the end of a model call."""
    return session_pb2.ModelCallFinished(
        call_id=value.call_id, model=value.model, spent=amounts(value.spent), memo=value.memo, error=value.error
    )


def untold_calls(value: UntoldCalls) -> session_pb2.UntoldCalls:
    """Write how many calls of a turn have no events of their own."""
    return session_pb2.UntoldCalls(from_memory=value.from_memory, failed=value.failed)


def left_out(value: LeftOut) -> session_pb2.LeftOut:
    """Write how much of a turn is not told."""
    return session_pb2.LeftOut(events=value.events, characters=value.characters)


def coverage(value: Coverage) -> context_pb2.Coverage:
    """Write how much of a context was looked at."""
    ranges = [context_pb2.Range(document=one.document, start=one.start, end=one.end) for one in value.ranges]
    return context_pb2.Coverage(fraction=value.fraction, documents=value.documents, ranges=ranges, more=value.more)


def traced_call(value: CallTraced) -> session_pb2.ModelCallTraced:
    """Write which parts of the context a call's prompt contains."""
    passages = [
        context_pb2.Passage(
            range=context_pb2.Range(document=one.document, start=one.start, end=one.end), prompt_start=one.prompt_start
        )
        for one in value.passages
    ]
    return session_pb2.ModelCallTraced(call_id=value.call_id, passages=passages, more=value.more)


MOST_MESSAGE = 4_000_000
"""Bytes of a run as a message: below the 4 MiB that every client takes."""


def node(value: NodeRow, balance: Balance) -> run_pb2.Node:
    """Write a node of a run's tree, of whose texts there may be only the beginning."""
    return run_pb2.Node(
        node_id=value.id,
        parent_id=value.parent or "",
        depth=value.depth,
        state=state(value.state),
        question=value.question,
        answer=value.answer,
        reason=value.reason,
        turns=value.turns,
        spent=amounts(balance.posted),
        coverage_fraction=value.coverage_fraction,
        cut=cut_texts(value.cut),
    )


def fill_answer(message: run_pb2.Run, root: NodeRow) -> None:
    """Write a run's answer, as far as the message has room for it."""
    answer = beginning_of(root.answer, MOST_MESSAGE - message.ByteSize())
    message.answer = answer
    if len(answer) < len(root.answer):
        message.cut.add(field="answer", size_bytes=root.answer_bytes)


def cut_texts(values: Iterable[CutText]) -> list[types_pb2.CutText]:
    """Write which texts are not whole."""
    return [types_pb2.CutText(field=one.field, size_bytes=one.size_bytes) for one in values]


def event(value: Event) -> run_pb2.RunEvent:
    """Write an event."""
    body: dict[str, Any] = {value.body.kind: _body(value.body)}
    return run_pb2.RunEvent(
        sequence=value.sequence,
        time=time(value.at),
        node_id=value.origin.node,
        parent_id=value.origin.parent,
        depth=value.origin.depth,
        turn=value.origin.turn,
        cut=cut_texts(value.cut),
        **body,
    )


_WRITERS: dict[type, Callable[[Any], object]] = {
    Amounts: amounts,
    Limit: budget,
    RunState: state,
    FinishedCall: finished_call,
    Turn: turn_result,
    UntoldCalls: untold_calls,
    Coverage: coverage,
}


def _body(body: Body) -> Message:
    """Write an event's body. Its message has the same name, and fields of the same names."""
    if isinstance(body, Printed):
        return output(body)
    if isinstance(body, CallTraced):
        return traced_call(body)
    if isinstance(body, TurnRestarted):
        return turn_restarted(body)
    kind = type(body)
    message, names = _messages.get(kind) or _message_of(kind)
    written = {}
    for name in names:
        value = getattr(body, name)
        writer = _WRITERS.get(type(value))
        written[name] = value if writer is None else writer(value)
    return message(**written)


_messages: dict[type, tuple[Callable[..., Message], tuple[str, ...]]] = {}
"""Of each kind of body its message, and the names of its fields."""


def _message_of(kind: type[Any]) -> tuple[Callable[..., Message], tuple[str, ...]]:
    names = tuple(field.name for field in fields(kind) if field.name != "kind")
    _messages[kind] = getattr(run_pb2, kind.__name__), names
    return _messages[kind]
