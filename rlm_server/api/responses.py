"""Writes the server's values as messages of the protocol."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, fields
from itertools import accumulate
from typing import Any, TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from rlm.v1 import budget_pb2, context_pb2, run_pb2, session_pb2, types_pb2

from rlm_server.contexts.context_table import Context
from rlm_server.ledger import Amounts, Balance, Limit, Usage
from rlm_server.repl.coverage import Coverage
from rlm_server.repl.events import (
    CallTraced,
    Ending,
    FinishedCall,
    ModelCallRequested,
    Printed,
    ToolCallAnswered,
    ToolCallRequested,
    TurnRestarted,
    UntoldCalls,
)
from rlm_server.runs.cuts import CutText
from rlm_server.runs.events import (
    Body,
    BudgetWarning,
    ChildFinished,
    Event,
    Guard,
    ModelReplied,
    NodeResumed,
    RunFinished,
    StrategyChosen,
)
from rlm_server.runs.journal import NodeRow
from rlm_server.runs.state import EndReason, RunState
from rlm_server.sessions.happenings import LeftOut
from sandbox.corpora.corpus import Kind
from sandbox.turn import Status, Stop, Turn, TurnError

M = TypeVar("M", bound=Message)

_STREAMS = {"stdout": session_pb2.OUTPUT_STREAM_STDOUT, "stderr": session_pb2.OUTPUT_STREAM_STDERR}
_STATUSES = {
    Status.OK: session_pb2.TURN_STATUS_OK,
    Status.ERROR: session_pb2.TURN_STATUS_ERROR,
    Status.ROLLED_BACK: session_pb2.TURN_STATUS_ROLLED_BACK,
}
_STOPS = {stop: session_pb2.StopReason.Value(f"STOP_REASON_{stop}") for stop in Stop}
_KINDS = {Kind.TEXT: context_pb2.CONTEXT_KIND_TEXT, Kind.DOCUMENTS: context_pb2.CONTEXT_KIND_DOCUMENTS}
_UNITS = {
    "nano_usd": types_pb2.BUDGET_UNIT_NANO_USD,
    "tokens": types_pb2.BUDGET_UNIT_TOKENS,
    "calls": types_pb2.BUDGET_UNIT_CALLS,
    "cpu_ms": types_pb2.BUDGET_UNIT_CPU_MS,
}
_GUARDS = {
    name.removeprefix("GUARD_KIND_").lower(): kind
    for name, kind in run_pb2.GuardKind.items()
    if kind != run_pb2.GUARD_KIND_UNSPECIFIED
}
_REPLY_ENDS = {
    "": run_pb2.REPLY_END_UNSPECIFIED,
    "end": run_pb2.REPLY_END_COMPLETE,
    "length": run_pb2.REPLY_END_LENGTH,
    "refusal": run_pb2.REPLY_END_REFUSAL,
}
_END_REASONS = {
    end: run_pb2.EndReason.Value("END_REASON_KEPT_BYTES" if end is EndReason.EVENT_BYTES else f"END_REASON_{end.name}")
    for end in EndReason
}
_STRATEGIES = {"rlm": run_pb2.STRATEGY_RLM, "direct": run_pb2.STRATEGY_DIRECT}
_ENDINGS = {end: run_pb2.ToolCallEnd.Value(f"TOOL_CALL_END_{end.name}") for end in Ending}
_STATES = {state: run_pb2.RunState.Value(f"RUN_STATE_{state.upper()}") for state in RunState}


def time(milliseconds: int) -> Timestamp:
    """Write a time in Unix milliseconds."""
    stamp = Timestamp()
    stamp.FromMilliseconds(milliseconds)
    return stamp


def duration(milliseconds: int) -> Duration:
    """Write a duration in milliseconds."""
    written = Duration()
    written.FromMilliseconds(milliseconds)
    return written


def amounts(value: Amounts) -> types_pb2.Amounts:
    """Write amounts of every unit."""
    return types_pb2.Amounts(
        nano_usd=value.nano_usd,
        token_count=value.tokens,
        call_count=value.calls,
        cpu_time=duration(value.cpu_ms) if value.cpu_ms else None,
    )


def budget(value: Limit) -> types_pb2.Budget:
    """Write a budget. An amount that is not limited is left out."""
    return types_pb2.Budget(**_limited(value))


def allowance(value: Limit) -> budget_pb2.Allowance:
    """Write what is left of a budget. An amount that is not limited is left out."""
    return budget_pb2.Allowance(**_limited(value))


def _limited(value: Limit) -> dict[str, Any]:
    return {
        "nano_usd": value.nano_usd,
        "token_count": value.tokens,
        "call_count": value.calls,
        "cpu_time": None if value.cpu_ms is None else duration(value.cpu_ms),
    }


def token_usage(value: Usage) -> budget_pb2.TokenUsage:
    """Write the tokens that a provider counted."""
    return budget_pb2.TokenUsage(**{f"{name}_count": count for name, count in asdict(value).items()})


def context(value: Context) -> context_pb2.Context:
    """Write a context."""
    content = value.content
    return context_pb2.Context(
        context_id=value.id,
        name=value.name,
        size_bytes=content.size_bytes,
        character_count=content.characters,
        sha256=content.sha256,
        create_time=time(value.created_at),
        kind=_KINDS[content.kind],
        document_count=content.documents,
        labels=value.labels,
    )


def page_token(list_name: str, *places: int | str) -> str:
    """Write where a list's next page begins; `requests.page_token` and `page_key` read it."""
    return base64.urlsafe_b64encode(json.dumps([list_name, *places]).encode()).decode()


