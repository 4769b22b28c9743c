"""A text that its model reads at once may be answered from directly, by the rules that hold for every run."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import grpc
import pytest
from rlm.v1 import run_pb2, types_pb2

from rlm_server.broker.provider import ModelRequest
from rlm_server.runs.asked import MAX_INSTRUCTIONS
from tests.servers import Served, Server
from tests.system.context_calls import of_documents
from tests.system.operator import operating
from tests.system.stage import USD, Ended, Play, code, refusal

WINDOW = 100_000
"""Tokens that the scripted model reads here: 300,000 bytes, a quarter of which is 75,000."""
TEXT = "Ada lent 7 crowns to Bo.\n" * 100
AUTO, RLM, DIRECT = run_pb2.STRATEGY_AUTO, run_pb2.STRATEGY_RLM, run_pb2.STRATEGY_DIRECT
DONE = run_pb2.RUN_STATE_SUCCEEDED
RUNS = code("FINAL('by code')")


@pytest.fixture(autouse=True)
def window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlm_server.config.model_catalog.SCRIPTED_WINDOW", WINDOW)


async def ask(served: Server, text: str | None = TEXT, **asked: Any) -> Ended:
    context_id = (await served.caller.upload(text)).context_id if text is not None else ""
    return await served.caller.ask(context_id=context_id, **asked)


def chosen(ended: Ended) -> Any:
    (event,) = ended.bodies("strategy_chosen")
    return event


async def test_a_text_that_fits_comfortably_is_answered_by_one_call_without_a_sandbox(
    server: Served, postgres_url: str
) -> None:
    play = Play("<think>Seven.</think>7 crowns")
    async with server(play, database_url=postgres_url) as served:
        ended = await ask(served, strategy=AUTO, instructions="Be brief.")
    (request,) = play.asked
    assert (ended.run.state, ended.run.answer, ended.run.strategy) == (DONE, "7 crowns", AUTO)
    assert (chosen(ended).strategy, "a quarter of what the model play reads at once" in chosen(ended).reason) == (
        DIRECT,
        True,
    )
    assert TEXT in request.messages[0].content
    assert request.messages[0].content.endswith("Question:\nWhat?")
    assert "Be brief." in request.system
    assert "REPL" not in request.system
    assert ended.run.coverage.fraction == ended.nodes[0].coverage_fraction == 1
    assert ended.run.spent.call_count == 1
    kinds = [kind for kind in ended.kinds if kind != "call_traced"]
    assert kinds == [
        "run_started", "strategy_chosen", "turn_started", "model_replied", "turn_checkpointed", "answer",
        "run_finished",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("size", "asked", "why"),
    [
        (75_001, {}, "the text has 75001 bytes, above 75000: a quarter of what the model play reads at once"),
        (
            50_000,
            {"budget": types_pb2.Budget(token_count=40_000)},
            "the budget does not cover a call with the whole text",
        ),
    ],
)
async def test_auto_goes_by_an_rlm_where_it_does_not_fit_and_says_why(
    server: Served, size: int, asked: Any, why: str
) -> None:
    play = Play(RUNS)
    async with server(play) as served:
        ended = await ask(served, "x" * size, strategy=AUTO, **asked)
    assert (chosen(ended).strategy, chosen(ended).reason) == (RLM, why)
    assert ended.run.answer == "by code"


async def test_a_model_whose_window_is_not_known_is_never_sent_a_whole_text(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlm_server.config.model_catalog.SCRIPTED_WINDOW", None)
    async with server(Play(RUNS)) as served:
        ended = await ask(served, strategy=AUTO)
        assert chosen(ended).strategy == RLM
        assert "how much the model play reads at once is not known here (context_window)" in chosen(ended).reason
        said = await refusal(ask(served, strategy=DIRECT))
        assert (said.code, said.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["strategy"])
        assert "context_window" in said.message


async def test_where_nothing_is_said_an_rlm_answers(server: Served) -> None:
    async with server(Play(RUNS)) as served:
        for ended in (await ask(served), await ask(served, strategy=RLM)):
            assert (ended.run.answer, ended.run.strategy, ended.bodies("strategy_chosen")) == ("by code", RLM, [])


async def test_direct_is_refused_at_once_where_the_text_does_not_fit(server: Served) -> None:
    async with server(Play("whole")) as served:
        said = await refusal(ask(served, "x" * 400_000, strategy=DIRECT))
        assert (said.code, said.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["strategy"])
        assert "the text has 400000 bytes, and the model play reads" in said.message
        assert "context_window: 100000 tokens" in said.message
        complete = run_pb2.CompleteRequest(question="What?", text="x" * 400_000, strategy=DIRECT)
        said = await refusal(served.caller.runs.Complete(complete, metadata=served.caller.metadata))
        assert said.fields == ["strategy"]
        complete.text = "x" * 200_000
        done = await served.caller.runs.Complete(complete, metadata=served.caller.metadata)
        assert (done.run.state, done.run.answer) == (DONE, "whole")
        besides = "é" * MAX_INSTRUCTIONS
        assert (await refusal(ask(served, "x" * 250_000, strategy=DIRECT, instructions=besides))).fields == ["strategy"]
        assert (await ask(served, None, strategy=DIRECT)).run.answer == "whole", "a question without a text"


async def test_documents_are_sent_with_their_numbers_and_names(server: Served) -> None:
    play = Play("read")
    async with server(play) as served:
        documents = await served.caller.send_parts(of_documents([("a.txt", "first"), ("b.txt", "second é")]))
        await served.caller.ask(context_id=documents.context_id, strategy=DIRECT)
    assert "[document 0: a.txt]\nfirst\n\n[document 1: b.txt]\nsecond é" in play.asked[0].messages[0].content


async def test_a_typed_answer_is_the_reply_and_what_is_not_it_goes_back(server: Served) -> None:
    schema = json.dumps({"type": "object", "properties": {"crowns": {"type": "integer"}}, "required": ["crowns"]})
    play = Play("It is seven.", 'So:\n```json\n{"crowns": "7"}\n```', '```json\n{"crowns": 7}\n```')
    async with server(play) as served:
        ended = await ask(served, strategy=DIRECT, answer_schema=schema)
        play.lines = ("never",)
        never = await ask(served, strategy=DIRECT, answer_schema=schema)
    assert (ended.run.state, ended.run.answer) == (DONE, '{"crowns": 7}')
    assert '/crowns: "7" is not of type "integer"' in play.asked[2].messages[-1].content
    assert "Reply with the whole answer again." in play.asked[2].messages[-1].content
    assert [one.kind for one in ended.bodies("guard")] == [run_pb2.GUARD_KIND_NO_ANSWER] * 2
    assert (never.run.state, never.run.end_reason, never.run.answer) == (
        run_pb2.RUN_STATE_EXHAUSTED, run_pb2.END_REASON_ANSWER_SCHEMA, "",
    )  # fmt: skip


async def test_budget_turns_and_the_last_word_hold_for_direct_runs(server: Served) -> None:
    play = Play("", "", "the last word")
    async with server(play) as served:
        ended = await ask(served, strategy=DIRECT, limits=run_pb2.RunLimits(max_turn_count=2))
        assert (ended.run.state, ended.run.end_reason) == (run_pb2.RUN_STATE_EXHAUSTED, run_pb2.END_REASON_TURNS)
        assert ended.run.answer == "the last word"
        small = types_pb2.Budget(nano_usd=USD // 1000)
        ended = await ask(served, "x" * 200_000, strategy=DIRECT, budget=small)
        assert (ended.run.state, ended.run.end_reason) == (
            run_pb2.RUN_STATE_EXHAUSTED, run_pb2.END_REASON_BUDGET_NANO_USD,
        )  # fmt: skip
        assert ended.run.spent.nano_usd <= small.nano_usd


async def test_a_direct_run_is_cancelled_in_the_middle_of_its_call(server: Served) -> None:
    asked, never = asyncio.Event(), asyncio.Event()

    class Slow(Play):
        async def reply(self, request: ModelRequest) -> str:
            asked.set()
            await never.wait()
            return "too late"

    async with server(Slow("")) as served:
        context = await served.caller.upload(TEXT)
        run = await served.caller.create(context_id=context.context_id, strategy=DIRECT)
        await asked.wait()
        cancelled = await served.caller.cancel(run.run_id)
        assert (cancelled.state, cancelled.answer) == (run_pb2.RUN_STATE_CANCELLED, "")
        assert await served.running.ledger.unresolved() == 0


async def test_contents_of_direct_runs_are_redacted_as_those_of_others(server: Served) -> None:
    async with server(Play("", "nougat")) as served, operating(served) as operator:
        caller = await served.tenant("acme")
        await operator.update("acme", redact_contents=True)
        context = await caller.upload("marzipan")
        ended = await caller.ask("Is it marzipan?", context_id=context.context_id, strategy=AUTO)
    assert ended.run.answer == "nougat"
    assert not [event for event in ended.events if "marzipan" in str(event) or "nougat" in str(event)]
    assert chosen(ended).reason
