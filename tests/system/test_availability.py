"""The port is open before the server is ready, health knows what stands in its way, and it stops in order."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status
from rlm.v1 import session_pb2

import rlm_server.server
from rlm_server.config.settings import Settings
from rlm_server.server import Running, serving
from sandbox.vm.image import Loaded
from tests.databases import cut_off, postgres_database, postgres_server
from tests.servers import Served
from tests.system.every_call import services
from tests.system.stage import Caller, Play, code, eventually

NOT_SERVING, SERVING = health_pb2.HealthCheckResponse.NOT_SERVING, health_pb2.HealthCheckResponse.SERVING
NAMES = ["", *(service.full_name for service in services())]


@asynccontextmanager
async def health(address: str) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(address) as channel:
        yield health_pb2_grpc.HealthStub(channel)


async def statuses(stub: Any) -> set[int]:
    return {(await stub.Check(health_pb2.HealthCheckRequest(service=name))).status for name in NAMES}


class Told:
    """What a watcher of the health of a service is told, in order."""

    def __init__(self, stub: Any, service: str = "") -> None:
        self._call = stub.Watch(health_pb2.HealthCheckRequest(service=service))

    async def next(self) -> Any:
        async with asyncio.timeout(60):
            answer = await self._call.read()
        return answer if answer is grpc.aio.EOF else answer.status


async def read_out(call: Any) -> None:
    while await call.read() is not grpc.aio.EOF:
        pass


async def reason(call: Any) -> tuple[grpc.StatusCode, error_details_pb2.ErrorInfo, float]:
    """Await a call, or read a stream to its end, that fails: its code, why, and when to try again."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await (read_out(call) if isinstance(call, grpc.aio.UnaryStreamCall) else call)
    failed: Any = caught.value
    status: Any = rpc_status.from_call(failed)
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    assert any(detail.Unpack(info) for detail in status.details)
    assert any(detail.Unpack(retry) for detail in status.details)
    return caught.value.code(), info, retry.retry_delay.ToTimedelta().total_seconds()


async def test_the_port_is_open_while_the_guest_is_compiled_and_says_that_it_is_not_ready(
    images: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, listening = threading.Event(), asyncio.get_running_loop().create_future()

    def slowly(*_: Any, **__: Any) -> Loaded:
        assert go_on.wait(60)
        return images

    monkeypatch.setattr(type(images.program), "close", lambda _: None)  # others go on with it

    monkeypatch.setattr(rlm_server.server, "prepare", slowly)
    settings = Settings.load(data_dir=tmp_path / "data", listen="127.0.0.1:0", drain_seconds=0, grace_seconds=0)
    ready, stop = asyncio.Event(), asyncio.Event()

    async def serve() -> None:
        async with serving(settings, listening=listening.set_result):
            ready.set()
            await stop.wait()

    task = asyncio.create_task(serve())
    try:
        address = await asyncio.wait_for(listening, 60)
        async with health(address) as stub, grpc.aio.insecure_channel(address):
            told = [Told(stub, name) for name in NAMES]
            assert {await one.next() for one in told} == {NOT_SERVING} == await statuses(stub)
            key = (tmp_path / "data" / "development-key").read_text().strip()
            caller = Caller(address, key)
            for call in (caller.create(), caller.open_session(), caller.upload("text"), caller.get("run_1")):
                status, info, seconds = await reason(call)
                assert (status, info.reason, seconds) == (grpc.StatusCode.UNAVAILABLE, "SERVER_STARTING", 2)
            _, info, _ = await reason(caller.execute("ses_1", "1"))
            assert info.reason == "SERVER_STARTING"
            go_on.set()
            assert {await one.next() for one in told} == {SERVING}
            assert await statuses(stub) == {SERVING}
            await caller.upload("text")
            await caller.channel.close(None)
    finally:
        go_on.set()
        stop.set()
        await task


async def test_a_stranger_learns_nothing_of_a_server_that_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, listening = threading.Event(), asyncio.get_running_loop().create_future()

    def never(*_: Any, **__: Any) -> Loaded:
        go_on.wait(60)
        raise OSError("stopped")

    monkeypatch.setattr(rlm_server.server, "prepare", never)
    settings = Settings.load(data_dir=tmp_path / "data", listen="127.0.0.1:0")

    async def serve() -> None:
        async with serving(settings, listening=listening.set_result):
            raise AssertionError

    task = asyncio.create_task(serve())
    caller = Caller(await asyncio.wait_for(listening, 60), None)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await caller.get("run_1")
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    go_on.set()
    with pytest.raises(OSError, match="stopped"):
        await task
    await caller.channel.close(None)


async def test_health_knows_that_the_file_of_the_database_is_gone_and_when_it_is_back(server: Served) -> None:
    async with server(Play("")) as served, health(served.running.address) as stub:
        file, away = served.data_dir / "rlm.sqlite", served.data_dir / "away"
        told = Told(stub, NAMES[-1])
        assert await told.next() == SERVING
        file.rename(away)
        assert await told.next() == NOT_SERVING
        assert await statuses(stub) == {NOT_SERVING}
        away.rename(file)
        assert await told.next() == SERVING


async def test_health_knows_that_postgres_is_away_and_when_it_is_back(server: Served) -> None:
    def allow(url: str, name: str, allowed: bool) -> None:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS {allowed}".encode())

    def cut(url: str, name: str) -> None:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,))

    with postgres_server() as top, postgres_database(top) as url:
        name = url.rpartition("?")[0].rpartition("/")[2]
        async with server(Play(""), database_url=url) as served, health(served.running.address) as stub:
            told = Told(stub)
            assert await told.next() == SERVING
            await asyncio.to_thread(allow, top, name, False)
            await asyncio.to_thread(cut, top, name)
            assert await told.next() == NOT_SERVING
            await asyncio.to_thread(allow, top, name, True)
            assert await told.next() == SERVING
            await served.caller.upload("text")


