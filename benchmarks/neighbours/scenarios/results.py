"""What a turn or a run leaves behind: answers, results that are remembered, errors, names."""

from __future__ import annotations

import itertools

from rlm.v1 import run_pb2

from benchmarks.neighbours.attacker import Attacker, Play
from benchmarks.neighbours.client import block
from benchmarks.neighbours.scenario import POOR, Table

TABLE = Table()


@TABLE.of()
async def large_answers(attacker: Attacker) -> Play:
    """Runs that answer 30 MB."""
    reply = block("answer['content'] = 'x' * 30_000_000\nanswer['ready'] = True")

    async def once() -> None:
        run = await attacker.run(reply)
        await attacker.call(attacker.client.runs.GetRun, run_pb2.GetRunRequest(run_id=run))

    async def play() -> None:
        await attacker.together([once() for _ in range(4)])

    return play


@TABLE.of()
async def answers_again_and_again(attacker: Attacker) -> Play:
    """A run whose code gives an answer of 20 MB in every block, never the last one."""
    replies = ["\n".join([block(f"answer['content'] = '{n}{m}' * 10_000_000") for m in range(8)]) for n in range(20)]

    async def play() -> None:
        await attacker.together([attacker.run(*replies) for _ in range(2)])

    return play


@TABLE.of(POOR)
async def remembered_results(attacker: Attacker) -> Play:
    """Sessions that each remember 64 results of 64 kB."""
    numbers = itertools.count()
    sessions = await attacker.sessions(40)

    async def once(number: int) -> None:
        await attacker.turn(sessions[number], "raise ValueError('x' * 64_000)", f"request {next(numbers)}")

    async def play() -> None:
        await attacker.at_once(len(sessions), once)

    return play


@TABLE.of(POOR)
async def large_errors(attacker: Attacker) -> Play:
    """Errors whose message has 60 MB."""
    return await attacker.turns("raise ValueError('x' * 60_000_000)")


@TABLE.of(POOR)
async def many_names(attacker: Attacker) -> Play:
    """20,000 names of 1,000 letters."""
    return await attacker.turns("globals().update({f'{n:05d}'.join(['n' * 500] * 2): n for n in range(20_000)})")
