"""What an operator sets of runs and sessions, for all or for a tenant, is what they have."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from rlm.v1 import run_pb2, types_pb2
from rlm_client.durations import milliseconds

from tests.servers import Served
from tests.system.stage import Play, code, refusal

BATCH = "llm_query_batched(['a', 'b', 'c'])"


async def test_runs_and_sessions_have_the_operators_limits_of_calls(server: Served) -> None:
    play = Play(code("llm_query('from a run')"), code("FINAL('done')"))
    async with server(play, sub_tokens=77, root_tokens=88, batch=2) as served:
        session = await served.caller.open_session()
        seen = await served.caller.turn(session, f"llm_query('from a session')\n{BATCH}")
        assert seen.printed == "['ok', 'ok', 'ok']\n", "a larger batch is made in parts"
        await served.caller.ask()
        asked = {bool(request.system): request.max_tokens for request in play.asked}
        assert asked == {False: 77, True: 88}
        assert play.subcalls == ["from a session", "a", "b", "c", "from a run"]


async def test_a_sessions_turn_waits_for_models_as_long_as_the_operator_says(server: Served) -> None:
    async def never(prompt: str) -> str:
        await asyncio.Event().wait()
        return ""

    async with server(Play("", sub=never), wall_seconds=0.5) as served:
        session = await served.caller.open_session()
        seen = await served.caller.turn(session, "llm_query('x')")
        assert (seen.result.error.type, "deadline" in seen.result.error.message) == ("ModelError", True)


async def test_a_run_that_goes_wrong_ends_where_the_operator_says(server: Served) -> None:
    async with server(Play(code("1 / 0"), code("2 / 0"), code("3 / 0")), errors_in_a_row=2) as served:
        ended = await served.caller.ask()
        assert (ended.run.state, ended.run.end_message) == (
            run_pb2.RUN_STATE_EXHAUSTED,
            "errors_in_a_row: 2 turns in a row failed",
        )
    async with server(Play(code("1")), repeats=2) as served:
        assert "the same result 2 times" in (await served.caller.ask()).run.end_message


@pytest.mark.parametrize(
    ("settings", "asked", "depth"),
    [
        ({}, {}, 2),
        ({}, {"max_depth": 4}, 4),
        ({"max_depth": 1}, {}, 1),
        ({"default_depth": 3}, {}, 3),
        ({"default_depth": 3}, {"max_depth": 0}, 0),
        ({"tenants": {"development": {"max_depth": 1}}}, {}, 1),
    ],
)
async def test_a_run_has_the_default_depth_unless_it_asks_or_may_not(
    server: Served, settings: dict[str, Any], asked: dict[str, Any], depth: int
) -> None:
    play = Play("FINAL(done)")
    async with server(play, **settings) as served:
        await served.caller.ask(limits=run_pb2.RunLimits(**asked))
        assert f"Depth 0 of {depth}" in play.asked[0].messages[0].content


async def test_a_tenants_own_limits_of_runs_hold_for_it_alone(server: Served) -> None:
    own = {"small": {"max_turns": 2, "max_depth": 1, "sub_tokens": 5, "turn_seconds": 1.5}}
    play = Play(code("llm_query('x')"), code("1"), code("2"), code("FINAL(3)"))
    async with server(play, tenants=own) as served:
        small = await served.tenant("small")
        for limits, field in (
            (run_pb2.RunLimits(max_turn_count=3), "limits.max_turn_count"),
            (run_pb2.RunLimits(max_depth=2), "limits.max_depth"),
            (
                run_pb2.RunLimits(sandbox=types_pb2.SandboxLimits(turn_time=milliseconds(1501))),
                "limits.sandbox.turn_time",
            ),
        ):
            said = await refusal(small.create(limits=limits))
            assert (said.code, said.fields) == (grpc.StatusCode.INVALID_ARGUMENT, [field])
        ended = await small.ask()
        assert ended.run.end_message == "max_turns: no answer after 2 turns"
        assert [request.max_tokens for request in play.asked if not request.system] == [5]
        assert (await served.caller.ask()).run.answer == "3"
