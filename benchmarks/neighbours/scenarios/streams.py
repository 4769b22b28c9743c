"""Streams that are not read, calls that wait, output in the costliest pieces, and calls that are left."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress

from rlm.v1 import run_pb2, session_pb2

from benchmarks.neighbours.attacker import Attacker, Play
from benchmarks.neighbours.client import Client, block
from benchmarks.neighbours.scenario import POOR, Table

TABLE = Table()

FOREVER = 600.0
LOOP = "while True: pass"


@TABLE.of()
async def slow_watchers(attacker: Attacker) -> Play:
    """500 watchers of a run with many events that do not read."""
    loud = block("for n in range(4):\n    print('x' * 64_000)\n_ = llm_query_batched([str(n) for n in range(500)])")
    run = await attacker.run(*[loud] * 8, block("FINAL('done')"))
    clients = [Client(attacker.address, attacker.key) for _ in range(5)]

    async def play() -> None:
        request = run_pb2.WatchRunRequest(run_id=run)
        calls = [client.runs.WatchRun(request, metadata=client.metadata) for client in clients for _ in range(100)]
        attacker.calls += len(calls)
        await attacker.together([attacker.tried(call.read()) for call in calls])
        await asyncio.sleep(FOREVER)

    return play


@TABLE.of()
async def unread_turns(attacker: Attacker) -> Play:
    """Turns that print and print, and whose streams nobody reads."""
    sessions = await attacker.sessions(20)

    async def play() -> None:
        calls = [attacker.client.execute(session, "while True: print('x' * 10_000)") for session in sessions]
        await attacker.together([attacker.tried(call.read()) for call in calls])
        await asyncio.sleep(FOREVER)

    return play


@TABLE.of(POOR)
async def waiting_executes(attacker: Attacker) -> Play:
    """A thousand turns of a megabyte of code, behind two that do not end."""
    sessions = await attacker.sessions(2)
    code = "1" * 1_000_000
    requests = [session_pb2.ExecuteRequest(session_id=session, code=code) for session in sessions] * 500

    async def play() -> None:
        calls = [attacker.client.execute(session, LOOP) for session in sessions]
        calls += [attacker.client.sessions.Execute(one, metadata=attacker.client.metadata) for one in requests]
        await attacker.together([attacker.tried(call.read()) for call in calls])

    return play


@TABLE.of(POOR)
async def output_by_bytes(attacker: Attacker) -> Play:
    """A byte to stdout and a byte to stderr in turn, 400,000 times."""
    return await attacker.turns("import os\nfor _ in range(200_000):\n    os.write(1, b'a'); os.write(2, b'b')")


@TABLE.of(POOR)
async def output_every_turn(attacker: Attacker) -> Play:
    """64 KiB of output in every turn, in turns that do nothing else."""
    return await attacker.turns("print('x' * 65_000)", sessions=6)


@TABLE.of()
async def output_in_runs(attacker: Attacker) -> Play:
    """Runs of 30 turns, each of which prints all it may."""

    async def play() -> None:
        replies = [block(f"print({n}, 'x' * 65_000)") for n in range(30)]
        await attacker.together([attacker.run(*replies) for _ in range(6)])

    return play


@TABLE.of(POOR)
async def cancelled_turns(attacker: Attacker) -> Play:
    """Turns that loop, and that are left after 20 ms, one after another."""
    sessions = await attacker.sessions(8)

    async def once(number: int) -> None:
        call = attacker.client.execute(sessions[number % len(sessions)], LOOP)
        attacker.calls += 1
        with suppress(TimeoutError):
            async with asyncio.timeout(0.02):
                await attacker.tried(call.read())
        call.cancel()

    async def play() -> None:
        await attacker.at_once(len(sessions), once)

    return play


@TABLE.of(POOR, keyless=True)
async def silent_connections(attacker: Attacker) -> Play:
    """500 connections that say half a greeting and no more."""
    host, _, port = attacker.address.rpartition(":")

    async def play() -> None:
        sockets = []
        for _ in range(500):
            with suppress(OSError):
                one = socket.create_connection((host, int(port)), timeout=2)
                one.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n")
                sockets.append(one)
        await asyncio.sleep(FOREVER)

    return play