async def test_health_knows_that_another_server_has_taken_the_database_over(server: Served) -> None:
    with postgres_server() as top, postgres_database(top) as url:
        async with server(Play(""), database_url=url) as served, health(served.running.address) as stub:
            told = Told(stub)
            assert await told.next() == SERVING
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute("UPDATE rlm_owner SET epoch = epoch + 1")
                assert await told.next() == NOT_SERVING
                connection.execute("UPDATE rlm_owner SET epoch = epoch - 1")
            assert await told.next() == SERVING
            cut_off(url)


async def test_a_database_that_does_not_answer_is_away_until_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    from rlm_server.api import health as module

    monkeypatch.setattr(module, "ANSWER_SECONDS", 0.01)
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.01)
    answer, asked = asyncio.Event(), 0

    async def check() -> None:
        nonlocal asked
        asked += 1
        await answer.wait()

    own = module.Health([])
    own.clear(module.Obstacle.STARTING)
    looking = asyncio.create_task(own.watch_database(check))
    await eventually(lambda: own.obstacles == {module.Obstacle.DATABASE})
    assert asked == 1, "it is asked once at a time"
    answer.set()
    await eventually(lambda: not own.obstacles)
    looking.cancel()
    await asyncio.wait([looking])


async def test_health_has_a_port_of_its_own_where_that_is_asked_for(server: Served) -> None:
    async with server(Play(""), health_listen="127.0.0.1:0") as served, health(served.running.health) as stub:
        assert await statuses(stub) == {SERVING}
        caller = Caller(served.running.health, served.running.key)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await caller.get("run_1")
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        await caller.channel.close(None)


class Stopping:
    """A server in a task of its own, and callers that outlive it."""

    def __init__(self, server: Served, script: Play, **settings: Any) -> None:
        self.stop, self.hurry = asyncio.Event(), asyncio.Event()
        self._server, self._script, self._settings = server, script, settings
        self._ready: asyncio.Future[Running] = asyncio.get_running_loop().create_future()
        self._stack = AsyncExitStack()

    async def _serve(self) -> None:
        async with self._server(self._script, hurry=self.hurry, **self._settings) as served:
            self._ready.set_result(served.running)
            await self.stop.wait()

    async def __aenter__(self) -> Stopping:
        self.task = asyncio.create_task(self._serve())
        waited: set[asyncio.Future[Any]] = {self.task, self._ready}
        await asyncio.wait(waited, return_when="FIRST_COMPLETED")
        self.running = self._ready.result()
        self.caller = Caller(self.running.address, self.running.key)
        self.health = await self._stack.enter_async_context(health(self.running.address))
        return self

    async def __aexit__(self, *_: object) -> None:
        self.stop.set()
        self.hurry.set()
        await self.task
        await self.caller.channel.close(None)
        await self._stack.aclose()


@pytest.fixture
def asked() -> asyncio.Event:
    return asyncio.Event()


async def never_ends(asked: asyncio.Event) -> str:
    asked.set()
    await asyncio.Event().wait()
    return ""


async def test_a_server_that_stops_says_so_first_and_begins_nothing_new_but_answers(server: Served) -> None:
    async with Stopping(server, Play(code("FINAL(1)")), drain_seconds=600) as own:
        run = await own.caller.create()
        await own.caller.ended(run.run_id)
        session = await own.caller.open_session()
        told = Told(own.health)
        assert await told.next() == SERVING
        own.stop.set()
        assert await told.next() == NOT_SERVING
        for call in (own.caller.create(), own.caller.open_session(), own.caller.execute(session, "1")):
            status, info, seconds = await reason(call)
            assert (status, info.reason, seconds) == (grpc.StatusCode.UNAVAILABLE, "SERVER_STOPPING", 5)
        assert (await own.caller.get(run.run_id)).run_id == run.run_id
        await own.caller.upload("a text")
        own.hurry.set()
        assert await told.next() is grpc.aio.EOF
        await own.task


