"""Whoever watches a run misses nothing and sees nothing twice, however often the connection breaks."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import grpc
from rlm.v1 import run_pb2

from tests.servers import Served
from tests.system.books import check_story
from tests.system.stage import Ended, Play, code, refusal

ROOT = Path(__file__).parents[2]
STEPS = code("for i in range(4):\n    print('step', i)\n    llm_query(f'go on {i}')", "FINAL('done')")


class Gate:
    """Sub-calls wait at it until it is opened."""

    def __init__(self) -> None:
        self.open = asyncio.Event()

    async def __call__(self, prompt: str) -> str:
        if prompt != "go on 0":
            await self.open.wait()
        return "on"


async def test_a_client_that_lost_its_connection_resumes_from_its_last_number(server: Served) -> None:
    gate = Gate()
    async with server(Play(STEPS, sub=gate)) as served:
        run = await served.caller.create()
        seen: list[run_pb2.RunEvent] = []
        lost = served.another()
        async for event in lost.watch(run.run_id):
            seen.append(event)
            if event.WhichOneof("body") == "call_finished":
                break
        await lost.channel.close(None)
        gate.open.set()
        seen += [event async for event in served.another().watch(run.run_id, seen[-1].sequence + 1)]
        check_story(Ended(await served.caller.get(run.run_id), await served.caller.nodes(run.run_id), seen))


async def test_a_client_that_was_killed_resumes_from_its_last_number(server: Served) -> None:
    gate = Gate()
    watch = (
        "import sys; from rlm_client import Client\n"
        "for event in Client(sys.argv[1], sys.argv[2]).watch_run(sys.argv[3]): print(event.sequence, flush=True)"
    )
    async with server(Play(STEPS, sub=gate)) as served:
        run = await served.caller.create()
        killed = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", watch, served.running.address, served.running.key, run.run_id),
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": f"{ROOT / 'proto'}:{ROOT / 'clients/python'}"},
        )
        assert killed.stdout is not None
        try:
            numbers = [int(await killed.stdout.readline()) for _ in range(4)]
        finally:
            killed.send_signal(signal.SIGKILL)
            await killed.wait()
        assert numbers == [1, 2, 3, 4]
        gate.open.set()
        rest = [event async for event in served.caller.watch(run.run_id, 5)]
        whole = await served.caller.ended(run.run_id)
        assert rest == whole.events[4:]
        check_story(whole)


async def test_a_run_that_has_ended_can_be_watched_from_any_number(server: Served) -> None:
    async with server(Play(STEPS)) as served:
        whole = await served.caller.ask()
        check_story(whole)
        for start in range(len(whole.events) + 3):
            again = [event async for event in served.caller.watch(whole.run.run_id, start)]
            assert again == whole.events[max(start - 1, 0) :]


async def test_watchers_at_once_see_the_same(server: Served) -> None:
    gate = Gate()
    async with server(Play(STEPS, sub=gate)) as served:
        run = await served.caller.create()
        watching = [asyncio.create_task(served.another().ended(run.run_id)) for _ in range(3)]
        await served.caller.until(run.run_id, "call_finished")
        gate.open.set()
        first, *others = await asyncio.gather(*watching)
        check_story(first)
        assert all(other.events == first.events for other in others)


async def test_a_watch_from_beyond_the_end_ends_with_the_run(server: Served) -> None:
    gate = Gate()
    async with server(Play(STEPS, sub=gate)) as served:
        run = await served.caller.create()
        call = served.caller.runs.WatchRun(
            run_pb2.WatchRunRequest(run_id=run.run_id, from_sequence=1_000_000), metadata=served.caller.metadata
        )
        await served.caller.until(run.run_id, "call_finished")
        gate.open.set()
        async with asyncio.timeout(60):
            assert [response async for response in call] == []
        assert (await served.caller.get(run.run_id)).state == run_pb2.RUN_STATE_SUCCEEDED


async def test_a_negative_number_is_refused(server: Served) -> None:
    async with server(Play(code("FINAL(1)"))) as served:
        run = (await served.caller.ask()).run

        async def watch() -> None:
            async for _ in served.caller.watch(run.run_id, -1):
                raise AssertionError

        said = await refusal(watch())
        assert (said.code, said.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["from_sequence"])
