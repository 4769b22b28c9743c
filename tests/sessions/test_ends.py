"""Limits of time end sessions, and callers who come back are told which it was."""

from __future__ import annotations

import time

import pytest

from rlm_server.sessions import ends
from rlm_server.sessions.ends import Ends, SessionEnded
from tests.sessions.stage import a_session

LIMITS = Ends(idle_seconds=10, life_seconds=100)


def ago(seconds: float) -> float:
    return time.monotonic() - seconds


def test_a_session_that_is_used_goes_on() -> None:
    assert LIMITS.due(a_session()) == ""
    assert LIMITS.due(a_session(began_at=ago(50), used_at=ago(5))) == ""


def test_a_session_without_a_turn_for_too_long_is_due() -> None:
    due = LIMITS.due(a_session(used_at=ago(11)))
    assert due == "the session was ended: it may be without a turn for 10 s (session_idle_seconds)"


def test_a_session_in_which_a_turn_runs_is_not_idle() -> None:
    assert LIMITS.due(a_session(used_at=ago(11), running=1)) == ""


@pytest.mark.parametrize("running", [0, 1])
def test_a_session_that_exists_for_too_long_is_due_whatever_it_does(running: int) -> None:
    due = LIMITS.due(a_session(began_at=ago(101), running=running))
    assert due == "the session was ended: it may exist for 100 s (session_seconds)"


def test_sessions_are_looked_at_as_often_as_the_shortest_limit_asks_and_every_half_minute_at_least() -> None:
    assert Ends(idle_seconds=10, life_seconds=100).look_seconds == 10
    assert Ends(idle_seconds=100, life_seconds=20).look_seconds == 20
    assert Ends(idle_seconds=3600, life_seconds=86_400).look_seconds == 30


def reason(limits: Ends, tenant: str, session_id: str) -> str | None:
    """What a caller who comes back to a session is told."""
    try:
        limits.check(tenant, session_id)
    except SessionEnded as ended:
        return str(ended)
    return None


def test_why_a_session_ended_is_told_to_its_tenant_alone() -> None:
    limits = Ends(idle_seconds=10, life_seconds=100)
    limits.remember(a_session("ses_1"), "it was idle")
    assert reason(limits, "acme", "ses_1") == "it was idle"
    assert reason(limits, "other", "ses_1") is None
    assert reason(limits, "acme", "ses_2") is None


def test_of_very_many_ends_the_oldest_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ends, "REMEMBERED_ENDS", 2)
    limits = Ends(idle_seconds=10, life_seconds=100)
    for number in (1, 2, 3):
        limits.remember(a_session(f"ses_{number}"), "it was idle")
    assert [reason(limits, "acme", f"ses_{number}") for number in (1, 2, 3)] == [None, "it was idle", "it was idle"]