async def test_a_server_of_which_nobody_asks_how_it_is_stops_at_once(server: Served) -> None:
    async with asyncio.timeout(60):
        async with server(Play(code("FINAL(1)")), drain_seconds=600) as served:
            assert (await served.caller.ask()).run.answer == "1"


async def test_one_who_asked_lately_is_given_time_to_ask_again(server: Served) -> None:
    async with Stopping(server, Play(""), drain_seconds=600) as own:
        assert (await own.health.Check(health_pb2.HealthCheckRequest())).status == SERVING
        own.stop.set()
        async with asyncio.timeout(60):
            while (await own.health.Check(health_pb2.HealthCheckRequest())).status != NOT_SERVING:
                pass
        own.hurry.set()
        await own.task


async def test_a_turn_under_way_ends_by_itself_within_the_grace(server: Served) -> None:
    async with Stopping(server, Play(""), grace_seconds=600) as own:
        turn = own.caller.execute(
            await own.caller.open_session(), "import time\nprint('go', flush=True)\ntime.sleep(1)\nprint('end')"
        )
        first = await turn.read()
        assert first.output.text == "go\n"
        own.stop.set()
        printed = ""
        while not (answer := await turn.read()).HasField("result"):
            printed += answer.output.text
        assert printed == "end\n"
        await own.task


async def test_a_second_signal_ends_a_turn_at_once_and_says_so(server: Served) -> None:
    async with Stopping(server, Play(""), drain_seconds=600, grace_seconds=600) as own:
        turn = own.caller.execute(await own.caller.open_session(), "print('go', flush=True)\nwhile True: pass")
        await turn.read()
        own.stop.set()
        own.hurry.set()
        status, info, _ = await reason(turn)
        assert (status, info.reason) == (grpc.StatusCode.UNAVAILABLE, "SERVER_STOPPING")
        await own.task


async def test_a_watcher_is_told_where_to_resume_and_misses_nothing_by_it(server: Served, asked: asyncio.Event) -> None:
    play = Play(code("llm_query('a')"), sub=lambda _: never_ends(asked))
    async with Stopping(server, play, grace_seconds=0) as own:
        run = await own.caller.create()
        await asyncio.wait_for(asked.wait(), 60)
        seen, watch = [], own.caller.watch(run.run_id)

        async def all_of_it() -> None:
            async for event in watch:
                seen.append(event)

        watching = asyncio.create_task(all_of_it())
        await eventually(lambda: any(event.WhichOneof("body") == "call_started" for event in seen))
        own.stop.set()
        status, info, _ = await reason(watching)
        assert (status, info.reason) == (grpc.StatusCode.UNAVAILABLE, "SERVER_STOPPING")
        resume = int(info.metadata["from_sequence"])
        assert resume == seen[-1].sequence + 1
        await own.task
    async with server(Play("")) as served:
        rest = [event async for event in served.caller.watch(run.run_id, resume)]
        assert [event.sequence for event in rest] == list(range(resume, resume + len(rest)))
        assert rest[-1].HasField("run_finished")


async def test_a_watcher_that_saw_nothing_resumes_where_it_began(server: Served, asked: asyncio.Event) -> None:
    play = Play(code("llm_query('a')"), sub=lambda _: never_ends(asked))
    async with Stopping(server, play, grace_seconds=0) as own:
        run = await own.caller.create()
        await asyncio.wait_for(asked.wait(), 60)

        async def watch() -> None:
            async for _ in own.caller.watch(run.run_id, 1_000):
                raise AssertionError

        watching = asyncio.create_task(watch())
        await asyncio.sleep(0.2)
        own.stop.set()
        _, info, _ = await reason(watching)
        assert info.metadata["from_sequence"] == "1000"


async def test_a_caller_who_goes_away_is_not_told_that_the_server_stops(server: Served) -> None:
    async with server(Play("")) as served:
        turn = served.caller.execute(await served.caller.open_session(), "print('go', flush=True)\nwhile True: pass")
        await turn.read()
        turn.cancel()
        with pytest.raises(asyncio.CancelledError):
            await turn.read()
        request = session_pb2.GetSessionRequest(session_id="ses_none")
        with pytest.raises(grpc.aio.AioRpcError):
            await served.caller.sessions.GetSession(request, metadata=served.caller.metadata)
