"""Cancelling stops everything under a run, settles what was in flight, and gives back what it held."""

from __future__ import annotations

import asyncio
import time

import pytest
from rlm.v1 import run_pb2, types_pb2

from rlm_server.runs.node import Node
from rlm_server.runs.tree import Outcome
from tests.servers import Served, Server
from tests.system.books import check_settled, check_story, rows
from tests.system.stage import Play, code


class Hanging:
    """A sub-model that never answers, once it is told so."""

    def __init__(self, calls: int = 1) -> None:
        self.calls = calls
        self.reached = asyncio.Event()

    async def __call__(self, prompt: str) -> str:
        if prompt == "answer":
            return "answered"
        self.calls -= 1
        if self.calls == 0:
            self.reached.set()
        await asyncio.Event().wait()
        raise AssertionError


async def check_cancelled(served: Server, run: run_pb2.Run) -> None:
    assert run.state == run_pb2.RUN_STATE_CANCELLED
    assert {node.state for node in await served.caller.nodes(run.run_id)} == {run_pb2.RUN_STATE_CANCELLED}
    assert run.pending == types_pb2.Amounts()
    ended = await served.caller.ended(run.run_id)
    assert ended.run == run
    check_story(ended)
    check_settled(served.data_dir)


async def check_room(served: Server) -> None:
    """Where only so many sessions fit as the run had, another run shows that they are free again."""
    context = await served.caller.upload("again")
    ended = await served.caller.ask("again", context_id=context.context_id)
    assert ended.run.state == run_pb2.RUN_STATE_SUCCEEDED, ended.run.end_message


async def test_a_run_is_cancelled_while_a_sub_call_hangs(server: Served) -> None:
    hanging = Hanging()
    async with server(Play(code("llm_query('hang')"), sub=hanging, again=code("FINAL(1)")), sessions=1) as served:
        run = await served.caller.create()
        await hanging.reached.wait()
        cancelled = await served.caller.cancel(run.run_id)
        await check_cancelled(served, cancelled)
        holds = rows(served.data_dir, "SELECT * FROM hold WHERE model <> '' ORDER BY reserved_at, rowid")
        assert [hold["state"] for hold in holds] == ["posted", "posted"]
        assert (holds[1]["actual_nano_usd"], holds[1]["actual_tokens"]) == (holds[1]["nano_usd"], holds[1]["tokens"])
        assert holds[1]["input"] is None
        (told,) = (await served.caller.ended(run.run_id)).bodies("call_finished")
        assert (told.call.error, told.call.spent.nano_usd) == ("cancelled", holds[1]["nano_usd"])
        assert cancelled.spent.nano_usd == sum(hold["actual_nano_usd"] for hold in holds)
        await check_room(served)


async def test_a_run_is_cancelled_while_its_model_hangs(server: Served) -> None:
    reached = asyncio.Event()

    class Silent:
        async def reply(self, request: object) -> str:
            reached.set()
            await asyncio.Event().wait()
            raise AssertionError

    async with server(Silent()) as served:
        run = await served.caller.create()
        await reached.wait()
        await check_cancelled(served, await served.caller.cancel(run.run_id))


async def test_a_run_is_cancelled_while_its_code_loops(server: Served) -> None:
    loop = code("print('looping')\nwhile True: pass")
    async with server(Play(loop, again=code("FINAL(1)")), sessions=1) as served:
        run = await served.caller.create()
        await served.caller.until(run.run_id, "output")
        await check_cancelled(served, await served.caller.cancel(run.run_id))
        await check_room(served)


async def test_a_run_is_cancelled_with_its_children_and_theirs(server: Served) -> None:
    hanging = Hanging(calls=6)
    play = Play(
        code("rlm_query_batched(['middle'] * 3, list('abc'))"),
        sub=hanging,
        middle=code("rlm_query_batched(['leaf'] * 2, [context + '1', context + '2'])"),
        leaf=code("llm_query('answer')\nllm_query('hang ' + context)"),
        again=code("FINAL(1)"),
    )
    async with server(play, sessions=10) as served:
        run = await served.caller.create()
        await hanging.reached.wait()
        cancelled = await served.caller.cancel(run.run_id)
        assert cancelled.node_count == 10
        await check_cancelled(served, cancelled)
        await check_room(served)


@pytest.mark.parametrize("seen", ["run_started", "turn_started", "model_replied", "code_started", "child_started"])
async def test_a_run_can_be_cancelled_at_any_moment_and_by_several_at_once(server: Served, seen: str) -> None:
    play = Play(code("rlm_query_batched(['child'] * 12, [str(i) for i in range(12)])"), child=code("while True: pass"))
    async with server(play) as served:
        run = await served.caller.create()
        await served.caller.until(run.run_id, seen)
        async with asyncio.timeout(60):
            first, *others = await asyncio.gather(*[served.another().cancel(run.run_id) for _ in range(4)])
        assert all(other == first for other in others)
        await check_cancelled(served, first)


async def test_cancelling_a_run_that_has_ended_changes_nothing(server: Served) -> None:
    async with server(Play(code("FINAL('done')"))) as served:
        ended = await served.caller.ask()
        assert ended.run.state == run_pb2.RUN_STATE_SUCCEEDED
        assert await served.caller.cancel(ended.run.run_id) == ended.run
        again = await served.caller.ended(ended.run.run_id)
        assert again == ended
        check_story(again)


async def test_a_run_that_another_server_left_can_be_cancelled(server: Served) -> None:
    hanging = Hanging()
    async with server(Play(code("llm_query('hang')"), sub=hanging)) as served:
        run = await served.caller.create()
        await hanging.reached.wait()
    hanging = Hanging()
    async with server(Play("", sub=hanging)) as served:
        await hanging.reached.wait()
        await check_cancelled(served, await served.caller.cancel(run.run_id))


async def test_a_child_that_is_cancelled_when_it_had_ended_is_told_as_it_is_kept(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep = Node._keep

    async def slowly(node: Node, outcome: Outcome, after: asyncio.Task[None]) -> None:
        await keep(node, outcome, after)
        if node.task.depth:  # until its parent's time is over, and has cancelled it
            await asyncio.sleep(max(0.0, node.tree.deadline - time.monotonic()) + 0.2)

    monkeypatch.setattr(Node, "_keep", slowly)
    play = Play(code("rlm_query('child')"), child=code("FINAL(1)"))
    async with server(play, wall_seconds=4) as served:
        ended = await served.caller.ask()
        assert ended.run.state == run_pb2.RUN_STATE_EXHAUSTED
        (finished,) = ended.bodies("child_finished")
        assert finished.state == run_pb2.RUN_STATE_SUCCEEDED
        check_story(ended)
        check_settled(served.data_dir)
