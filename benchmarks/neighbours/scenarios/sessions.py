"""All the sessions and runs there are, sessions that are large on the disk, and sessions without end."""

from __future__ import annotations

import asyncio
import itertools

from benchmarks.neighbours.attacker import Attacker, Play
from benchmarks.neighbours.client import block
from benchmarks.neighbours.scenario import POOR, Table

TABLE = Table()

RANDOM = """
import os
block = os.urandom(1_000_000)
tables = (bytes((byte + at) % 256 for byte in range(256)) for at in range({megabytes}))
held = b"".join(block.translate(table) for table in tables)
"""
"""New bytes that no compression helps, made faster than the system gives random ones."""


@TABLE.of(POOR)
async def all_sessions_busy(attacker: Attacker) -> Play:
    """256 sessions whose turns do not end."""
    sessions = await attacker.sessions(256)

    async def play() -> None:
        await attacker.together([attacker.turn(session, "while True: pass") for session in sessions])

    return play


@TABLE.of()
async def all_runs_waiting(attacker: Attacker) -> Play:
    """Eighty runs that wait."""

    async def play() -> None:
        wait = block("import time\nllm_query(f'wait 30 {time.time()}')")
        await attacker.together([attacker.run(wait) for _ in range(80)])

    return play


@TABLE.of(POOR, sessions=4, rest_seconds=0.5)
async def incompressible_snapshots(attacker: Attacker) -> Play:
    """Sessions of 200 MB that no compression helps, more than may be live."""
    sessions = await attacker.sessions(6)

    async def once(session: str) -> None:
        await attacker.turn(session, RANDOM.format(megabytes=200))
        await asyncio.sleep(0.5)

    async def play() -> None:
        for session in sessions:
            await once(session)

    return play


@TABLE.of(POOR, sessions=8)
async def thrashed_sessions(attacker: Attacker) -> Play:
    """Forty sessions of 10 MB for eight places, whose turns come in turn."""
    sessions = await attacker.sessions(40)
    code = RANDOM.format(megabytes=10)

    async def play() -> None:
        await attacker.at_once(6, lambda number: _each(attacker, sessions[number::6], code))

    return play


async def _each(attacker: Attacker, sessions: list[str], code: str) -> None:
    for session in sessions:
        await attacker.turn(session, code)


@TABLE.of(POOR)
async def sessions_without_end(attacker: Attacker) -> Play:
    """Sessions that are created and deleted, one after another, each with a request id of its own."""
    numbers = itertools.count()

    async def once(_: int) -> None:
        session = await attacker.session(request_id=f"request {next(numbers)}")
        if session:
            await attacker.tried(attacker.client.delete(session))

    async def play() -> None:
        await attacker.at_once(8, once)

    return play


@TABLE.of(POOR)
async def sessions_that_stay(attacker: Attacker) -> Play:
    """Sessions that are created, run a turn, and are left."""

    async def once(_: int) -> None:
        session = await attacker.session()
        if session:
            await attacker.turn(session, "held = 'x' * 1_000_000")

    async def play() -> None:
        await attacker.at_once(8, once)

    return play


@TABLE.of()
async def runs_without_end(attacker: Attacker) -> Play:
    """Runs that are started and stopped, one after another."""
    wait = block("import time\nllm_query(f'wait 30 {time.time()}')")

    async def once(_: int) -> None:
        run = await attacker.start(wait)
        if run:
            await attacker.tried(attacker.client.cancel(run))

    async def play() -> None:
        await attacker.at_once(8, once)

    return play


@TABLE.of(POOR)
async def large_memories(attacker: Attacker) -> Play:
    """Sessions that take 400 MB in every turn, and let go of it."""
    sessions = await attacker.sessions(4)

    async def play() -> None:
        code = "held = bytearray(400_000_000)\nfor at in range(0, len(held), 4096): held[at] = 1\ndel held"
        await attacker.together([attacker.turn(session, code) for session in sessions])

    return play


@TABLE.of(POOR)
async def full_folders(attacker: Attacker) -> Play:
    """Sessions that write all the files they may, and take them away."""
    sessions = await attacker.sessions(4)
    code = """
import os
for n in range(900):
    with open(f"/tmp/{n}", "wb") as file:
        file.write(b"x" * 70_000)
for n in range(900):
    os.remove(f"/tmp/{n}")
"""

    async def play() -> None:
        await attacker.together([attacker.turn(session, code) for session in sessions])

    return play
