"""A request lowers when its run is ended or held back, and never raises it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from rlm.v1 import run_pb2

from tests.servers import Served
from tests.system.stage import Play, code, refusal


def limits(**guards: Any) -> run_pb2.RunLimits:
    return run_pb2.RunLimits(**guards)


async def test_a_run_ends_after_as_many_repeats_and_errors_as_it_was_given(server: Served) -> None:
    async with server(Play(code("print('the same')"))) as served:
        ended = await served.caller.ask(limits=limits(repeat_count=2))
        assert (ended.run.end_reason, ended.nodes[0].turn_count) == (run_pb2.END_REASON_NO_PROGRESS, 2)
    async with server(Play(*(code(f"raise ValueError({n})") for n in range(9)))) as served:
        ended = await served.caller.ask(limits=limits(errors_in_a_row_count=1))
        assert (ended.run.end_reason, ended.nodes[0].turn_count) == (run_pb2.END_REASON_ERRORS_IN_A_ROW, 1)


async def test_a_run_has_as_many_nodes_as_it_was_given(server: Served) -> None:
    ask = "rlm_query_batched(['part'] * 2)"
    play = Play(
        code(f"try: {ask}\nexcept LimitExceeded as error: print(error)\nFINAL(rlm_query('part'))"),
        part=code("FINAL(1)"),
    )
    async with server(play) as served:
        ended = await served.caller.ask(limits=limits(node_count=2, children_count=1))
    assert "nodes: a run may have 2 RLMs in all" in ended.printed
    assert (ended.run.answer, len(ended.nodes)) == ("1", 2)


@pytest.mark.parametrize(
    ("guard", "most"),
    [("repeat_count", 3), ("errors_in_a_row_count", 5), ("node_count", 1_000), ("children_count", 16)],
)
async def test_no_request_raises_what_its_tenant_has(server: Served, guard: str, most: int) -> None:
    async with server(Play(code("FINAL(1)"))) as served:
        said = await refusal(served.caller.create(limits=limits(**{guard: most + 1})))
        assert said.fields == [f"limits.{guard}"]
        await served.caller.create(limits=limits(**{guard: most}))


async def test_children_at_work_at_once_are_as_many_as_the_run_was_given(server: Served) -> None:
    at_once, most = 0, 0

    async def sub(prompt: str) -> str:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0)
        at_once -= 1
        return "ok"

    play = Play(
        code("rlm_query_batched([f'part' for n in range(4)])", "FINAL(1)"),
        part=code("FINAL(llm_query('x', fresh=True))"),
        sub=sub,
    )
    async with server(play) as served:
        ended = await served.caller.ask(limits=limits(children_count=1))
    assert (len(ended.nodes), most) == (5, 1)
