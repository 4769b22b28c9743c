"""The server's values are written as the messages that say the same: what is written can be read back."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from enum import Enum
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st
from rlm.v1 import budget_pb2, context_pb2, run_pb2, session_pb2, types_pb2

from rlm_server.api import responses
from rlm_server.broker.provider import Message as ModelMessage
from rlm_server.contexts.context_table import Context
from rlm_server.contexts.passages import Passage
from rlm_server.ledger import UNITS, Amounts, Limit, Usage
from rlm_server.repl.coverage import Coverage
from rlm_server.repl.events import CallTraced, Ending, FinishedCall, ModelCallRequested, Printed, ToolCallRequested
from rlm_server.runs.cuts import with_texts
from rlm_server.runs.events import Answer, Body, BudgetWarning, Event, EventOrigin, Guard, StrategyChosen, written
from rlm_server.runs.redaction import Redaction
from rlm_server.runs.state import RunState
from sandbox.corpora.corpus import Kind
from sandbox.corpora.coverage import Range
from sandbox.turn import Status, Stop, Turn, TurnError, Variable
from tests.runs.test_journal import BODIES as EVENTS
from tests.runs.test_redaction import Secrets

BODIES = get_args(Body)
NUMBERS: dict[type, st.SearchStrategy[Any]] = {
    int: st.integers(0, (1 << 31) - 1),
    float: st.integers(0, 1 << 20).map(lambda eighths: eighths / 8),  # which are exact, and so in thousandths
    str: st.text(),
    bool: st.booleans(),
}


TURN_ENDS = st.one_of(
    st.tuples(st.just(Status.OK), st.none()),
    st.tuples(st.just(Status.ERROR), st.builds(TurnError, st.text(), st.text(), st.text())),
    st.tuples(st.just(Status.ROLLED_BACK), st.builds(TurnError, st.sampled_from(Stop), st.text(), st.text())),
)
"""How turns end: with nothing, with an exception of the guest's, or stopped."""


def turns() -> st.SearchStrategy[Turn]:
    variables = st.lists(st.builds(Variable, st.text(), st.text(), st.integers(-1, 1 << 40)), max_size=3).map(tuple)
    counts = st.integers(0, 1 << 40)
    return st.builds(
        lambda end, size, cut, seconds, names: Turn(end[0], "", "", size, cut, seconds, 0, end[1], names),
        TURN_ENDS, counts, st.booleans(), NUMBERS[float], variables,
    )  # fmt: skip


TIMES = st.integers(0, 253_402_300_799_999)


def values(kind: Any) -> st.SearchStrategy[Any]:
    """Any value of a type: of a dataclass, of what its fields are made of, or of an enum."""
    if kind is Turn:
        return turns()
    if kind is Guard:
        kinds = [name.removeprefix("GUARD_KIND_").lower() for name in run_pb2.GuardKind.keys()[1:]]
        return st.builds(Guard, st.sampled_from(kinds), st.text())
    if kind is BudgetWarning:
        return st.builds(BudgetWarning, st.sampled_from(UNITS), *[NUMBERS[int]] * 3)
    if kind is ToolCallRequested:
        return st.builds(ToolCallRequested, *[st.text()] * 3, TIMES)
    if kind is ModelCallRequested:
        messages = st.lists(values(ModelMessage), max_size=3).map(tuple)
        return st.builds(ModelCallRequested, *[st.text()] * 3, messages, NUMBERS[int], TIMES)
    origin, inner = get_origin(kind), get_args(kind)
    if kind in NUMBERS:
        return NUMBERS[kind]
    if kind is type(None):
        return st.none()
    if origin is Literal:
        return st.sampled_from(inner)
    if origin in (Union, types.UnionType):
        return st.one_of(*map(values, inner))
    if origin is tuple:
        return st.lists(values(inner[0]), max_size=3).map(tuple)
    if issubclass(kind, Enum):
        return st.sampled_from(kind)
    hints = get_type_hints(kind)
    return st.builds(kind, **{field.name: values(hints[field.name]) for field in fields(kind)})


