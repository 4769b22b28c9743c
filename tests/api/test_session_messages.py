"""Sessions and their turns as messages: what an answer tells of them, and what it cuts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from rlm.v1 import session_pb2

from rlm_server.api import session_messages
from rlm_server.api.session_messages import ONCE_OUTPUT
from rlm_server.ledger import Amounts, Balance, Limit
from rlm_server.repl.events import CallFinished, CodeFinished, FinishedCall, UntoldCalls
from rlm_server.sessions.collected import COLLECTED_CALLS, Collected
from rlm_server.sessions.ends import Ends
from rlm_server.sessions.happenings import Accepted, LeftOut
from rlm_server.sessions.session_table import SessionRow, ended
from rlm_server.sessions.sessions import Shown
from rlm_server.sessions.state import End, EndReason, SessionState
from rlm_server.sessions.turn_log import Told
from sandbox.limits import Limits
from sandbox.turn import Turn
from tests.runs.stage import a_turn
from tests.sessions.stage import a_session

ENDS = Ends(idle_seconds=60, life_seconds=3_600)
ROW = SessionRow("ses_1", "acme", "core", None, "small", Limit(), Limits(turn_seconds=0.25), 1_000, 5_000, turns=3)


def shown(row: SessionRow, live: Any = None) -> session_pb2.Session:
    balance = Balance("ses_1", Limit(), Amounts(nano_usd=7), Amounts(), Amounts(), Amounts())
    return session_messages.session(Shown(row, live), balance, ENDS)


def collected(turn: Turn, *happened: Any) -> session_pb2.ExecuteOnceResponse:
    listener = Collected()
    for happening in (*happened, CodeFinished(turn)):
        listener.put(happening)
    return session_messages.collected(listener)


def test_a_session_that_lives_tells_when_it_ends_and_one_that_has_ended_when_and_why_it_did() -> None:
    row = replace(ROW, idle_ms=2_000, life_ms=10_000_000)
    living = shown(row)
    assert (living.idle_time.seconds, living.life_time.seconds) == (2, 3_600), "no more than the server's"
    assert (living.idle_expire_time.seconds, living.life_expire_time.seconds) == (7, 3_601)
    assert (living.state, living.end_reason) == (session_pb2.SESSION_STATE_ACTIVE, 0)
    assert (living.turn_count, living.spent.nano_usd, living.account_id) == (3, 7, "acme")
    assert living.limits.turn_time.ToMilliseconds() == 250
    gone = shown(ended(row, End(EndReason.IDLE_TIME, "it was idle", 9_000)))
    assert (gone.state, gone.end_reason) == (
        session_pb2.SESSION_STATE_ENDED,
        session_pb2.SESSION_END_REASON_IDLE_TIME,
    )
    assert (gone.end_message, gone.end_time.seconds) == ("it was idle", 9)
    assert not gone.HasField("life_expire_time")
    assert not gone.HasField("idle_expire_time")


def test_every_state_and_reason_has_its_number() -> None:
    for state in SessionState:
        number = session_pb2.SessionState.Value(f"SESSION_STATE_{state.name}")
        assert session_messages.STATES[number] is state
    for reason in EndReason:
        name = f"SESSION_END_REASON_{reason.name}"
        row = ended(ROW, End(reason, "", 1))
        assert session_pb2.SessionEndReason.Name(shown(row).end_reason) == name


def test_a_live_session_tells_its_memory() -> None:
    session = a_session()
    live: Any = session.live
    live.private_bytes = 4_096
    assert shown(session.present, session).memory_bytes == 4_096


def test_what_happens_has_its_number_and_nothing_is_a_heartbeat() -> None:
    assert session_messages.told(Told(None)).WhichOneof("event") == "heartbeat"
    accepted = session_messages.told(Told(Accepted("turn_1"), 1))
    assert (accepted.accepted.turn_id, accepted.sequence) == ("turn_1", 1)
    left_out = session_messages.told(Told(LeftOut(3, 0), 4))
    assert (left_out.left_out.event_count, left_out.sequence) == (3, 4)
    assert session_messages.told(Told(CodeFinished(a_turn()))).sequence == 0


@pytest.mark.parametrize(
    ("stdout", "stderr", "shown_bytes", "cut"),
    [
        ("x" * ONCE_OUTPUT, "", (ONCE_OUTPUT, 0), {}),
        ("", "é" * (ONCE_OUTPUT // 2), (0, ONCE_OUTPUT), {}),
        ("x" * ONCE_OUTPUT, "y", (ONCE_OUTPUT - 1, 1), {"stdout": ONCE_OUTPUT}),
        (
            "x" * (ONCE_OUTPUT // 2),
            "y" * (ONCE_OUTPUT // 2 + 1),
            (ONCE_OUTPUT // 2,) * 2,
            {"stderr": ONCE_OUTPUT // 2 + 1},
        ),
        ("x" * ONCE_OUTPUT, "y" * ONCE_OUTPUT, (ONCE_OUTPUT // 2,) * 2, {"stdout": ONCE_OUTPUT, "stderr": ONCE_OUTPUT}),
        ("語" * 200_000, "", (ONCE_OUTPUT - ONCE_OUTPUT % 3, 0), {"stdout": 600_000}),
    ],
)
def test_output_has_so_many_bytes_together_and_what_is_cut_is_said(
    stdout: str, stderr: str, shown_bytes: tuple[int, int], cut: dict[str, int]
) -> None:
    answer = collected(a_turn(stdout, stderr))
    assert (len(answer.stdout.encode()), len(answer.stderr.encode())) == shown_bytes
    assert stdout.startswith(answer.stdout)
    assert stderr.startswith(answer.stderr)
    assert {one.field: one.size_bytes for one in answer.cut} == cut


def test_calls_are_told_one_by_one_up_to_a_bound_and_all_are_counted_and_summed() -> None:
    calls = [
        CallFinished(FinishedCall(str(number), "small", Amounts(nano_usd=2, calls=1)), 0)
        for number in range(COLLECTED_CALLS + 5)
    ]
    answer = collected(a_turn(), *calls, UntoldCalls(from_memory=10, failed=20))
    assert [call.call_id for call in answer.calls] == [str(number) for number in range(COLLECTED_CALLS)]
    assert answer.more_call_count == 35
    assert (answer.spent.nano_usd, answer.spent.call_count) == (2 * len(calls), len(calls))