def page(
    list_name: str, items: Sequence[M], there_are: int, place: Callable[[int], int | str]
) -> tuple[Sequence[M], str]:
    """Return as many of the first of a list's items as one answer may have, at least one, and the next page's token.

    The list has `there_are` items from here on, as far as anybody looked; where these are all, the token is empty.
    `place` returns where the next page begins after so many.
    """
    sizes = accumulate(item.ByteSize() + _FRAME for item in items)
    shown = items[: max(1, sum(size <= MOST_ITEMS for size in sizes))]
    return shown, page_token(list_name, place(len(shown))) if len(shown) < there_are else ""


def state(value: RunState) -> run_pb2.RunState.ValueType:
    """Write the state of a run or a node."""
    return _STATES[value]


def turn_result(value: Turn) -> session_pb2.TurnResult:
    """Write how a turn ended."""
    return session_pb2.TurnResult(
        status=_STATUSES[value.status],
        error=None if value.error is None else _turn_error(value.error, value.status),
        output_bytes=value.output_bytes,
        truncated=value.truncated,
        running_time=Duration(
            seconds=int(value.running_seconds), nanos=int(value.running_seconds % 1 * 1_000_000) * 1_000
        ),
        variables=[
            session_pb2.Variable(name=v.name, type=v.type, length=v.length if v.length >= 0 else None)
            for v in value.variables
        ],
        stop_reason=_stop_reason(value),
    )


def _turn_error(error: TurnError, status: Status) -> session_pb2.TurnError:
    """Write an exception. What stopped a turn from outside is no type of the guest's."""
    kind = error.type if status is Status.ERROR else ""
    return session_pb2.TurnError(type=kind, message=error.message, traceback=error.traceback)


def _stop_reason(value: Turn) -> session_pb2.StopReason.ValueType:
    if value.status is not Status.ROLLED_BACK or value.error is None:
        return session_pb2.STOP_REASON_UNSPECIFIED
    return _STOPS[Stop(value.error.type)]


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
    return session_pb2.UntoldCalls(from_memory_count=value.from_memory, failed_count=value.failed)


def left_out(value: LeftOut) -> session_pb2.LeftOut:
    """Write how much of a turn is not told."""
    return session_pb2.LeftOut(event_count=value.events, character_count=value.characters)


def coverage(value: Coverage) -> context_pb2.Coverage:
    """Write how much of a context was looked at."""
    ranges = [context_pb2.Range(document=one.document, start=one.start, end=one.end) for one in value.ranges]
    return context_pb2.Coverage(fraction=value.fraction, document_count=value.documents, ranges=ranges, more=value.more)


def traced_call(value: CallTraced) -> session_pb2.ModelCallTraced:
    """Write which parts of the context a call's prompt contains."""
    passages = [
        context_pb2.Passage(
            range=context_pb2.Range(document=one.document, start=one.start, end=one.end), prompt_start=one.prompt_start
        )
        for one in value.passages
    ]
    return session_pb2.ModelCallTraced(call_id=value.call_id, passages=passages, more=value.more)


MOST_TEXT = 64 << 10
"""Bytes of UTF-8 of a question, and of an answer, in a run."""
MOST_NODE_TEXT = 4 << 10
"""The same in a node."""
MOST_ITEMS = 960 << 10
"""Bytes of the items of a page, so that the whole answer has less than a MiB."""
_FRAME = 8
"""Bytes around an item in its answer, at most."""


def end_reason(state: RunState, reason: str) -> run_pb2.EndReason.ValueType:
    """Write why a run, or a node, ended that did not succeed."""
    found = EndReason.of(state, reason)
    return run_pb2.END_REASON_UNSPECIFIED if found is None else _END_REASONS[found]


def node(value: NodeRow, balance: Balance) -> run_pb2.Node:
    """Write a node of a run's tree, of whose texts there may be only the beginning."""
    return run_pb2.Node(
        node_id=value.id,
        parent_id=value.parent or "",
        depth=value.depth,
        state=state(value.state),
        question=value.question,
        answer=value.answer,
        end_message=value.reason,
        end_reason=end_reason(value.state, value.reason),
        turn_count=value.turns,
        spent=amounts(balance.posted),
        coverage_fraction=value.coverage_fraction,
        cut=cut_texts(value.cut),
        answer_size_bytes=value.answer_bytes,
    )