def read(kind: Any, written: Any) -> Any:
    """Read a value of a type back from what was written of it."""
    inner = get_args(kind)
    if kind in NUMBERS:
        return written
    if get_origin(kind) is tuple:
        return tuple(read(inner[0], one) for one in written)
    if kind is RunState:
        return RunState(run_pb2.RunState.Name(written).removeprefix("RUN_STATE_").lower())
    if kind is Status:
        return Status(session_pb2.TurnStatus.Name(written).removeprefix("TURN_STATUS_").lower())
    if kind is Printed:
        return Printed("stderr" if written.stream == session_pb2.OUTPUT_STREAM_STDERR else "stdout", written.text)
    if kind is Passage:
        at = written.range
        return Passage(at.document, at.start, at.end, written.prompt_start)
    if kind is Turn:
        seconds = written.running_time.ToMicroseconds() / 1_000_000
        error = read(TurnError, written.error) if written.HasField("error") else None
        if written.stop_reason:
            assert error is not None
            assert not error.type, "what stopped a turn is no type of the guest's"
            stop = session_pb2.StopReason.Name(written.stop_reason).removeprefix("STOP_REASON_")
            error = replace(error, type=Stop(stop))
        variables = read(tuple[Variable, ...], written.variables)
        status, size = read(Status, written.status), written.output_bytes
        return Turn(status, "", "", size, written.truncated, seconds, 0, error, variables)
    if kind is Variable:
        return Variable(written.name, written.type, written.length if written.HasField("length") else -1)
    if kind is BudgetWarning:
        unit = types_pb2.BudgetUnit.Name(written.unit).removeprefix("BUDGET_UNIT_").lower()
        return BudgetWarning(unit, written.percent, written.spent, written.limit)
    if kind is Guard:
        return Guard(run_pb2.GuardKind.Name(written.kind).removeprefix("GUARD_KIND_").lower(), written.detail)
    if kind is StrategyChosen:
        how: Any = run_pb2.Strategy.Name(written.strategy).removeprefix("STRATEGY_").lower()
        return StrategyChosen(how, written.reason)
    if kind is ToolCallRequested:
        at = written.deadline.ToMilliseconds()
        return ToolCallRequested(written.call_id, written.name, written.arguments_json, at)
    if kind is ModelCallRequested:
        messages = tuple(ModelMessage(_ROLES[one.role], one.content) for one in written.messages)
        at = written.deadline.ToMilliseconds()
        tokens = written.max_token_count
        return ModelCallRequested(written.call_id, written.model, written.system, messages, tokens, at)
    if kind is Ending:
        return Ending(run_pb2.ToolCallEnd.Name(written).removeprefix("TOOL_CALL_END_").lower())
    if get_origin(kind) is Literal:
        ends = {"COMPLETE": "end", "UNSPECIFIED": ""}
        name = run_pb2.ReplyEnd.Name(written).removeprefix("REPLY_END_")
        return ends.get(name, name.lower())
    assert is_dataclass(kind)
    hints = get_type_hints(kind)
    names = [field.name for field in fields(kind) if field.name != "kind"]
    return kind(**{name: _field(hints[name], written, name) for name in names})  # type: ignore[operator]


_ROLES: dict[int, Any] = {run_pb2.MODEL_ROLE_USER: "user", run_pb2.MODEL_ROLE_ASSISTANT: "assistant"}
WRITTEN = {"reason": "end_message", "stopped": "end", "cpu_ms": "cpu_time"}
"""What the protocol calls fields of events, where that is no count of the same name."""


