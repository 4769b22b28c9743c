"""Runs wait in line for their turn: they can be watched and cancelled there, and tenants do not wait for each other."""

from __future__ import annotations

import asyncio

import grpc
from rlm.v1 import run_pb2
from rlm_client.durations import seconds

from tests.servers import Served
from tests.system.books import check_settled, check_story, kept_in_vain
from tests.system.stage import Play, code, eventually, refusal


class Gate:
    """Sub-calls wait at it until it is opened; `reached` counts them."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.reached = 0

    async def __call__(self, prompt: str) -> str:
        self.reached += 1
        await self.open.wait()
        return "on"


async def test_a_run_that_waits_is_pending_and_begins_when_another_has_ended(server: Served) -> None:
    gate = Gate()
    async with server(Play(code("llm_query('wait')\nFINAL('done')"), sub=gate), runs=1) as served:
        first, second = (
            await served.caller.create(),
            await served.caller.create(limits=run_pb2.RunLimits(wall_time=seconds(1))),
        )
        await eventually(lambda: gate.reached)
        assert (await served.caller.get(second.run_id)).state == run_pb2.RUN_STATE_PENDING
        watching = asyncio.create_task(served.caller.ended(second.run_id))
        gate.open.set()
        for ended in (await served.caller.ended(first.run_id), await watching):
            assert (ended.run.state, ended.run.answer) == (run_pb2.RUN_STATE_SUCCEEDED, "done")
            check_story(ended)
        check_settled(served.data_dir)


async def test_a_run_that_waits_is_cancelled_at_once_and_has_spent_nothing(server: Served) -> None:
    gate = Gate()
    async with server(Play(code("llm_query('wait')"), sub=gate), runs=1) as served:
        await served.caller.create()
        waiting = await served.caller.create()
        cancelled = await served.caller.cancel(waiting.run_id)
        assert (cancelled.state, cancelled.spent.nano_usd) == (run_pb2.RUN_STATE_CANCELLED, 0)
        events = [event.WhichOneof("body") async for event in served.caller.watch(waiting.run_id)]
        assert events == ["run_finished"]
        gate.open.set()


async def test_a_tenant_with_a_long_line_is_refused_more_and_another_is_not(server: Served) -> None:
    gate = Gate()
    play = Play(code("llm_query('wait')"), sub=gate, quick=code("FINAL(1)"))
    async with server(play, runs=2, tenant_runs=1, tenant_waiting_runs=2) as served:
        runs = [await served.caller.create() for _ in range(3)]
        said = await refusal(served.caller.create())
        assert (said.code, said.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_RUNS")
        assert said.said == {"unit": "tenant_waiting_runs", "limit": "2"}
        other = await served.tenant("other")
        assert (await other.ask("quick")).run.state == run_pb2.RUN_STATE_SUCCEEDED
        for run in reversed(runs):
            await served.caller.cancel(run.run_id)
        check_settled(served.data_dir)


async def test_a_new_tenant_begins_after_a_turn_of_one_that_has_every_place(server: Served) -> None:
    gate = Gate()
    turn = code("llm_query('wait')")
    play = Play(turn, turn, code("FINAL('long')"), sub=gate, quick=code("FINAL('quick')"))
    async with server(play, runs=2, tenant_runs=2) as served:
        first = [await served.caller.create(limits=run_pb2.RunLimits(wall_time=seconds(60))) for _ in range(2)]
        await eventually(lambda: gate.reached == 2)
        other = await served.tenant("other")
        run = await other.create("quick")
        assert (await other.get(run.run_id)).state == run_pb2.RUN_STATE_PENDING
        gate.open.set()
        ended = [await other.ended(run.run_id), *[await served.caller.ended(one.run_id) for one in first]]
        assert [one.run.answer for one in ended] == ["quick", "long", "long"]
        began = ended[0].events[0].time.ToNanoseconds()
        assert began < min(one.events[-1].time.ToNanoseconds() for one in ended[1:])
        check_settled(served.data_dir)


async def test_a_run_that_another_server_left_is_cancelled_with_its_children_while_it_waits_for_its_turn(
    server: Served,
) -> None:
    def play() -> Play:
        return Play(code("rlm_query_batched(['child'] * 3, list('abc'))"), child=code("llm_query('x')"), sub=Gate())

    async with server(play(), runs=2) as served:
        runs = [await served.caller.create() for _ in range(2)]
        for run in runs:
            await served.caller.until(run.run_id, "call_started")
    async with server(play(), runs=1) as served:
        for run in reversed(runs):
            assert (await served.caller.cancel(run.run_id)).state == run_pb2.RUN_STATE_CANCELLED
            nodes = await served.caller.nodes(run.run_id)
            assert [node.state for node in nodes] == [run_pb2.RUN_STATE_CANCELLED] * 4
            check_story(await served.caller.ended(run.run_id))
        check_settled(served.data_dir)
        assert kept_in_vain(served.data_dir) == set()


async def test_a_server_that_stops_leaves_the_runs_that_wait_to_the_next(server: Served) -> None:
    async with server(Play(code("llm_query('wait')"), sub=Gate()), runs=1) as served:
        runs = [await served.caller.create() for _ in range(3)]
    async with server(Play(code("FINAL('done')")), runs=1) as served:
        for run in runs:
            assert (await served.caller.ended(run.run_id)).run.answer == "done"
        check_settled(served.data_dir)
