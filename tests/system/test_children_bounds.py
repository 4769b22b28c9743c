"""What code makes its children be given has bounds, each of which refuses a request as a whole, by its name."""

from __future__ import annotations

import pytest
from rlm.v1 import run_pb2

from tests.servers import Served
from tests.system.books import check_settled, check_story, rows
from tests.system.stage import Ended, Play, code

MIB = 1 << 20


def error_of(ended: Ended) -> tuple[str, str]:
    """The error that the root's first code ended with."""
    of_root = [event for event in ended.events if event.depth == 0 and event.WhichOneof("body") == "code_finished"]
    error = of_root[0].code_finished.result.error
    return error.type, error.message


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("rlm_query('x' * 100_001, 'text')", "prompts: a child RLM's question may have 100000 characters, not 100001"),
        ("rlm_query_batched(['?'] * 4)", "nodes: a run may have 4 RLMs in all; it has had 1, and 4 more"),
        ("rlm_query_batched(['?'] * 2, budget=20)", "budget: 20 USD is more than what is left"),
    ],
)
async def test_a_request_beyond_a_bound_is_refused_before_anything_is_made(
    server: Served, source: str, message: str
) -> None:
    async with server(Play(code(source), code("FINAL(1)")), nodes=4) as served:
        ended = await served.caller.ask()
        kind, said = error_of(ended)
        assert (kind, said.startswith(message)) == ("LimitExceeded", True), said
        assert not ended.bodies("child_started")
        assert len(rows(served.data_dir, "SELECT * FROM node")) == 1
        check_story(ended)
        check_settled(served.data_dir)


async def test_the_nodes_of_a_run_count_all_it_ever_had(server: Served) -> None:
    loop = code("for i in range(5): rlm_query('child', str(i))")
    async with server(Play(loop, code("FINAL(1)"), child=code("FINAL(2)")), nodes=4) as served:
        ended = await served.caller.ask()
        assert error_of(ended)[1] == "nodes: a run may have 4 RLMs in all; it has had 4, and 1 more"
        assert len(ended.nodes) == 4


async def test_a_slice_that_would_take_too_much_memory_is_refused_and_one_that_takes_none_is_not(
    server: Served,
) -> None:
    ask = (
        "slots = rlm_query_batched(['child'] * 2, [context[1:], context[4:]], return_exceptions=True)\n"
        "print(*slots, sep='|')\nFINAL(1)"
    )
    async with server(Play(code(ask), child=code("FINAL(len(context))")), tenant_held_bytes=3 * MIB) as served:
        context = await served.caller.upload("".join(f"{number:8}" for number in range(MIB // 2)))
        ended = await served.caller.ask(context_id=context.context_id)
        refused, _, answered = ended.printed.strip().partition("|")
        assert "what a child RLM reads" in refused
        assert "tenant_held_bytes" in refused
        assert answered == str(4 * MIB - 4)
        check_settled(served.data_dir)


async def test_at_the_depth_cap_prompts_that_are_made_by_reference_are_no_longer_than_a_frame(server: Served) -> None:
    async with server(
        Play(code("rlm_query_batched(['?'] * 30, [context[:90_000]] * 30)"), code("FINAL(1)")),
        sandbox={"frame_bytes": MIB},
    ) as served:
        context = await served.caller.upload("x" * 100_000)
        limits = run_pb2.RunLimits(max_depth=0)
        ended = await served.caller.ask(context_id=context.context_id, limits=limits)
        kind, said = error_of(ended)
        assert kind == "LimitExceeded"
        assert said.startswith("frame_bytes: the prompts at the depth cap may have 1048576 bytes together")
        assert not ended.bodies("call_started")


async def test_answers_of_children_together_are_no_longer_than_a_frame(server: Served) -> None:
    look = code("print([str(r)[:40] for r in rlm_query_batched(['child'] * 6, return_exceptions=True)])\nFINAL(1)")
    play = Play(look, child=code("FINAL('x' * 200_000)"))
    async with server(play, sandbox={"frame_bytes": MIB}) as served:
        ended = await served.caller.ask()
        assert ended.printed.count("frame_bytes: the answers") == 1, ended.printed
        check_settled(served.data_dir)
