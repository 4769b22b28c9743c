"""Turns that take turns on too few places are paused and go on, and are stopped at random moments of that."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest

from sandbox.door import HostCall, Json
from sandbox.limits import MIB, Limits
from sandbox.pool.pool import WorkerPool
from sandbox.pool.worker_session import WorkerSession
from sandbox.turn import Status, Turn
from sandbox.vm.image import Loaded
from tests.sandbox.pool.test_pool import ignore

STOPS = int(os.environ.get("RLM_TEST_STOPS", "80"))
AT_ONCE = 8
LIMITS = Limits(turn_seconds=60, memory_bytes=96 * MIB, door_calls=10**9, door_bytes=1 << 50)
LONGEST_SECONDS = 0.15
"""Until a turn is stopped: some slices of time."""
ENDLESS = (
    "while True: pass",
    "sum(range(10**11))",
    "while True: print('x', flush=True)",
    "import time\nwhile True: time.sleep(0.001)",
    "kept = []\nwhile True: kept.append(bytearray(1 << 20)) if len(kept) < 40 else kept.clear()",
    "import _door\n_door.call('never')",
    "import _door\nwhile True: _door.call('a')",
)


@pytest.fixture
async def pool(loaded: Loaded) -> AsyncIterator[WorkerPool]:
    made = WorkerPool(loaded, sessions=AT_ONCE, spares=0, worker_turns=1)
    yield made
    await asyncio.wait_for(made.close(), 60)


async def answer(call: HostCall) -> Json:
    if call.op == "never":
        await asyncio.Event().wait()
    return None


async def run(session: WorkerSession, code: str) -> Turn:
    return await asyncio.wait_for(session.execute(code, answer, ignore), 60)


async def stop_some(session: WorkerSession, chance: random.Random, stops: int) -> None:
    """Stop endless turns, and see after each that the session is as it was."""
    for stopped in range(stops):
        running = asyncio.create_task(run(session, f"turns.append('stopped')\n{chance.choice(ENDLESS)}"))
        await asyncio.sleep(LONGEST_SECONDS * chance.random())
        running.cancel()
        with suppress(asyncio.CancelledError):
            assert not await running
        turn = await run(session, f"turns.append({stopped})\nsum(range(300_000)), turns == list(range({stopped + 1}))")
        assert turn.stdout == f"({sum(range(300_000))}, True)\n", turn


async def test_turns_stopped_while_they_share_a_place_leave_every_session_whole(pool: WorkerPool) -> None:
    sessions = [await pool.create("a", "core", LIMITS) for _ in range(AT_ONCE)]
    for session in sessions:
        assert (await run(session, "turns = []")).status is Status.OK
    worker = sessions[0]._process
    async with asyncio.timeout(3600), asyncio.TaskGroup() as group:
        for seed, session in enumerate(sessions):
            group.create_task(stop_some(session, random.Random(seed), STOPS // AT_ONCE))
    assert {session._process for session in sessions} == {worker}, "no worker was killed"


async def test_a_turn_that_was_paused_again_and_again_computes_what_it_would_have_alone(pool: WorkerPool) -> None:
    sessions = [await pool.create("a", "core", LIMITS) for _ in range(3)]
    code = "n = 1\nfor i in range(1_500_000): n = (n * 31 + i) % 1_000_003\nn"
    alone = await run(sessions[0], code)
    together = await asyncio.gather(*(run(session, code) for session in sessions))
    assert [turn.stdout for turn in together] == [alone.stdout] * 3
