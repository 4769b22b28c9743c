"""Each call leaves one line of the log, has an id that its caller is told, and is counted by how it ended."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from rlm.v1 import context_pb2, run_pb2

from rlm_server.api.calls import REQUEST_ID
from rlm_server.commands.log_lines import JsonLine, TextLine
from tests.servers import Served, Server
from tests.system.stage import Play, code, eventually
from tests.system.test_metrics import ON, samples

SECRET = "SECRETTEXT"


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.INFO, logger="rlm_server.calls"):
        yield caplog


def told(lines: pytest.LogCaptureFixture, method: str) -> list[dict[str, str]]:
    """What the lines of a method's calls say."""
    found = [record.__dict__["told"] for record in lines.records if record.name == "rlm_server.calls"]
    return [one for one in found if one["method"].endswith(f"/{method}")]


async def ids(call: Any) -> list[str]:
    """The ids that a call's trailers have, however it ends."""
    try:
        if isinstance(call, grpc.aio.UnaryStreamCall):
            async for _ in call:
                pass
        else:
            await call
    except grpc.aio.AioRpcError as error:
        return [str(value) for name, value in error.trailing_metadata() or () if name == REQUEST_ID]
    return [str(value) for name, value in await call.trailing_metadata() if name == REQUEST_ID]


def calls_with(served: Server, said: str) -> list[Any]:
    metadata: Any = (*served.caller.metadata, (REQUEST_ID, said))
    stub, nothing = served.caller.runs, run_pb2.GetRunRequest(run_id="run_none")
    return [
        served.caller.contexts.ListContexts(context_pb2.ListContextsRequest(), metadata=metadata),
        stub.GetRun(nothing, metadata=metadata),
        stub.GetRun(nothing, metadata=((REQUEST_ID, said),)),
        stub.WatchRun(run_pb2.WatchRunRequest(run_id="run_none"), metadata=metadata),
    ]


async def test_a_call_is_named_as_its_caller_says_in_its_trailers_and_in_the_log(
    server: Served, lines: pytest.LogCaptureFixture
) -> None:
    async with server(Play("")) as served:
        for call in calls_with(served, "mine-1.2:3"):
            assert await ids(call) == ["mine-1.2:3"]
        assert [one["request_id"] for one in told(lines, "GetRun")] == ["mine-1.2:3"] * 2


@pytest.mark.parametrize("said", ["", " ", "a b", "x" * 129, "-x", 'a"b', "a;b"])
async def test_an_id_that_is_not_well_formed_is_replaced(server: Served, said: str) -> None:
    async with server(Play("")) as served:
        found = [one for call in calls_with(served, said) for one in await ids(call)]
        assert len({one for one in found if len(one) == 16}) == 4


async def test_a_line_says_whose_call_it_was_and_how_it_ended(server: Served, lines: pytest.LogCaptureFixture) -> None:
    async with server(Play(code("FINAL(1)"))) as served:
        run = await served.caller.create(SECRET)
        await served.caller.ended(run.run_id)
        for caller in (served.caller, served.another("rlm_wrong")):
            with pytest.raises(grpc.aio.AioRpcError):
                await caller.get("run_none")
        turn = served.caller.execute(await served.caller.open_session(), f"print('{SECRET}', flush=True)\nwhile 1: 1")
        await turn.read()
        turn.cancel()
        await eventually(lambda: told(lines, "Execute"))
    (created,), (watched,), (executed,) = (told(lines, name) for name in ("CreateRun", "WatchRun", "Execute"))
    got, missing, stranger = told(lines, "GetRun")
    seconds = [one.pop("seconds") for one in (created, watched, executed, got, missing, stranger)]
    assert all(float(one) >= 0 for one in seconds)
    for one in (created, watched, executed, got, missing, stranger):
        assert len(one.pop("request_id")) == 16
    own = {"tenant": "development"}
    assert created == {"method": "rlm.v1.RunService/CreateRun", "code": "OK", **own}
    assert watched == {"method": "rlm.v1.RunService/WatchRun", "code": "OK", **own}
    assert executed == {"method": "rlm.v1.SessionService/Execute", "code": "Cancelled", **own}
    assert got == {"method": "rlm.v1.RunService/GetRun", "code": "OK", **own}
    assert missing == {"method": "rlm.v1.RunService/GetRun", "code": "NotFound", "reason": "NOT_FOUND", **own}
    assert stranger == {
        "method": "rlm.v1.RunService/GetRun", "code": "Unauthenticated", "reason": "UNAUTHENTICATED"
    }  # fmt: skip
    for form in (TextLine(), JsonLine()):
        said = [form.format(record) for record in lines.records]
        assert all(one.isprintable() for one in said)
        assert SECRET not in "".join(said)


async def test_calls_are_counted_by_method_and_how_they_ended(server: Served) -> None:
    async with server(Play(code("FINAL(1)")), **ON) as served:
        await served.caller.ask()
        for _ in range(2):
            with pytest.raises(grpc.aio.AioRpcError):
                await served.caller.get("run_none")
        unknown: Any = served.caller.channel.unary_unary("/rlm.v1.RunService/NoSuchMethod")
        with pytest.raises(grpc.aio.AioRpcError):
            await unknown(b"")
        seen = await samples(served)
        get = ("GetRun", "rlm.v1.RunService", "unary")
        assert seen["grpc_server_started_total", *get] == 3
        assert seen["grpc_server_handled_total", "OK", *get] == 1
        assert seen["grpc_server_handled_total", "NotFound", *get] == 2
        assert seen["grpc_server_handling_seconds_count", *get] == 3
        assert seen["grpc_server_handling_seconds_bucket", *get, "+Inf"] == 3
        assert not [key for key in seen if "NoSuchMethod" in key]


async def test_runs_are_counted_by_how_they_ended(server: Served) -> None:
    async with server(Play(code("FINAL(1)")), **ON) as served:
        ended = await served.caller.ask()
        await served.caller.open_session()
        seen = await samples(served)
        assert seen["rlm_runs_started_total",] == 1
        assert seen["rlm_runs_ended_total", "succeeded"] == 1
        assert seen["rlm_runs_ended_total", "failed"] == 0
        assert seen["rlm_run_seconds_count",] == 1
        assert seen["rlm_run_spent_nano_usd_total",] == ended.run.spent.nano_usd > 0
        assert seen["rlm_sessions",] == 1
        assert seen["rlm_workers",] == 1
