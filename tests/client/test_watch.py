"""A watch gives every event once, whatever happens to the connection."""

from __future__ import annotations

import json

import grpc
import pytest
from rlm.v1 import run_pb2, session_pb2
from rlm_client import Answer, Budget, Client, Guards, NotFound, RunFailed, Sampling, Unavailable

from tests.client.conftest import AT_ONCE
from tests.client.fake_contexts import refusal
from tests.client.fake_server import FakeServer
from tests.client.story import small_run


@pytest.fixture(autouse=True)
def events(fake: FakeServer) -> list[run_pb2.RunEvent]:
    fake.events = small_run().events
    return fake.events


def test_events_come_in_order(client: Client, events: list[run_pb2.RunEvent]) -> None:
    assert list(client.watch_run("run-1")) == events


def test_a_watch_can_start_in_the_middle(client: Client, events: list[run_pb2.RunEvent]) -> None:
    assert list(client.watch_run("run-1", from_sequence=5)) == events[4:]


def test_a_broken_watch_goes_on_after_the_last_event_seen(
    client: Client, fake: FakeServer, events: list[run_pb2.RunEvent]
) -> None:
    fake.breaks_after.extend([3, 7])
    assert list(client.watch_run("run-1")) == events
    assert [request.from_sequence for request in fake.asked(run_pb2.WatchRunRequest)] == [1, 4, 8]


def test_no_event_is_given_twice_even_if_it_is_sent_twice(
    client: Client, fake: FakeServer, events: list[run_pb2.RunEvent]
) -> None:
    fake.resends = 2
    fake.breaks_after.extend([3, 7])
    assert list(client.watch_run("run-1")) == events


def test_every_new_event_renews_the_attempts(client: Client, fake: FakeServer, events: list[run_pb2.RunEvent]) -> None:
    fake.breaks_after.extend(range(1, len(events)))
    assert len(events) > AT_ONCE.attempts
    assert list(client.watch_run("run-1")) == events


def test_a_watch_that_gets_nothing_new_gives_up(client: Client, fake: FakeServer) -> None:
    fake.breaks_after.extend([3] * 50)
    watch = client.watch_run("run-1")
    assert [next(watch).sequence for _ in range(3)] == [1, 2, 3]
    with pytest.raises(Unavailable, match="going away"):
        next(watch)
    assert len(fake.asked(run_pb2.WatchRunRequest)) == AT_ONCE.attempts


def test_what_a_new_stream_would_not_cure_is_raised_at_once(client: Client, fake: FakeServer) -> None:
    fake.refusals["WatchRun"].append(refusal(grpc.StatusCode.NOT_FOUND, "no such run"))
    with pytest.raises(NotFound):
        list(client.watch_run("run-9"))
    assert len(fake.asked(run_pb2.WatchRunRequest)) == 1


def test_asking_uploads_runs_and_waits(client: Client, fake: FakeServer) -> None:
    answer = client.ask("How many?", "some text", budget=Budget(usd="0.50"), max_depth=0)
    assert (answer.text, answer.complete) == ("42", True)
    (request,) = fake.asked(run_pb2.CreateRunRequest)
    assert (request.question, request.context_id, request.budget.nano_usd) == ("How many?", "context-1", 500_000_000)
    assert request.limits.HasField("max_depth")


def test_an_answer_that_a_limit_ended_is_marked(client: Client, fake: FakeServer) -> None:
    fake.run = run_pb2.Run(state=run_pb2.RUN_STATE_EXHAUSTED, answer="maybe 41", end_message="turns")
    answer: Answer = client.ask("How many?", "some text")
    assert (answer.text, answer.complete, answer.run.end_message) == ("maybe 41", False, "turns")


def test_an_answer_that_is_longer_than_its_run_tells_is_given_whole(client: Client, fake: FakeServer) -> None:
    fake.tell_beginning_of(["the beginning, ", "and ", "the rest"])
    assert client.ask("How many?", "some text").text == "the beginning, and the rest"
    assert client.whole_answer(run_pb2.Run(answer="all there is")) == "all there is"


def test_what_has_happened_is_listed_without_waiting(client: Client, events: list[run_pb2.RunEvent]) -> None:
    assert list(client.list_run_events("run-1")) == events