def cut_texts(values: Iterable[CutText], reason: str = "end_message") -> list[types_pb2.CutText]:
    """Write which texts are not whole; `reason` is what the message calls its reason."""
    return [
        types_pb2.CutText(
            field=reason if one.field == "reason" else one.field,
            size_bytes=one.size_bytes,
            redacted=bool(one.digest),
            digest=one.digest,
        )
        for one in values
    ]


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
        cut=cut_texts(value.cut, "reason" if isinstance(value.body, TurnRestarted | NodeResumed) else "end_message"),
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
_COUNTS = frozenset({"max_turns", "context_characters", "prompt_characters", "reply_characters"})
"""Fields of events' bodies that the protocol calls `…_count`."""


def _body(body: Body) -> Message:
    """Write an event's body. Its message has the same name, and mostly fields of the same names."""
    kind = type(body)
    if kind in _OWN:
        return _OWN[kind](body)
    message, names = _messages.get(kind) or _message_of(kind)
    written = {}
    for name, called in names:
        value = getattr(body, name)
        writer = _WRITERS.get(type(value))
        written[called] = value if writer is None else writer(value)
    return message(**written)


_messages: dict[type, tuple[Callable[..., Message], tuple[tuple[str, str], ...]]] = {}
"""Of each kind of body its message, and the names of its fields in both."""


def _message_of(kind: type[Any]) -> tuple[Callable[..., Message], tuple[tuple[str, str], ...]]:
    names = (field.name for field in fields(kind) if field.name != "kind")
    called = tuple((name, re.sub("s?$", "_count", name, count=1) if name in _COUNTS else name) for name in names)
    _messages[kind] = getattr(run_pb2, kind.__name__), called
    return _messages[kind]


def _guard(body: Guard) -> run_pb2.Guard:
    return run_pb2.Guard(kind=_GUARDS[body.name], detail=body.detail)


def _strategy_chosen(body: StrategyChosen) -> run_pb2.StrategyChosen:
    return run_pb2.StrategyChosen(strategy=_STRATEGIES[body.strategy], reason=body.reason)


def _budget_warning(body: BudgetWarning) -> run_pb2.BudgetWarning:
    return run_pb2.BudgetWarning(unit=_UNITS[body.unit], percent=body.percent, spent=body.spent, limit=body.limit)


def _model_replied(body: ModelReplied) -> run_pb2.ModelReplied:
    return run_pb2.ModelReplied(
        model=body.model, text=body.text, spent=amounts(body.spent), call_id=body.call_id, end=_REPLY_ENDS[body.stopped]
    )


def _child_finished(body: ChildFinished) -> run_pb2.ChildFinished:
    return run_pb2.ChildFinished(
        child_id=body.child_id,
        state=state(body.state),
        end_message=body.reason,
        end_reason=end_reason(body.state, body.reason),
        spent=amounts(body.spent),
    )


def _run_finished(body: RunFinished) -> run_pb2.RunFinished:
    return run_pb2.RunFinished(
        state=state(body.state),
        end_message=body.reason,
        end_reason=end_reason(body.state, body.reason),
        spent=amounts(body.spent),
        answer=body.answer,
    )


def _tool_call_requested(body: ToolCallRequested) -> run_pb2.ToolCallRequested:
    return run_pb2.ToolCallRequested(
        call_id=body.call_id, name=body.name, arguments_json=body.arguments_json, deadline=time(body.deadline)
    )


def _model_call_requested(body: ModelCallRequested) -> run_pb2.ModelCallRequested:
    return run_pb2.ModelCallRequested(
        call_id=body.call_id,
        model=body.model,
        system=body.system,
        messages=[run_pb2.ModelMessage(role=_ROLES[one.role], content=one.content) for one in body.messages],
        max_token_count=body.max_tokens,
        deadline=time(body.deadline),
    )


_ROLES = {"user": run_pb2.MODEL_ROLE_USER, "assistant": run_pb2.MODEL_ROLE_ASSISTANT}


def _tool_call_answered(body: ToolCallAnswered) -> run_pb2.ToolCallAnswered:
    return run_pb2.ToolCallAnswered(
        call_id=body.call_id, end=_ENDINGS[body.end], result_json=body.result_json, error=body.error
    )


_OWN: dict[type, Callable[[Any], Message]] = {
    Printed: output,
    CallTraced: traced_call,
    TurnRestarted: turn_restarted,
    Guard: _guard,
    StrategyChosen: _strategy_chosen,
    BudgetWarning: _budget_warning,
    ModelReplied: _model_replied,
    ChildFinished: _child_finished,
    RunFinished: _run_finished,
    ToolCallRequested: _tool_call_requested,
    ToolCallAnswered: _tool_call_answered,
    ModelCallRequested: _model_call_requested,
}
"""Bodies whose messages have fields of other names."""