def _field(kind: Any, message: Message, name: str) -> Any:
    there = message.DESCRIPTOR.fields_by_name
    counts = (f"{name}_count", f"{name.removesuffix('s')}_count")
    called = next(one for one in (name, WRITTEN.get(name, name), *counts) if one in there)
    value = getattr(message, called)
    if called == "cpu_time":
        return value.ToMilliseconds() if message.HasField(called) or kind is int else None
    if type(None) in get_args(kind):
        (present,) = set(get_args(kind)) - {type(None)}
        return read(present, value) if message.HasField(called) else None
    return read(kind, value)


def shown(value: Any) -> Any:
    """A body without what is not shown of it: the output of a turn, which is told as it is printed."""
    if isinstance(value, Turn):
        return replace(value, stdout="", stderr="", door_calls=0)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{one.name: shown(getattr(value, one.name)) for one in fields(value)})
    return value


# ---- events -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", BODIES, ids=lambda kind: kind.__name__)
@given(data=st.data())
def test_the_body_of_an_event_can_be_read_back(kind: Any, data: st.DataObject) -> None:
    body = data.draw(values(kind))
    written = responses.event(Event(1, 0, EventOrigin("node", "", 0), body))
    assert written.WhichOneof("body") == body.kind
    assert read(kind, getattr(written, body.kind)) == shown(body)


def test_every_body_of_the_protocol_is_that_of_an_event() -> None:
    kinds = {get_args(get_type_hints(kind)["kind"])[0] for kind in BODIES}
    assert kinds == {field.name for field in run_pb2.RunEvent.DESCRIPTOR.oneofs_by_name["body"].fields}


@given(values(EventOrigin), st.integers(1, 1 << 62), st.integers(0, 253_402_300_799_999))
def test_an_event_says_when_and_where_it_happened(origin: EventOrigin, sequence: int, at: int) -> None:
    written = responses.event(Event(sequence, at, origin, Answer("42")))
    assert (written.sequence, written.time.ToMilliseconds()) == (sequence, at)
    assert EventOrigin(written.node_id, written.parent_id, written.depth, written.turn) == origin


def test_an_event_whose_body_is_empty_has_that_body() -> None:
    written = responses.event(Event(1, 0, EventOrigin("node", "", 0), Answer("")))
    assert run_pb2.RunEvent.FromString(written.SerializeToString()).WhichOneof("body") == "answer"


@pytest.mark.parametrize("body", EVENTS, ids=lambda body: body.kind)
def test_a_text_that_is_not_whole_is_named_by_its_path_in_the_protocol(body: Body) -> None:
    redaction = Redaction(lambda _: True, b"secret").of("acme", "run")
    event = written(Event(1, 0, EventOrigin("node", "", 0), with_texts(body, Secrets())), redaction).event
    message = responses.event(event)
    assert len(message.cut) == len(event.cut)
    printed = ("result.stdout", "result.stderr")  # which no turn of an event has: it is told as it is printed
    for cut in (one for one in message.cut if one.field not in printed):
        at: Any = getattr(message, body.kind)
        for name in cut.field.split("."):
            assert name in at.DESCRIPTOR.fields_by_name, cut.field
            at = getattr(at, name)


# ---- what sessions and runs share ---------------------------------------------------------------------------------


@given(values(Turn))
def test_the_result_of_a_turn_can_be_read_back(turn: Turn) -> None:
    assert read(Turn, responses.turn_result(turn)) == shown(turn)


def test_a_turn_without_an_error_has_none() -> None:
    turn = Turn(Status.OK, "", "", 0, False, 0.0, 0)
    assert not responses.turn_result(turn).HasField("error")
    raised = replace(turn, status=Status.ERROR, error=TurnError("", ""))
    assert responses.turn_result(raised).HasField("error")


def test_a_turn_counts_its_time_in_milliseconds() -> None:
    assert responses.turn_result(Turn(Status.OK, "", "", 0, False, 1.5, 0)).running_time.ToMilliseconds() == 1500


