"""Writes sessions, and what happens in their turns, as messages of the protocol."""

from __future__ import annotations

from rlm.v1 import session_pb2, types_pb2

from rlm_server.api import responses
from rlm_server.api.limits import sandbox_limits
from rlm_server.ledger import Balance, names
from rlm_server.repl.events import CallFinished, CallTraced, Printed, TurnRestarted, UntoldCalls
from rlm_server.runs.cuts import CutText, beginning_of, size_of
from rlm_server.sessions.collected import Collected
from rlm_server.sessions.ends import Ends
from rlm_server.sessions.happenings import Accepted, Happening, LeftOut
from rlm_server.sessions.sessions import Shown
from rlm_server.sessions.state import EndReason, SessionState
from rlm_server.sessions.turn_log import Told

ONCE_OUTPUT = 256 << 10
"""Bytes of UTF-8 of all that a turn printed, in one message."""

STATES = {session_pb2.SessionState.Value(f"SESSION_STATE_{state.name}"): state for state in SessionState}
_STATES = {state: number for number, state in STATES.items()}
_END_REASONS = {reason: session_pb2.SessionEndReason.Value(f"SESSION_END_REASON_{reason.name}") for reason in EndReason}


def session(shown: Shown, balance: Balance, ends: Ends) -> session_pb2.Session:
    """Write a session, but for what it has looked at."""
    row, live = shown.row, shown.live
    idle_ms, life_ms = ends.idle_of(row), ends.life_of(row)
    message = session_pb2.Session(
        session_id=row.id,
        image=row.image,
        context_id=_id(row.context),
        sub_model=row.sub_model,
        budget=responses.budget(row.budget),
        create_time=responses.time(row.created_at),
        labels=row.labels,
        account_id=names.last_of(row.customer, row.tenant),
        state=_STATES[row.state],
        last_use_time=responses.time(row.used_at),
        idle_time=responses.duration(idle_ms),
        life_time=responses.duration(life_ms),
        turn_count=row.turns,
        waiting_turn_count=len(live.turns) if live is not None else 0,
        memory_bytes=live.live.private_bytes if live is not None else 0,
        limits=sandbox_limits(row.limits),
        spent=responses.amounts(balance.posted),
        pending=responses.amounts(balance.pending),
        snapshot_id=_id(row.snapshot),
        parent_id=_id(row.parent),
        kept=live is not None and live.live.kept,
    )
    if row.end is not None:
        message.end_reason = _END_REASONS[row.end.reason]
        message.end_message = row.end.message
        message.end_time.CopyFrom(responses.time(row.end.at))
        return message
    message.life_expire_time.CopyFrom(responses.time(row.created_at + life_ms))
    if live is None or not live.busy:
        message.idle_expire_time.CopyFrom(responses.time(row.used_at + idle_ms))
    return message


def _id(value: str | None) -> str:
    return "" if value is None else value


def told(value: Told) -> session_pb2.ExecuteResponse:
    """Write what happened in a turn."""
    if value.happening is None:
        return session_pb2.ExecuteResponse(heartbeat=types_pb2.Heartbeat())
    message = _happening(value.happening)
    message.sequence = value.sequence
    return message


def _happening(value: Happening) -> session_pb2.ExecuteResponse:
    if isinstance(value, Printed):
        return session_pb2.ExecuteResponse(output=responses.output(value))
    if isinstance(value, TurnRestarted):
        return session_pb2.ExecuteResponse(turn_restarted=responses.turn_restarted(value))
    if isinstance(value, CallFinished):
        return session_pb2.ExecuteResponse(call_finished=responses.finished_call(value.call))
    if isinstance(value, UntoldCalls):
        return session_pb2.ExecuteResponse(untold_calls=responses.untold_calls(value))
    if isinstance(value, LeftOut):
        return session_pb2.ExecuteResponse(left_out=responses.left_out(value))
    if isinstance(value, CallTraced):
        return session_pb2.ExecuteResponse(call_traced=responses.traced_call(value))
    if isinstance(value, Accepted):
        return session_pb2.ExecuteResponse(accepted=session_pb2.TurnAccepted(turn_id=value.turn))
    return session_pb2.ExecuteResponse(result=responses.turn_result(value.result))


def collected(value: Collected) -> session_pb2.ExecuteOnceResponse:
    """Write what came of a turn, in less than a MiB."""
    turn = value.result
    stdout, stderr, cut = _together(turn.stdout, turn.stderr)
    return session_pb2.ExecuteOnceResponse(
        stdout=stdout,
        stderr=stderr,
        result=responses.turn_result(turn),
        cut=responses.cut_texts(cut),
        calls=[responses.finished_call(call) for call in value.calls],
        more_call_count=value.more_calls,
        spent=responses.amounts(value.spent),
        result_only=value.remembered,
    )


def _together(stdout: str, stderr: str) -> tuple[str, str, list[CutText]]:
    """Return the beginnings of two texts that together have at most `ONCE_OUTPUT`, and which of them are not whole."""
    if (len(stdout) + len(stderr)) * 4 <= ONCE_OUTPUT:
        return stdout, stderr, []
    sizes = {"stdout": size_of(stdout), "stderr": size_of(stderr)}
    half = ONCE_OUTPUT // 2
    shown_stdout = beginning_of(stdout, max(half, ONCE_OUTPUT - sizes["stderr"]))
    shown_stderr = beginning_of(stderr, max(half, ONCE_OUTPUT - sizes["stdout"]))
    shown = {"stdout": size_of(shown_stdout), "stderr": size_of(shown_stderr)}
    cut = [CutText(name, size) for name, size in sizes.items() if shown[name] < size]
    return shown_stdout, shown_stderr, cut
