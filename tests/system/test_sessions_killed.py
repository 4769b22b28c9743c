"""A server killed at random moments under load: every session is at its last finished turn, and no turn runs twice.

RLM_TEST_KILLS sets how often it is killed.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from pathlib import Path
from typing import Any

import grpc
import pytest
from rlm.v1 import session_pb2

from tests.databases import KINDS
from tests.servers import Served
from tests.system.books import check_settled
from tests.system.stage import Caller, Play
from tests.system.test_restarts import free_port, ready, started

KILLS = int(os.environ.get("RLM_TEST_KILLS", "2"))
BACK_OFF = 0.1
BEGIN = "items = []\nblock = bytearray({size})"
STEP = """
items.append({n})
if block: block[{n} * 4099 % len(block)] = {n} % 256
open('/tmp/items', 'a').write('{n} ')
{also}
"""
ALSO = ("", "", "import time; time.sleep(0.02)", "llm_query('{n}')", "1 / 0")
STATE = "items, [int(n) for n in open('/tmp/items').read().split()]"


class Kept:
    """A session whose turns are asked for until their result is known, each by an id of its own."""

    def __init__(self, caller: Caller, size: int, chance: random.Random) -> None:
        self._caller, self._size, self._chance = caller, size, chance
        self.id = ""
        self.turns = 0
        self.again = 0
        """Turns whose request came again."""

    async def live(self, enough: asyncio.Event) -> None:
        self.id = await self._until_told(lambda: self._caller.open_session(request_id=f"session {self._size}"))
        await self._turn("begin", BEGIN.format(size=self._size))
        while not enough.is_set():
            n = self.turns + 1
            also = self._chance.choice(ALSO).format(n=n)
            await self._turn(str(n), STEP.format(n=n, also=also))
            self.turns = n
            if self._chance.random() < 0.1:
                await self._until_told(self._pause)

    async def _pause(self) -> None:
        pause = session_pb2.PauseSessionRequest(session_id=self.id)
        await self._caller.sessions.PauseSession(pause, metadata=self._caller.metadata)

    async def _turn(self, request: str, code: str) -> None:
        seen = await self._until_told(lambda: self._caller.turn(self.id, code, request))
        assert seen.result.status != session_pb2.TURN_STATUS_ROLLED_BACK, seen

    async def _until_told(self, call: Any) -> Any:
        while True:
            try:
                return await call()
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
            self.again += 1
            await asyncio.sleep(BACK_OFF)


@pytest.mark.parametrize("kind", KINDS)
async def test_sessions_are_at_their_last_finished_turn_however_the_server_was_killed(
    server: Served, tmp_path: Path, request: pytest.FixtureRequest, kind: str
) -> None:
    data_dir, port, chance = tmp_path / "data", free_port(), random.Random(11)
    at = {} if kind == "sqlite" else {"database_url": str(request.getfixturevalue("postgres_url"))}
    settings = {"RLM_TENANT_BUDGET_USD": "1000", **{f"RLM_{name.upper()}": value for name, value in at.items()}}
    enough = asyncio.Event()
    sessions: list[Kept] = []
    async with asyncio.TaskGroup() as group:
        for number in range(KILLS if kind == "sqlite" else max(1, KILLS // 2)):
            async with started(data_dir, port, **settings) as process:
                await ready(process)
                if not sessions:
                    key = (data_dir / "development-key").read_text().strip()
                    caller = Caller(f"127.0.0.1:{port}", key)
                    sessions = [Kept(caller, size, chance) for size in (0, 1, 2, 6 << 20)]
                    tasks = [group.create_task(session.live(enough)) for session in sessions]
                before = [session.turns for session in sessions]
                async with asyncio.timeout(60):
                    while any(now.turns < was + 3 for now, was in zip(sessions, before, strict=True)):  # noqa: ASYNC110
                        await asyncio.sleep(0.02)
                await asyncio.sleep(chance.random() * 0.1)
                process.send_signal(signal.SIGKILL)
                await process.communicate()
            assert not any(task.done() for task in tasks), number
        async with server(
            Play(""), data_dir=data_dir, listen=f"127.0.0.1:{port}", tenant_budget_usd=1000, **at
        ) as served:
            async with asyncio.timeout(60):
                while any(session.again == 0 for session in sessions):  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
                enough.set()
                await asyncio.wait(tasks)
            for session in sessions:
                shown = (await served.caller.turn(session.id, STATE)).printed
                turns = list(range(1, session.turns + 1))
                assert shown == f"{(turns, turns)}\n", session.again
            assert await served.running.ledger.unresolved() == 0
            for session in sessions:
                await served.caller.delete(session.id)
            balance = await served.running.ledger.balance("development")
            assert (balance.carved.nano_usd, balance.pending.nano_usd) == (0, 0)
            assert list((data_dir / "sessions").iterdir()) == []
    await caller.channel.close(None)
    if kind == "sqlite":
        check_settled(data_dir)
