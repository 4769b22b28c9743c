"""A client of the tenant's plays the model of a run: it is asked by events, and answers as it answers tools."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import pytest
from rlm.v1 import run_pb2, types_pb2

from tests.servers import Served
from tests.system.books import check_settled, check_story
from tests.system.operator import operating
from tests.system.stage import Caller, Ended, Play, code, refusal

Player = Callable[[run_pb2.ModelCallRequested], dict[str, Any] | None]


async def submit(caller: Caller, run_id: str, call_id: str, **outcome: Any) -> None:
    request = run_pb2.SubmitResultRequest(run_id=run_id, call_id=call_id, **outcome)
    await caller.runs.SubmitResult(request, metadata=caller.metadata)


async def played(caller: Caller, run_id: str, play: Player) -> Ended:
    """Play the model of a run until it has ended."""
    async for event in caller.watch(run_id):
        if event.HasField("model_call_requested"):
            outcome = play(event.model_call_requested)
            if outcome is not None:
                await submit(caller, run_id, event.model_call_requested.call_id, **outcome)
    return await caller.ended(run_id)


def says(text: str, **more: Any) -> dict[str, Any]:
    return {"model": run_pb2.ModelResult(text=text, **more)}


def both(call: run_pb2.ModelCallRequested) -> dict[str, Any]:
    """Play a root that asks its sub-model, and the sub-model."""
    if call.system:
        return says(code("FINAL(llm_query('Say it.'))"), input_token_count=100, output_token_count=10)
    return says("said: " + call.messages[-1].content)


async def test_a_client_plays_the_root_and_the_sub_model_free_but_counted(server: Served) -> None:
    async with server(Play(""), client_model=True) as served:
        run = await served.caller.create("What?", model="client", sub_model="client")
        ended = await played(served.caller, run.run_id, both)
        assert ended.run.answer == "said: Say it."
        check_story(ended)
        check_settled(served.data_dir)
    root, sub = ended.bodies("model_call_requested")
    assert "Python REPL" in root.system
    assert [(one.role, one.content.partition("\n")[0]) for one in root.messages] == [
        (run_pb2.MODEL_ROLE_USER, "Question:")
    ]
    assert [(one.model, one.max_token_count) for one in (root, sub)] == [("client", 8_192), ("client", 4_096)]
    assert {one.end for one in ended.bodies("tool_call_answered")} == {run_pb2.TOOL_CALL_END_RESULT}
    (replied,) = ended.bodies("model_replied")
    assert (replied.model, replied.spent.nano_usd, replied.spent.token_count, replied.spent.call_count) == (
        "client", 0, 110, 1,
    )  # fmt: skip
    assert ended.run.spent.call_count == 2
    assert ended.run.spent.token_count == 110


async def test_a_budget_of_calls_is_one_for_the_client_too(server: Served) -> None:
    async with server(Play(""), client_model=True) as served:
        budget = types_pb2.Budget(call_count=1)
        run = await served.caller.create(model="client", budget=budget)
        ended = await played(served.caller, run.run_id, lambda _: says(code("print(1)")))
        assert ended.run.end_reason == run_pb2.END_REASON_BUDGET_CALLS
        assert len(ended.bodies("model_call_requested")) == 1


async def test_where_no_client_answers_the_call_has_failed_at_its_deadline(server: Served) -> None:
    block = "try: llm_query('?')\nexcept ModelError as error: FINAL(f'{error.kind}: {error}')"
    async with server(Play(code(block)), client_model=True, call_seconds=0.3) as served:
        ended = await served.caller.ask(model="play", sub_model="client")
        check_settled(served.data_dir)
    assert ended.run.answer.startswith("timed_out: "), ended.run.answer
    assert "no client answered within 0.25 s" in ended.run.answer
    (call,) = ended.bodies("call_finished")
    assert (call.call.spent.nano_usd, call.call.spent.token_count) == (0, 0)
    assert [one.end for one in ended.bodies("tool_call_answered")] == [run_pb2.TOOL_CALL_END_TIMED_OUT]


async def test_a_root_that_no_client_plays_ends_the_run_and_says_why(server: Served) -> None:
    async with server(Play(""), client_model=True, call_seconds=0.2) as served:
        ended = await served.caller.ask(model="client")
    assert (ended.run.state, ended.run.end_reason) == (run_pb2.RUN_STATE_FAILED, run_pb2.END_REASON_MODEL_FAILED)
    assert "timed_out" in ended.run.end_message


async def test_a_client_that_fails_or_refuses_is_told_as_a_failed_call(server: Served) -> None:
    block = "try: llm_query('?')\nexcept ModelError as error: print(error.kind)"
    answers = iter(
        [{"error": "no idea"}, says("", end=run_pb2.REPLY_END_REFUSAL), says("cut", end=run_pb2.REPLY_END_LENGTH)]
    )
    lines = code(block, block + "\nprint(llm_query('cut').cut)", "FINAL(1)")
    async with server(Play(lines), client_model=True) as served:
        run = await served.caller.create(model="play", sub_model="client")
        ended = await played(served.caller, run.run_id, lambda _: next(answers))
    assert ended.printed == "refused\nrefused\nTrue\n"


async def test_what_is_no_answer_of_a_model_is_refused_and_the_call_waits_on(server: Served) -> None:
    async with server(Play(code("FINAL(llm_query('?'))")), client_model=True, tool_result_bytes=1_024) as served:
        run = await served.caller.create(model="play", sub_model="client")
        event = await served.caller.until(run.run_id, "model_call_requested")
        call = event.model_call_requested.call_id
        nothing: Any = 9
        many = run_pb2.ModelResult(text="x", end=nothing, input_token_count=-1, output_token_count=1 << 40)
        for outcome, fields in (
            ({"result_json": "1"}, ["result_json"]),
            (says("x" * 1_025), ["model.text"]),
            ({"model": many}, ["model.input_token_count", "model.output_token_count", "model.end"]),
        ):
            said = await refusal(submit(served.caller, run.run_id, call, **outcome))
            assert (said.code, said.fields) == (grpc.StatusCode.INVALID_ARGUMENT, fields)
        await submit(served.caller, run.run_id, call, **says("fine"))
        assert (await served.caller.ended(run.run_id)).run.answer == "fine"


async def test_a_prompt_is_told_whole_while_it_is_asked_and_one_too_long_for_a_message_is_refused(
    server: Served,
) -> None:
    lines = (
        "print(len(llm_query('x' * 200_000)))\ntry: llm_query('x' * 1_000_000)\nexcept ModelError as e: FINAL(e.kind)"
    )
    async with server(Play(code(lines)), client_model=True) as served:
        run = await served.caller.create(model="play", sub_model="client")
        ended = await played(served.caller, run.run_id, lambda call: says(call.messages[0].content))
    assert ended.printed == "200000\n"
    assert ended.run.answer == "too_long"
    (told,) = [event for event in ended.events if event.HasField("model_call_requested")]
    assert [cut.field for cut in told.cut] == ["messages"]


async def test_where_contents_are_redacted_a_model_is_told_them_only_while_it_is_asked(server: Served) -> None:
    async with server(Play(code("FINAL(llm_query('marzipan'))")), client_model=True) as served:
        async with operating(served) as operator:
            await operator.create("acme", redact_contents=True)
        caller = served.another((await served.running.keys.create("acme"))[1])
        run = await caller.create(model="play", sub_model="client")
        ended = await played(caller, run.run_id, lambda call: says(call.messages[0].content.upper()))
        assert ended.run.answer == "MARZIPAN"
        assert "marzipan" not in str(ended.events).lower()


@pytest.mark.parametrize("block", ["llm_query('?', model='client')", "rlm_query('?', model='client')"])
async def test_code_cannot_name_the_client_where_the_run_does_not(server: Served, block: str) -> None:
    play = Play(code(f"try: {block}\nexcept ModelError as error: FINAL(str(error))"))
    async with server(play, client_model=True) as served:
        ended = await served.caller.ask()
        session = await served.caller.open_session()
        turn = await served.caller.turn(session, "llm_query('?', model='client')")
    assert "nobody would answer here" in ended.run.answer
    assert "nobody would answer here" in turn.result.error.message
    assert ended.bodies("model_call_requested") == []
    assert "client" not in play.asked[0].system.partition("Models that calls may name")[2]


async def test_a_server_or_a_policy_without_it_offers_no_client(server: Served) -> None:
    async with server(Play("")) as served:
        said = await refusal(served.caller.create(model="client"))
        assert (said.reason, said.fields) == ("UNKNOWN_MODEL", ["model"])
    async with server(Play(""), client_model=True) as served, operating(served) as operator:
        await operator.create("acme", allowed_models=["play"])
        caller = served.another((await served.running.keys.create("acme"))[1])
        said = await refusal(caller.create(model="client"))
        assert (said.reason, said.fields) == ("UNKNOWN_MODEL", ["model"])


async def test_children_are_played_too_each_for_its_node(server: Served) -> None:
    def play(call: run_pb2.ModelCallRequested) -> dict[str, Any]:
        child = "Which?" in call.messages[0].content
        return says(code("FINAL('leaf')" if child else "FINAL(rlm_query('Which?'))"))

    async with server(Play(""), client_model=True) as served:
        run = await served.caller.create(model="client")
        ended = await played(served.caller, run.run_id, play)
        check_story(ended)
    assert ended.run.answer == "leaf"
    asked = [event for event in ended.events if event.HasField("model_call_requested")]
    assert [event.node_id for event in asked] == [node.node_id for node in ended.nodes]


async def test_a_run_is_cancelled_while_its_client_thinks(server: Served, postgres_url: str) -> None:
    async with server(Play(""), client_model=True, database_url=postgres_url) as served:
        run = await served.caller.create(model="client")
        event = await served.caller.until(run.run_id, "model_call_requested")
        cancelled = await served.caller.cancel(run.run_id)
        assert cancelled.state == run_pb2.RUN_STATE_CANCELLED
        said = await refusal(submit(served.caller, run.run_id, event.model_call_requested.call_id, **says("late")))
        assert said.reason == "TOOL_CALL_ENDED"
        assert await served.running.ledger.unresolved() == 0


async def test_no_tenant_waits_for_the_clients_of_another(server: Served) -> None:
    block = "import asyncio\nawait asyncio.gather(*[llm_query_async(str(n)) for n in range(4)])"
    async with server(Play(code(block)), client_model=True, provider_calls=1) as served:
        other = await served.tenant("globex")
        absent = await served.caller.create(model="play", sub_model="client")
        await asked(served.caller, absent.run_id, 4)
        run = await other.create(model="client")
        ended = await played(other, run.run_id, lambda _: says(code("FINAL('at once')")))
        assert ended.run.answer == "at once"
        await served.caller.cancel(absent.run_id)


async def test_calls_that_wait_are_listed_whole_in_pages_that_a_message_has(server: Served) -> None:
    block = "import asyncio\nawait asyncio.gather(*[llm_query_async(str(n) * 300_000) for n in range(4)])"
    async with server(Play(code(block)), client_model=True) as served:
        run = await served.caller.create(model="play", sub_model="client")
        await asked(served.caller, run.run_id, 4)
        listing, events = run_pb2.ListRunEventsRequest(run_id=run.run_id, page_size=1_000), list[run_pb2.RunEvent]()
        while True:
            page = await served.caller.runs.ListRunEvents(listing, metadata=served.caller.metadata)
            assert page.ByteSize() < 1 << 20
            events += page.events
            if not page.next_page_token:
                break
            listing.page_token = page.next_page_token
        told = [event.model_call_requested for event in events if event.HasField("model_call_requested")]
        assert [len(one.messages[0].content) for one in told] == [300_000] * 4
        assert [event.sequence for event in events] == list(range(1, len(events) + 1))
        await served.caller.cancel(run.run_id)


async def asked(caller: Caller, run_id: str, count: int) -> None:
    """Wait until so many calls of a run wait for a client."""
    async for event in caller.watch(run_id):
        count -= event.HasField("model_call_requested")
        if not count:
            return
