"""The place attacked: one pool, an attacker, a neighbour of the same owner, and one of another."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

import pytest
import pytest_asyncio

from sandbox.corpora.corpus import Corpus, Kind, in_memory
from sandbox.door import HostCall, Json
from sandbox.limits import MIB, Limits
from sandbox.pool.pool import WorkerPool
from sandbox.pool.process import Process
from sandbox.pool.worker_session import WorkerSession
from sandbox.turn import Status, Turn
from sandbox.vm.image import Loaded
from tests.attacks.attack import Attack, ended

CANARY = "canary-5f1c0de"
TEXT = "the text that is mapped, " * 1000
NEIGHBOURS = Limits(turn_seconds=20, memory_bytes=96 * MIB)


async def answer(call: HostCall) -> Json:
    """Answer what a guest asks for: the host echoes."""
    return {"op": call.op, "arguments": call.arguments}


def unheard(_stream: int, _data: bytes) -> None:
    pass


async def run(session: WorkerSession, code: str) -> Turn:
    return await asyncio.wait_for(session.execute(code, answer, unheard), 40)


class Place:
    """Sessions that must not notice an attack."""

    def __init__(self, pool: WorkerPool, neighbours: list[WorkerSession], text: Corpus) -> None:
        self.pool = pool
        self.neighbours = neighbours
        self.text = text

    def _workers(self) -> list[Process]:
        found = [neighbour._process for neighbour in self.neighbours]
        return [process for process in found if process is not None]

    async def _begin(self, attack: Attack) -> WorkerSession:
        session = await self.pool.create("attacker", "core", attack.bounds)
        await session.attach("context", self.text)
        turn = await run(session, "before = 'as it was'\n1")
        assert turn.stdout == "1\n"
        return session

    async def withstand(self, attack: Attack) -> None:
        """Run an attack, and see that it did what it may and nothing more."""
        workers = self._workers()
        session = await self._begin(attack)
        try:
            turn = await run(session, attack.code)
            assert ended(turn) in attack.ends, turn
            assert attack.shows is None or turn.stdout.strip() == attack.shows, turn
            assert attack.check is None or attack.check(turn), turn
            assert CANARY not in repr(turn)
            await self._goes_on(session, turn)
            await self._intact()
            assert self._workers() == workers
            assert session._process is workers[0]  # that of the neighbour of the same owner
            assert all(worker.alive for worker in workers)
        finally:
            await session.close()

    async def _goes_on(self, session: WorkerSession, attacked: Turn) -> None:
        """See that the session answers, whatever the guest's own interpreter now says of how its turns end."""
        answered = await run(session, "21 * 2")
        if answered.error and answered.error.type == "MemoryError":  # it filled its own memory and kept it
            return
        assert answered.stdout.endswith("42\n") or answered.error is not None, answered
        if attacked.status is Status.ROLLED_BACK:
            assert answered.status is Status.OK, answered
            assert (await run(session, "before, len(context)")).stdout == f"('as it was', {len(TEXT)})\n"

    async def _intact(self) -> None:
        for neighbour in self.neighbours:
            turn = await run(neighbour, "canary, open('/tmp/canary').read(), len(context), context[-6:], sum([1, 2])")
            assert turn.stdout == f"({CANARY!r}, {CANARY!r}, {len(TEXT)}, {TEXT[-6:]!r}, 3)\n", turn


Withstand = Callable[[Attack], Awaitable[None]]


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def place(loaded: Loaded) -> AsyncIterator[Place]:
    pool = WorkerPool(loaded, sessions=8, spares=0)
    with in_memory([TEXT], Kind.TEXT) as text:
        neighbours = []
        for owner in ("attacker", "another"):
            neighbour = await pool.create(owner, "core", replace(NEIGHBOURS))
            await neighbour.attach("context", text)
            kept = await run(neighbour, f"canary = {CANARY!r}\n_ = open('/tmp/canary', 'w').write(canary)")
            assert kept.status is Status.OK
            neighbours.append(neighbour)
        yield Place(pool, neighbours, text)
        await pool.close()


@pytest.fixture
def withstand(place: Place) -> Withstand:
    return place.withstand
