"""Servers that are stopped and started again under load: no call fails but for that, and each is told how to go on."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from tests.system.books import check_settled
from tests.system.stage import Caller

ROOT = Path(__file__).parents[2]
RESTARTS = int(os.environ.get("RLM_TEST_KILLS", "3"))
BACK_OFF = 0.5
"""Seconds before a call is made again; the server asks for more."""
ENDED = {"SERVER_STOPPING", "SERVER_STARTING", ""}
"""Why calls may fail meanwhile; nothing is said where nobody listens."""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@asynccontextmanager
async def started(data_dir: Path, port: int, **settings: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A server with the scripted model; the text of its standard output begins when it is ready."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "rlm_server.commands.cli", "serve"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "RLM_DATA_DIR": str(data_dir), "RLM_LISTEN": f"127.0.0.1:{port}", **settings},
        cwd=ROOT,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def ready(process: asyncio.subprocess.Process) -> None:
    assert process.stdout is not None
    line = await process.stdout.readline()
    assert line.startswith(b"serving on "), (line, await process.communicate())


async def ended(process: asyncio.subprocess.Process) -> tuple[bytes, bytes]:
    async with asyncio.timeout(120):
        return await process.communicate()


def reason(error: Any) -> str:
    status: Any = rpc_status.from_call(error)
    info = error_details_pb2.ErrorInfo()
    return str(info.reason) if status is not None and status.details[0].Unpack(info) else ""


class Load:
    """Calls that go on for as long as the test does, each kind after its last has ended."""

    def __init__(self, caller: Caller) -> None:
        self.caller, self.done, self.failed = caller, Counter[str](), Counter[str]()
        self._session = ""

    async def upload(self) -> None:
        await self.caller.upload(f"text {self.done['upload']}")

    async def turn(self) -> None:
        if not self._session:
            self._session = await self.caller.open_session()
        async for _ in self.caller.execute(self._session, "import time\ntime.sleep(0.05)\nprint(1)"):
            pass

    async def run(self) -> None:
        made = await self.caller.create("What?")
        seen = 0
        while True:
            try:
                async for event in self.caller.watch(made.run_id, seen + 1):
                    assert event.sequence == seen + 1, "none is missed and none comes twice"
                    seen = event.sequence
            except grpc.aio.AioRpcError as error:
                self.note(error)
                await asyncio.sleep(BACK_OFF)
            else:
                return

    def note(self, error: Any) -> None:
        why = reason(error)
        assert (error.code(), why in ENDED) == (grpc.StatusCode.UNAVAILABLE, True), error
        self.failed[why] += 1

    async def repeat(self, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await work()
            except grpc.RpcError as error:
                self.note(error)
                await asyncio.sleep(BACK_OFF)
            else:
                self.done[work.__name__] += 1


async def test_servers_are_restarted_under_load_and_no_call_fails_but_for_that(tmp_path: Path) -> None:
    data_dir, port = tmp_path / "data", free_port()
    settings = {"RLM_DRAIN_SECONDS": "0.2", "RLM_GRACE_SECONDS": "2", "RLM_TENANT_BUDGET_USD": "1000"}
    load: Load | None = None
    async with asyncio.TaskGroup() as group:
        tasks: list[asyncio.Task[None]] = []
        for number in range(RESTARTS + 1):
            async with started(data_dir, port, **settings) as process:
                await ready(process)
                if load is None:
                    load = Load(Caller(f"127.0.0.1:{port}", (data_dir / "development-key").read_text().strip()))
                    tasks += [group.create_task(load.repeat(work)) for work in (load.upload, load.turn, load.run)]
                before = load.done.copy()
                async with asyncio.timeout(120):
                    while not all(load.done[kind] > before[kind] for kind in ("upload", "turn", "run")):  # noqa: ASYNC110
                        await asyncio.sleep(0.05)
                if number == RESTARTS:
                    for task in tasks:
                        task.cancel()
                process.send_signal(signal.SIGTERM)
                out, err = await ended(process)
                assert (process.returncode, b"stopping" in out, b"Traceback" in err) == (0, True, False), err
    assert load is not None
    await load.caller.channel.close(None)
    check_settled(data_dir)


async def test_a_second_signal_ends_a_server_at_once_and_in_order(tmp_path: Path) -> None:
    data_dir, port = tmp_path / "data", free_port()
    settings = {"RLM_DRAIN_SECONDS": "600", "RLM_GRACE_SECONDS": "600"}
    async with started(data_dir, port, **settings) as process:
        await ready(process)
        caller = Caller(f"127.0.0.1:{port}", (data_dir / "development-key").read_text().strip())
        turn = caller.execute(await caller.open_session(), "print('go', flush=True)\nwhile True: pass")
        await turn.read()
        process.send_signal(signal.SIGTERM)
        assert process.stdout is not None
        while not (await process.stdout.readline()).startswith(b"stopping"):
            pass
        process.send_signal(signal.SIGTERM)
        out, err = await ended(process)
        assert (process.returncode, b"Traceback" in out + err) == (0, False), err
        await caller.channel.close(None)
    check_settled(data_dir)