@given(values(FinishedCall))
def test_a_finished_call_can_be_read_back(call: FinishedCall) -> None:
    assert read(FinishedCall, responses.finished_call(call)) == call


@given(values(CallTraced))
def test_a_traced_call_can_be_read_back(call: CallTraced) -> None:
    assert read(CallTraced, responses.traced_call(call)) == call


@given(values(Printed))
def test_output_can_be_read_back(printed: Printed) -> None:
    assert read(Printed, responses.output(printed)) == printed


@given(values(Coverage))
def test_coverage_can_be_read_back(coverage: Coverage) -> None:
    assert read(Coverage, responses.coverage(coverage)) == coverage


def test_coverage_says_which_ranges_were_read() -> None:
    coverage = Coverage(0.5, 2, (Range(0, 1, 3), Range(7, 0, 65_536)), more=True)
    assert responses.coverage(coverage) == context_pb2.Coverage(
        fraction=0.5,
        document_count=2,
        ranges=[context_pb2.Range(start=1, end=3), context_pb2.Range(document=7, end=65_536)],
        more=True,
    )


ENUMS: Mapping[str, tuple[Any, Any, Any]] = {
    "RunState": (RunState, responses.state, run_pb2.RunState),
    "TurnStatus": (
        Status,
        lambda status: responses.turn_result(Turn(status, "", "", 0, False, 0.0, 0)).status,
        session_pb2.TurnStatus,
    ),
    "OutputStream": (
        ("stdout", "stderr"),
        lambda stream: responses.output(Printed(stream, "")).stream,
        session_pb2.OutputStream,
    ),
}


@pytest.mark.parametrize("name", ENUMS)
def test_every_value_of_an_enum_is_written_as_one_of_its_own(name: str) -> None:
    kinds, write, enum = ENUMS[name]
    assert sorted(write(kind) for kind in kinds) == sorted(number for number in enum.values() if number)


# ---- contexts and money -------------------------------------------------------------------------------------------


def test_a_context_says_all_that_its_owner_may_know(context: Context) -> None:
    written = responses.context(context)
    assert written == context_pb2.Context(
        context_id="ctx_1",
        name="name",
        size_bytes=9,
        character_count=7,
        sha256="a" * 64,
        create_time=responses.time(1_700_000_000_123),
        kind=context_pb2.CONTEXT_KIND_DOCUMENTS,
        document_count=2,
        labels={"team": "red"},
    )
    assert (
        responses.context(replace(context, content=replace(context.content, kind=Kind.TEXT))).kind
        == context_pb2.CONTEXT_KIND_TEXT
    )


@given(values(Amounts))
def test_amounts_can_be_read_back(amounts: Amounts) -> None:
    assert read(Amounts, responses.amounts(amounts)) == amounts


@given(values(Limit))
def test_a_limit_that_is_not_set_is_left_out(limit: Limit) -> None:
    assert read(Limit, responses.budget(limit)) == limit
    assert read(Limit, responses.allowance(limit)) == limit


@given(values(Usage))
def test_the_tokens_of_a_provider_can_be_read_back(usage: Usage) -> None:
    assert read(Usage, responses.token_usage(usage)) == usage


@pytest.mark.parametrize("message", [types_pb2.Amounts, types_pb2.Budget, budget_pb2.Allowance])
def test_a_message_of_amounts_has_every_unit(message: type[Message]) -> None:
    names = {"nano_usd": "nano_usd", "tokens": "token_count", "calls": "call_count", "cpu_ms": "cpu_time"}
    assert {field.name for field in message.DESCRIPTOR.fields} == {names[unit] for unit in UNITS}


@pytest.mark.parametrize(("milliseconds", "text"), [(0, "1970-01-01T00:00:00Z"), (1, "1970-01-01T00:00:00.001Z")])
def test_a_time_is_in_unix_milliseconds(milliseconds: int, text: str) -> None:
    assert responses.time(milliseconds).ToJsonString() == text