def test_a_run_that_failed_is_an_error_with_the_run(client: Client, fake: FakeServer) -> None:
    fake.run = run_pb2.Run(run_id="run-1", state=run_pb2.RUN_STATE_FAILED, end_message="no such model")
    with pytest.raises(RunFailed, match="run-1 failed: no such model") as caught:
        client.ask("How many?", "some text")
    assert caught.value.run == fake.run


def test_a_run_that_can_no_longer_be_waited_for_is_cancelled(client: Client, fake: FakeServer) -> None:
    fake.breaks_after.extend([3] * 50)
    with pytest.raises(Unavailable):
        client.ask("How many?", "some text")
    assert len(fake.asked(run_pb2.CancelRunRequest)) == 1


def test_a_session_executes_and_says_what_it_spent(client: Client, fake: FakeServer) -> None:
    fake.responses = [
        session_pb2.ExecuteResponse(output=session_pb2.Output(text="2\n")),
        session_pb2.ExecuteResponse(result=session_pb2.TurnResult(status=session_pb2.TURN_STATUS_OK)),
    ]
    session = client.create_session(image="data", budget=Budget(calls=3))
    assert list(client.execute(session.session_id, "print(1 + 1)")) == fake.responses
    assert client.delete_session(session.session_id).nano_usd == 7
    (created,) = fake.asked(session_pb2.CreateSessionRequest)
    assert (created.image, created.budget.call_count) == ("data", 3)


def test_a_question_over_a_text_is_asked_in_one_call(client: Client, fake: FakeServer) -> None:
    answer = client.complete("How many?", "some text", budget=Budget(usd="0.50"), max_depth=0, labels={"team": "red"})
    assert (answer.text, answer.complete) == ("42", True)
    (asked,) = fake.asked(run_pb2.CompleteRequest)
    assert (asked.question, asked.text, asked.budget.nano_usd) == ("How many?", "some text", 500_000_000)
    assert asked.limits.HasField("max_depth")
    assert not asked.HasField("sampling")
    assert (dict(asked.labels), bool(asked.request_id)) == ({"team": "red"}, True)
    assert not fake.asked(run_pb2.CreateRunRequest)


def test_the_answer_to_a_schema_is_read_as_data(client: Client, fake: FakeServer) -> None:
    schema = {"type": "array", "items": {"const": "é"}}
    fake.run.answer = '["é", 2]'
    assert client.ask("Which?", "some text", answer_schema=schema, answer_attempts=2).value == ["é", 2]
    assert client.complete("Which?", "some text", answer_schema=True).value == ["é", 2]
    (created,), (completed,) = fake.asked(run_pb2.CreateRunRequest), fake.asked(run_pb2.CompleteRequest)
    assert (json.loads(created.answer_schema), created.limits.answer_attempt_count) == (schema, 2)
    assert (completed.answer_schema, completed.limits.HasField("answer_attempt_count")) == ("true", False)
    assert Answer("", run_pb2.Run()).value is None


def test_how_to_answer_and_to_write_is_sent(client: Client, fake: FakeServer) -> None:
    wanted = Sampling(temperature=0.0, max_tokens=9, stop=["a"])
    guards = Guards(repeats=2, errors_in_a_row=3, nodes=5, children=4)
    for ask in (client.ask, client.complete):
        ask("Which?", "text", instructions="In German.", sampling=wanted, strategy="direct", guards=guards, max_turns=7)
    for asked in (*fake.asked(run_pb2.CreateRunRequest), *fake.asked(run_pb2.CompleteRequest)):
        assert (asked.instructions, asked.strategy) == ("In German.", run_pb2.STRATEGY_DIRECT)
        assert asked.sampling == run_pb2.Sampling(temperature=0, max_token_count=9, stop_sequences=["a"])
        assert asked.limits == run_pb2.RunLimits(
            max_turn_count=7, repeat_count=2, errors_in_a_row_count=3, node_count=5, children_count=4
        )


def test_a_completion_that_failed_is_an_error_with_its_run(client: Client, fake: FakeServer) -> None:
    fake.run.state = run_pb2.RUN_STATE_FAILED
    with pytest.raises(RunFailed) as caught:
        client.complete("How many?", "some text")
    assert caught.value.run.run_id == "run-1"
