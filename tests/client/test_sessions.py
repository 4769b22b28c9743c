"""Sessions by the client and the command: each call says what was asked, and detached turns are taken up again."""

from __future__ import annotations

from datetime import UTC, datetime

import grpc
import pytest
from rlm.v1 import session_pb2
from rlm_client import Client, NotFound, SessionState, Unavailable

from tests.client.conftest import AT_ONCE, Rlm
from tests.client.fake_contexts import refusal
from tests.client.fake_server import FakeServer

RESULT = session_pb2.TurnResult(status=session_pb2.TURN_STATUS_OK)


def turn(*texts: str) -> list[session_pb2.ExecuteResponse]:
    """What happens in a detached turn that prints."""
    accepted = session_pb2.ExecuteResponse(accepted=session_pb2.TurnAccepted(turn_id="turn-1"), sequence=1)
    printed = [
        session_pb2.ExecuteResponse(output=session_pb2.Output(text=text), sequence=number)
        for number, text in enumerate(texts, start=2)
    ]
    return [accepted, *printed, session_pb2.ExecuteResponse(result=RESULT, sequence=len(texts) + 2)]


def test_a_session_is_made_with_the_times_that_it_may_have(client: Client, fake: FakeServer) -> None:
    client.create_session(idle_seconds=1.5, life_seconds=60, labels={"team": "red"})
    client.create_session()
    first, second = fake.asked(session_pb2.CreateSessionRequest)
    assert (first.idle_time.ToMilliseconds(), first.life_time.seconds, dict(first.labels)) == (
        1_500,
        60,
        {"team": "red"},
    )
    assert not second.HasField("idle_time")
    assert first.request_id != second.request_id != ""


def test_sessions_are_listed_page_by_page(client: Client, fake: FakeServer) -> None:
    since = datetime(2025, 1, 2, tzinfo=UTC)
    found = client.list_sessions([SessionState.SESSION_STATE_ACTIVE], labels={"a": "b"}, since=since, account_id="ann")
    assert [one.session_id for one in found] == ["session-1", "session-2", "session-3"]
    request = fake.asked(session_pb2.ListSessionsRequest)[0]
    assert (list(request.states), dict(request.labels), request.account_id) == ([1], {"a": "b"}, "ann")
    assert request.since.ToDatetime(UTC) == since
    assert not request.HasField("until")


def test_what_changes_of_a_session_is_what_is_given(client: Client, fake: FakeServer) -> None:
    client.update_session("session-1", labels={})
    client.update_session("session-1", idle_seconds=2, life_seconds=3)
    labels, times = fake.asked(session_pb2.UpdateSessionRequest)
    assert (list(labels.update_mask.paths), labels.session.session_id) == (["labels"], "session-1")
    assert list(times.update_mask.paths) == ["idle_time", "life_time"]
    assert (times.session.idle_time.seconds, times.session.life_time.seconds) == (2, 3)


def test_a_turn_gives_its_result_at_once_and_is_asked_for_again_under_one_id(client: Client, fake: FakeServer) -> None:
    fake.refusals["ExecuteOnce"].append(refusal(grpc.StatusCode.UNAVAILABLE, "going away"))
    assert client.execute_once("session-1", "1 + 1").stdout == "2\n"
    first, second = fake.asked(session_pb2.ExecuteOnceRequest)
    assert first == second
    assert first.request_id


def test_a_turn_under_way_is_interrupted(client: Client, fake: FakeServer) -> None:
    assert client.interrupt_session("session-1")
    assert not client.interrupt_session("session-1", "turn-1")
    assert [one.turn_id for one in fake.asked(session_pb2.InterruptSessionRequest)] == ["", "turn-1"]


def test_a_detached_turn_goes_on_after_the_last_that_was_seen(client: Client, fake: FakeServer) -> None:
    fake.responses = turn("a", "b", "c")
    fake.breaks_after.extend([2, 2, 3])
    assert list(client.execute("session-1", "code", detached=True, request_id="mine")) == fake.responses
    (executed,) = fake.asked(session_pb2.ExecuteRequest)
    assert (executed.detached, executed.request_id) == (True, "mine")
    watched = fake.asked(session_pb2.WatchTurnRequest)
    assert [(one.request_id, one.from_sequence) for one in watched] == [("mine", 3), ("mine", 3), ("mine", 4)]


def test_a_detached_turn_that_told_nothing_yet_is_asked_for_again(client: Client, fake: FakeServer) -> None:
    fake.responses = turn("a")
    fake.refusals["Execute"].append(refusal(grpc.StatusCode.UNAVAILABLE, "going away"))
    assert list(client.execute("session-1", "code", detached=True)) == fake.responses
    first, second = fake.asked(session_pb2.ExecuteRequest)
    assert first == second


