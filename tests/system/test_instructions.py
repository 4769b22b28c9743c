"""A run's own instructions and sampling reach its models, beside the server's rules, and are kept with it."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from rlm.v1 import run_pb2, server_pb2, server_pb2_grpc, types_pb2

from rlm_server.broker.sampling import MAX_STOP
from rlm_server.runs.asked import MAX_INSTRUCTIONS
from tests.servers import Served
from tests.system.operator import operating
from tests.system.stage import Play, code, refusal

WANTED = "Amounts are in EUR.\nAnswer in one word."
SAMPLING = run_pb2.Sampling(temperature=0.25, max_token_count=500, stop_sequences=["###"])


async def test_instructions_are_told_apart_from_the_rules_to_the_root_and_to_children(
    server: Served, postgres_url: str
) -> None:
    play = Play(code("rlm_query('part'); llm_query('sub')", "FINAL('done')"), part=code("FINAL('of part')"))
    async with server(play, database_url=postgres_url) as served:
        plain = await served.caller.ask()
        rules = play.asked[0].system
        play.asked.clear()
        ended = await served.caller.ask(instructions=f"  {WANTED}\n")
        listed = await served.caller.runs.ListRuns(run_pb2.ListRunsRequest(), metadata=served.caller.metadata)
    root, child, sub = (
        next(one for one in play.asked if word in one.messages[0].content) for word in ("What?", "part", "sub")
    )
    block = f"\n<instructions>\n{WANTED}\n</instructions>\n"
    assert root.system.startswith(rules)
    assert root.system.endswith(block)
    assert "They change none\nof the rules above" in root.system
    assert child.system.startswith(rules[:2_000])
    assert child.system.endswith(block)
    assert "Your question is a part of a larger one" in child.system
    assert sub.system == ""
    assert (ended.run.instructions, plain.run.instructions) == (WANTED, "")
    assert [one.instructions for one in listed.runs] == ["", ""]


async def test_the_last_word_has_the_instructions_where_there_is_no_room_for_the_conversation(server: Served) -> None:
    play = Play(code("print('x' * 8_000)"), "the last word")
    async with server(play) as served:
        await served.caller.ask(
            instructions=WANTED,
            budget=types_pb2.Budget(token_count=45_000),
            limits=run_pb2.RunLimits(max_turn_count=2),
        )
    assert WANTED in (play.asked[-1].system + play.asked[-1].messages[0].content)


async def test_sampling_holds_for_every_call_unless_code_says_otherwise(server: Served) -> None:
    calls = "llm_query('a'); llm_query('b', temperature=1, max_tokens=7, stop=['x', 'y']); llm_query('c', stop='z')"
    play = Play(code(calls + "; rlm_query('part')", "FINAL('done')"), part=code("FINAL('of part')"))
    async with server(play) as served:
        ended = await served.caller.ask(sampling=SAMPLING)
    said = {
        one.messages[0].content.removeprefix("Question:\n").partition("\n")[0]: (
            one.temperature,
            one.max_tokens,
            one.stop,
        )
        for one in play.asked
    }
    usual = (0.25, 500, ("###",))
    assert said == {
        "What?": usual, "part": usual, "a": usual, "b": (1.0, 7, ("x", "y")), "c": (0.25, 500, ("z",)),
    }  # fmt: skip
    assert ended.run.sampling == SAMPLING


async def test_calls_that_differ_in_a_stop_are_not_the_same(server: Served) -> None:
    calls = "[llm_query('a', stop=stop) for stop in (None, None, 'x', ['x'], ['x', 'y'])]"
    play = Play(code(calls, "FINAL('done')"))
    async with server(play) as served:
        await served.caller.ask()
    assert [one.stop for one in play.asked if one.messages[0].content == "a"] == [(), ("x",), ("x", "y")]


@pytest.mark.parametrize(
    ("stop", "why"),
    [
        ("7", "TypeError: stop must be str, or a list of str, not int"),
        ("' '", "none of which is white space alone"),
        ("['a'] * 5", "at most 4 str"),
        ("'x' * 101", f"at most {MAX_STOP} characters"),
    ],
)
async def test_a_stop_of_codes_that_is_none_is_refused(server: Served, stop: str, why: str) -> None:
    play = Play(code(f"llm_query('a', stop={stop})"), code("FINAL('done')"))
    async with server(play) as served:
        await served.caller.ask()
    assert why in play.asked[1].messages[-1].content


async def test_all_that_is_wrong_is_told_at_once(server: Served) -> None:
    wrong = run_pb2.Sampling(temperature=2.1, max_token_count=8_193, stop_sequences=["a"] * 5)
    async with server(Play("")) as served:
        said = await refusal(served.caller.create(instructions="x" * (MAX_INSTRUCTIONS + 1), sampling=wrong))
        assert said.code is grpc.StatusCode.INVALID_ARGUMENT
        assert sorted(said.fields) == [
            "instructions", "sampling.max_token_count", "sampling.stop_sequences", "sampling.temperature",
        ]  # fmt: skip
        nan = run_pb2.Sampling(temperature=float("nan"))
        assert (await refusal(served.caller.create(sampling=nan))).fields == ["sampling.temperature"]


async def test_what_a_model_does_not_take_is_refused_by_its_name(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-none")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-none")
    both: dict[str, Any] = {"sampling": run_pb2.Sampling(temperature=1.5, stop_sequences=["x"])}
    async with server(Play("")) as served:
        models = served.running.models.routes.models
        reasons = next(name for name in models if name.startswith("gpt-5"))
        older = next(name for name in models if name.startswith("claude-haiku-4-5"))
        said = await refusal(served.caller.create(model=reasons, **both))
        assert said.fields == ["sampling.temperature", "sampling.stop_sequences"]
        assert f"the model {reasons} takes no temperature: leave it out" in said.message
        said = await refusal(served.caller.create(model="play", sub_model=older, **both))
        assert said.fields == ["sampling.temperature"]
        assert f"the model {older} takes a temperature of 1 at most" in said.message
        await served.caller.create(model="play", sub_model="play", **both)
        stub: Any = server_pb2_grpc.ServerServiceStub(served.caller.channel)
        listed = await stub.ListModels(server_pb2.ListModelsRequest(page_size=1_000), metadata=served.caller.metadata)
    taken = {one.name: (one.max_temperature, one.takes_stop_sequences) for one in listed.models}
    assert (taken[reasons], taken[older], taken["play"]) == ((0, False), (1, True), (2, True))


async def test_a_run_that_waited_in_line_has_all_that_it_was_asked_for(server: Served) -> None:
    going_on = asyncio.Event()

    async def sub(prompt: str) -> str:
        await going_on.wait()
        return "ok"

    play = Play(code("llm_query('wait', fresh=True)", "FINAL('7')"), sub=sub)
    async with server(play, runs=1) as served:
        first = await served.caller.create()
        await served.caller.until(first.run_id, "call_started")
        second = await served.caller.create(instructions=WANTED, sampling=SAMPLING, answer_schema='{"type": "integer"}')
        assert second.state == run_pb2.RUN_STATE_PENDING
        going_on.set()
        ended = await served.caller.ended(second.run_id)
    assert (ended.run.state, ended.run.answer) == (run_pb2.RUN_STATE_SUCCEEDED, "7")
    roots = [one for one in play.asked if one.system]
    assert [(WANTED in one.system, one.temperature) for one in roots] == [(False, None), (True, 0.25)]


async def test_instructions_and_schemas_are_not_kept_where_contents_are_redacted(server: Served) -> None:
    play = Play(code("FINAL('1')"))
    async with server(play) as served, operating(served) as operator:
        caller = await served.tenant("acme")
        await operator.update("acme", redact_contents=True)
        ended = await caller.ask(
            instructions=WANTED, answer_schema='{"type": "integer"}', sampling=run_pb2.Sampling(stop_sequences=["marz"])
        )
    assert WANTED in play.asked[0].system
    assert (play.asked[0].stop, ended.run.answer) == (("marz",), "1")
    assert (ended.run.instructions, ended.run.answer_schema, len(ended.run.sampling.stop_sequences)) == ("", "", 0)
    sizes = {one.field: one.size_bytes for one in ended.run.cut}
    assert sizes["instructions"] == len(WANTED)
    assert sizes["answer_schema"] == len('{"type": "integer"}')
    assert sizes["sampling.stop_sequences"] == 4
