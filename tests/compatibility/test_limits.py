"""What ends a run before it has an answer."""

from __future__ import annotations

import asyncio

import pytest
from rlm.v1 import run_pb2, types_pb2
from rlm_client.durations import milliseconds, seconds

from rlm_server.broker.provider import Failure, ProviderError
from tests.compatibility.theatre import EXHAUSTED, Case, Theatre, blocks, case, played, tokens
from tests.system.stage import Ended, Play, code

BAD = [code(f"[][{number}]") for number in range(20)]
"""Turns that fail, each another way."""

LONG_TURNS = [f"x = {number}  # {'.' * 4_000}" for number in range(20)]


async def never(_: str) -> str:
    await asyncio.Event().wait()
    raise AssertionError


def within(ended: Ended, _: Play) -> None:
    spent, budget = ended.run.spent, ended.run.budget
    assert spent.token_count <= (budget.token_count if budget.HasField("token_count") else spent.token_count)
    assert spent.nano_usd <= (budget.nano_usd if budget.HasField("nano_usd") else spent.nano_usd)


CASES = (
    case(
        "after_the_last_turn_the_model_is_asked_for_an_answer_in_words",
        *[code(f"x = {number}") for number in range(3)],
        "As far as I see, 42.",
        state=EXHAUSTED,
        reason="max_turns",
        answer="As far as I see, 42.",
        asked={"limits": run_pb2.RunLimits(max_turn_count=3)},
        turns=3,
    ),
    case(
        "a_draft_is_the_answer_where_no_words_come",
        code("answer['content'] = 'a draft'"),
        "",
        state=EXHAUSTED,
        answer="a draft",
        asked={"limits": run_pb2.RunLimits(max_turn_count=1)},
    ),
    case("so_many_failing_turns_in_a_row_end_the_run", *BAD, state=EXHAUSTED, reason="errors_in_a_row", turns=5),
    case(
        "a_turn_that_goes_well_begins_the_count_of_errors_anew",
        *BAD[:4],
        code("x = 1"),
        *BAD[4:8],
        code("FINAL('it')"),
        answer="it",
        turns=10,
    ),
    blocks(
        "tokens_run_out_before_more_are_spent",
        *LONG_TURNS,
        state=EXHAUSTED,
        reason="budget.tokens",
        asked={"budget": tokens(20_000)},
        check=within,
    ),
    blocks(
        "money_runs_out_before_more_is_spent",
        *LONG_TURNS,
        state=EXHAUSTED,
        reason="budget.nano_usd",
        asked={"budget": types_pb2.Budget(nano_usd=50_000_000)},
        check=within,
    ),
    blocks(
        "the_time_of_a_run_ends_it_in_the_middle_of_a_block",
        "llm_query('wait')",
        state=EXHAUSTED,
        reason="wall_seconds",
        sub=never,
        asked={"limits": run_pb2.RunLimits(wall_time=seconds(1))},
    ),
    blocks(
        "a_block_that_does_not_end_is_stopped_and_the_loop_goes_on",
        "x = 'kept'",
        "x = 'lost'\nwhile True: pass",
        "FINAL(x)",
        answer="kept",
        turns=3,
        asked={"limits": run_pb2.RunLimits(sandbox=types_pb2.SandboxLimits(turn_time=milliseconds(300)))},
    ),
    case(
        "failing_turns_in_a_row_leave_the_model_a_last_word",
        *BAD[:5],
        "As far as I see, 42.",
        state=EXHAUSTED,
        reason="errors_in_a_row",
        answer="As far as I see, 42.",
    ),
)


@pytest.mark.asyncio(loop_scope="package")
@played(CASES)
async def test_limits(theatre: Theatre, played_case: Case) -> None:
    await theatre.run(played_case)


@pytest.mark.asyncio(loop_scope="package")
async def test_a_model_that_refuses_fails_the_run_with_the_reason(theatre: Theatre) -> None:
    theatre.begin(Play(ProviderError(Failure.BAD_REQUEST, "not today", billed=False)))
    ended = await theatre.caller.ask()
    assert ended.run.state == run_pb2.RUN_STATE_FAILED
    assert "not today" in ended.run.end_message


@pytest.mark.asyncio(loop_scope="package")
async def test_a_run_can_be_cancelled_in_the_middle_of_a_block(theatre: Theatre) -> None:
    theatre.begin(Play(code("llm_query('wait')"), sub=never))
    run = await theatre.caller.create()
    async with asyncio.timeout(30):
        await theatre.caller.until(run.run_id, "call_started")
        ended = await theatre.caller.cancel(run.run_id)
    assert ended.state == run_pb2.RUN_STATE_CANCELLED
    assert (ended.spent.call_count, ended.pending.call_count) == (2, 0)  # what may have been billed is paid for