def test_a_turn_that_is_not_detached_is_not_taken_up_again(client: Client, fake: FakeServer) -> None:
    fake.refusals["Execute"].append(refusal(grpc.StatusCode.UNAVAILABLE, "going away"))
    with pytest.raises(Unavailable):
        list(client.execute("session-1", "code"))
    assert len(fake.asked(session_pb2.ExecuteRequest)) == 1


def test_a_turn_is_watched_from_any_number_and_its_remembered_result_is_given(client: Client, fake: FakeServer) -> None:
    fake.responses = turn("a", "b")
    assert list(client.watch_turn("session-1", "turn-1", from_sequence=3)) == fake.responses[2:]
    fake.responses = [session_pb2.ExecuteResponse(result=RESULT)]
    assert list(client.watch_turn("session-1", request_id="mine", from_sequence=3)) == fake.responses
    by_id, by_request = fake.asked(session_pb2.WatchTurnRequest)
    assert (by_id.turn_id, by_request.request_id) == ("turn-1", "mine")
    fake.breaks_after.extend([0] * 50)
    fake.responses = turn("a")
    with pytest.raises(Unavailable):
        list(client.watch_turn("session-1", "turn-1"))
    assert len(fake.asked(session_pb2.WatchTurnRequest)) == 2 + AT_ONCE.attempts


@pytest.mark.parametrize("detached", [False, True])
def test_heartbeats_are_not_given(client: Client, fake: FakeServer, *, detached: bool) -> None:
    quiet = session_pb2.ExecuteResponse()
    quiet.heartbeat.SetInParent()
    told = turn("a")
    fake.responses = [told[0], quiet, *told[1:]]
    assert list(client.execute("session-1", "code", detached=detached)) == told
    assert list(client.watch_turn("session-1", "turn-1")) == told


# ---- the command -----------------------------------------------------------------------------------------------------


def test_sessions_are_listed_and_shown_as_lines(rlm: Rlm, fake: FakeServer) -> None:
    lines = rlm("session", "list", "--limit", "2", "--state", "active", "--label", "team=red").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["session-1", "session-2"]
    assert all("active" in line and "\x1b" not in line for line in lines)
    (request, *_) = fake.asked(session_pb2.ListSessionsRequest)
    assert (list(request.states), dict(request.labels)) == ([session_pb2.SESSION_STATE_ACTIVE], {"team": "red"})
    assert rlm("session", "show", "session-1").stdout.startswith("session-1  ")


def test_a_session_is_made_changed_interrupted_and_ended(rlm: Rlm, fake: FakeServer) -> None:
    made = rlm("session", "create", "--image", "data", "--idle-seconds", "60", "--label", "a=b")
    assert (made.exit_code, made.stdout) == (0, "session-1\n")
    (created,) = fake.asked(session_pb2.CreateSessionRequest)
    assert (created.image, created.idle_time.seconds, dict(created.labels)) == ("data", 60, {"a": "b"})
    assert rlm("session", "update", "session-1", "--life-seconds", "5").exit_code == 0
    (updated,) = fake.asked(session_pb2.UpdateSessionRequest)
    assert list(updated.update_mask.paths) == ["life_time"]
    assert rlm("session", "update", "session-1").exit_code == 2
    assert "is rolled back" in rlm("session", "interrupt", "session-1").stderr
    assert "ended" in rlm("session", "delete", "session-1").stderr


def test_code_runs_in_a_session_that_is_there_and_stays(rlm: Rlm, fake: FakeServer, text: str) -> None:
    fake.responses = [
        session_pb2.ExecuteResponse(output=session_pb2.Output(text="9\n")),
        session_pb2.ExecuteResponse(result=RESULT),
    ]
    assert rlm("exec", "--session", "session-7", "print(9)").stdout == "9\n"
    assert [one.session_id for one in fake.asked(session_pb2.ExecuteRequest)] == ["session-7"]
    assert fake.asked(session_pb2.CreateSessionRequest) == fake.asked(session_pb2.DeleteSessionRequest) == []
    assert rlm("exec", "--session", "session-7", "--context", text, "1").exit_code == 2


def test_a_session_that_is_not_there_is_an_error(client: Client, fake: FakeServer) -> None:
    fake.refusals["ExecuteOnce"].append(refusal(grpc.StatusCode.NOT_FOUND, "no such session"))
    with pytest.raises(NotFound):
        client.execute_once("session-9", "1")
