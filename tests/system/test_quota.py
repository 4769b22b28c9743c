"""A tenant can read what it may have of the server, and what of it is in use, and nothing of another's."""

from __future__ import annotations

import asyncio

from rlm.v1 import server_pb2, server_pb2_grpc

from rlm_server.shares.limits import TenantLimits
from sandbox.limits import PoolLimits, declared
from tests.servers import Served
from tests.system.context_calls import ContextCalls, header, of_text
from tests.system.stage import Caller, Play, eventually


async def quota(caller: Caller) -> dict[str, server_pb2.Quota]:
    stub = server_pb2_grpc.ServerServiceStub(caller.channel)
    answer = await stub.GetQuota(server_pb2.GetQuotaRequest(), metadata=caller.metadata)
    return {one.name: one for one in answer.quotas}


async def test_what_is_in_use_is_told_with_its_limit_and_unit(server: Served) -> None:
    let_go, asked = asyncio.Event(), asyncio.Event()

    async def sub(prompt: str) -> str:
        asked.set()
        await let_go.wait()
        return "ok"

    own = {"other": {"tenant_sessions": 7, "context_bytes": 500}}
    async with server(Play("", sub=sub), tenants=own) as served:
        caller, other = served.caller, await served.tenant("other")
        contexts = ContextCalls(caller)
        await contexts.send(of_text("x" * 100))
        session = await caller.open_session()
        turn = asyncio.ensure_future(caller.turn(session, "llm_query('x')"))
        await asked.wait()
        upload = contexts.stream()
        await upload.write(header(b"y" * 50))
        await eventually(lambda: list((served.data_dir / "uploads").iterdir()))
        told = await quota(caller)
        assert [told[name].used for name in ("tenant_sessions", "tenant_requests", "tenant_streams")] == [1, 3, 2]
        assert [told[name].used for name in ("tenant_uploads", "context_bytes")] == [1, 150]
        assert told["tenant_held_bytes"].used > 0
        assert 0 < told["stored_bytes"].used < 10_000, "a session that has had no turn yet"
        assert told["stored_bytes"].limit == PoolLimits().stored_bytes
        theirs = await quota(other)
        assert [theirs[name].used for name in ("tenant_sessions", "tenant_uploads", "context_bytes")] == [0, 0, 0]
        assert (theirs["tenant_sessions"].limit, theirs["context_bytes"].limit) == (7, 500)
        for name, bounds in declared(TenantLimits).items():
            if name in told:
                assert (told[name].limit, told[name].unit) == (getattr(TenantLimits(), name), bounds.unit)
        upload.cancel()
        let_go.set()
        await turn
        await caller.delete(session)
        await eventually(lambda: not list((served.data_dir / "uploads").iterdir()))
        told = await quota(caller)
        assert [told[name].used for name in ("tenant_sessions", "tenant_requests", "tenant_streams")] == [0, 1, 0]
