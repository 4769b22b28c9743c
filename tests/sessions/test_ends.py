"""Limits of time end sessions: the server's, or a session's own where that is lower."""

from __future__ import annotations

import pytest

from rlm_server.sessions.ends import Ends
from rlm_server.sessions.happenings import Happenings
from rlm_server.sessions.session import ReplSession
from rlm_server.sessions.state import EndReason
from rlm_server.sessions.turn import SessionTurn, TurnRequest
from tests.sessions.stage import HELD, a_session

LIMITS = Ends(idle_seconds=10, life_seconds=100)


def end(session: ReplSession, at: int, limits: Ends = LIMITS) -> tuple[EndReason, str] | None:
    """Why a session ends at a time in milliseconds."""
    due = limits.due(session, at)
    return None if due is None else (due.reason, due.message.removeprefix("the session was ended: it may "))


def at_work(session: ReplSession) -> ReplSession:
    session.turns[SessionTurn("turn_1", TurnRequest("code"), Happenings("acme", HELD))] = None
    return session


def test_a_session_that_is_used_goes_on() -> None:
    assert end(a_session(), 0) is None
    assert end(a_session(used_at=45_000), 54_999) is None


def test_a_session_without_a_turn_for_too_long_is_due() -> None:
    assert end(a_session(used_at=5_000), 15_000) == (
        EndReason.IDLE_TIME,
        "be without a turn for 10 s (session_idle_seconds)",
    )


def test_a_session_that_has_a_turn_is_not_idle() -> None:
    assert end(at_work(a_session()), 50_000) is None


@pytest.mark.parametrize("busy", [False, True])
def test_a_session_that_exists_for_too_long_is_due_whatever_it_does(*, busy: bool) -> None:
    session = at_work(a_session(used_at=99_000)) if busy else a_session(used_at=99_000)
    assert end(session, 100_000) == (EndReason.LIFE_TIME, "exist for 100 s (session_seconds)")


def test_a_session_may_have_less_time_than_the_servers_and_never_more() -> None:
    short = a_session(idle_ms=2_500, life_ms=7_000)
    assert end(short, 2_499) is None
    assert end(short, 2_500) == (EndReason.IDLE_TIME, "be without a turn for 2.5 s (idle_time)")
    assert end(short, 7_000) == (EndReason.LIFE_TIME, "exist for 7 s (life_time)")
    long = a_session(idle_ms=1_000_000, life_ms=1_000_000)
    assert end(long, 10_000) == (EndReason.IDLE_TIME, "be without a turn for 10 s (session_idle_seconds)")


def test_sessions_are_looked_at_when_the_next_may_end_but_not_all_the_time_and_every_half_minute_at_least() -> None:
    limits = Ends(idle_seconds=3_600, life_seconds=86_400)
    assert limits.pause([], 0) == 30
    assert limits.pause([a_session()], 0) == 30
    assert limits.pause([a_session(), a_session(idle_ms=20_000)], 5_000) == 15
    assert limits.pause([a_session(idle_ms=20_000)], 60_000) == 1
    assert Ends(idle_seconds=0.2, life_seconds=100).pause([a_session()], 60_000) == 0.2
