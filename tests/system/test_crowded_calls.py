"""What one tenant has under way is bounded, and what another asks for meanwhile is served."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
from rlm.v1 import server_pb2, server_pb2_grpc

from rlm_server.sessions.turn_line import SESSION_TURNS
from tests.servers import Served
from tests.system.stage import Play, eventually, refusal

EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED


class Pause:
    """A model that answers once it is let go."""

    def __init__(self) -> None:
        self.waiting, self.let_go = 0, asyncio.Event()

    async def __call__(self, prompt: str) -> str:
        self.waiting += 1
        await self.let_go.wait()
        return "ok"


async def test_turns_that_wait_for_one_session_are_bounded_and_those_that_wait_run(server: Served) -> None:
    pause = Pause()
    async with server(Play("", sub=pause)) as served:
        caller = served.caller
        session = await caller.open_session()
        first = asyncio.ensure_future(caller.turn(session, "n = 0\nllm_query('x')"))
        await eventually(lambda: pause.waiting == 1)
        others = [asyncio.ensure_future(caller.turn(session, "n += 1")) for _ in range(SESSION_TURNS + 5)]
        done: set[Any] = set()
        while len(done) < 6:
            ended, _ = await asyncio.wait(set(others) - done, return_when=asyncio.FIRST_COMPLETED)
            done |= ended
        for turn in done:
            said = await refusal(turn)
            assert (said.code, said.reason) == (EXHAUSTED, "TOO_MANY_REQUESTS")
            assert said.said == {"unit": "session_turns", "limit": str(SESSION_TURNS), "used": str(SESSION_TURNS)}
        assert (await caller.turn(await caller.open_session(), "1")).printed == "1\n", "another session is free"
        pause.let_go.set()
        await first
        await asyncio.gather(*(set(others) - done))
        assert (await caller.turn(session, "n")).printed == f"{SESSION_TURNS - 1}\n"


async def test_a_tenant_with_all_its_streams_open_watches_no_more_and_others_do(server: Served) -> None:
    pause = Pause()
    async with server(Play("", sub=pause), tenants={"few": {"tenant_streams": 2, "tenant_requests": 4}}) as served:
        few = await served.tenant("few")
        sessions = [await few.open_session() for _ in range(3)]
        turns = [asyncio.ensure_future(few.turn(session, "llm_query('x')")) for session in sessions[:2]]
        await eventually(lambda: pause.waiting == 2)
        for _ in range(2):
            said = await refusal(few.turn(sessions[2], "1"))
            assert (said.code, said.reason) == (EXHAUSTED, "TOO_MANY_STREAMS")
            assert said.said == {"unit": "tenant_streams", "limit": "2", "used": "2"}
        assert await few.open_session(), "a call that is no stream is served"
        assert (await served.caller.turn(await served.caller.open_session(), "1")).printed == "1\n"
        pause.let_go.set()
        await asyncio.gather(*turns)
        assert (await few.turn(sessions[2], "1")).printed == "1\n"


async def test_a_turns_code_beyond_what_a_request_may_have_is_refused(server: Served) -> None:
    async with server(Play("")) as served:
        session = await served.caller.open_session()
        long = "#" * 1_000_000
        assert (await served.caller.turn(session, long)).result.error.type == ""
        said = await refusal(served.caller.turn(session, long + "#"))
        assert (said.code, said.reason, said.fields) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", ["code"])
        said = await refusal(served.caller.turn(session, "#" * (3 << 20)))
        assert (said.code, said.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_TOO_LARGE")


async def test_of_a_burst_of_calls_none_is_given_up_by_grpc_itself(server: Served) -> None:
    async with server(Play(""), tenant_requests=5_000) as served:
        own = [("grpc.use_local_subchannel_pool", 1)]  # a connection each
        channels = [grpc.aio.insecure_channel(served.running.address, options=own) for _ in range(3)]
        try:
            stubs: list[Any] = [server_pb2_grpc.ServerServiceStub(channel) for channel in channels]
            request, metadata = server_pb2.GetQuotaRequest(), served.caller.metadata
            calls = [stubs[i % 3].GetQuota(request, metadata=metadata) for i in range(2_400)]
            assert {await call.code() for call in calls} == {grpc.StatusCode.OK}
        finally:
            for channel in channels:
                await channel.close()
