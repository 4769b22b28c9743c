"""Writes the server's values as messages of the protocol."""

from __future__ import annotations

from google.protobuf.timestamp_pb2 import Timestamp
from rlm.v1 import context_pb2, run_pb2, session_pb2, types_pb2

from rlm_server.ledger import Amounts, Limit
from rlm_server.runs import events
from rlm_server.runs.events import Body, Event, FinishedCall
from rlm_server.runs.state import RunState
from rlm_server.store.contexts import Context
from sandbox.turn import Status, Turn

_STREAMS = {"stdout": session_pb2.OUTPUT_STREAM_STDOUT, "stderr": session_pb2.OUTPUT_STREAM_STDERR}
_STATUSES = {
    Status.OK: session_pb2.TURN_STATUS_OK,
    Status.ERROR: session_pb2.TURN_STATUS_ERROR,
    Status.ROLLED_BACK: session_pb2.TURN_STATUS_ROLLED_BACK,
}
_STATES = {state: run_pb2.RunState.Value(f"RUN_STATE_{state.upper()}") for state in RunState}


def time(milliseconds: int) -> Timestamp:
    """Write a time in Unix milliseconds."""
    stamp = Timestamp()
    stamp.FromMilliseconds(milliseconds)
    return stamp


def amounts(value: Amounts) -> types_pb2.Amounts:
    """Write amounts."""
    return types_pb2.Amounts(nano_usd=value.nano_usd, tokens=value.tokens, calls=value.calls)


def budget(value: Limit) -> types_pb2.Budget:
    """Write a budget."""
    return types_pb2.Budget(nano_usd=value.nano_usd, tokens=value.tokens, calls=value.calls)


def context(value: Context) -> context_pb2.Context:
    """Write a context."""
    return context_pb2.Context(
        context_id=value.id,
        name=value.name,
        size_bytes=value.size_bytes,
        characters=value.characters,
        sha256=value.sha256,
        create_time=time(value.created_at),
    )


def state(value: RunState) -> run_pb2.RunState.ValueType:
    """Write a state."""
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


def output(value: events.Printed) -> session_pb2.Output:
    """Write something printed."""
    return session_pb2.Output(stream=_STREAMS[value.stream], text=value.text)


def finished_call(value: FinishedCall) -> session_pb2.ModelCallFinished:
    """Write the end of a model call."""
    return session_pb2.ModelCallFinished(
        call_id=value.call_id, model=value.model, spent=amounts(value.spent), memo=value.memo, error=value.error
    )


def event(value: Event) -> run_pb2.RunEvent:
    """Write an event."""
    made = run_pb2.RunEvent(
        sequence=value.sequence,
        time=time(value.at),
        node_id=value.place.node,
        parent_id=value.place.parent,
        depth=value.place.depth,
        turn=value.place.turn,
    )
    getattr(made, value.body.kind).CopyFrom(_body(value.body))
    return made


def _body(body: Body) -> object:
    match body:
        case events.RunStarted():
            return run_pb2.RunStarted(
                question=body.question,
                model=body.model,
                sub_model=body.sub_model,
                context_characters=body.context_characters,
                budget=budget(body.budget),
            )
        case events.TurnStarted():
            return run_pb2.TurnStarted(max_turns=body.max_turns)
        case events.ModelReplied():
            return run_pb2.ModelReplied(model=body.model, text=body.text, spent=amounts(body.spent))
        case events.CodeStarted():
            return run_pb2.CodeStarted(code=body.code, block=body.block)
        case events.Printed():
            return output(body)
        case events.CallStarted():
            return run_pb2.CallStarted(call_id=body.call_id, model=body.model, prompt_characters=body.prompt_characters)
        case events.CallFinished():
            return run_pb2.CallFinished(call=finished_call(body.call), reply_characters=body.reply_characters)
        case _:
            return _ending(body)


def _ending(body: Body) -> object:
    match body:
        case events.ChildStarted():
            return run_pb2.ChildStarted(
                child_id=body.child_id,
                question=body.question,
                context_characters=body.context_characters,
                budget=budget(body.budget),
            )
        case events.ChildFinished():
            return run_pb2.ChildFinished(
                child_id=body.child_id, state=state(body.state), reason=body.reason, spent=amounts(body.spent)
            )
        case events.CodeFinished():
            return run_pb2.CodeFinished(result=turn_result(body.result))
        case events.TurnCheckpointed():
            return run_pb2.TurnCheckpointed(private_bytes=body.private_bytes)
        case events.BudgetWarning():
            return run_pb2.BudgetWarning(unit=body.unit, percent=body.percent, spent=body.spent, limit=body.limit)
        case events.Guard():
            return run_pb2.Guard(name=body.name, detail=body.detail)
        case events.Answer():
            return run_pb2.Answer(text=body.text)
        case events.RunFinished():
            return run_pb2.RunFinished(
                state=state(body.state), reason=body.reason, spent=amounts(body.spent), answer=body.answer
            )
    raise TypeError(body)
