"""Searches on the host: patterns that are slow to match or to compile, and long lists of documents."""

from __future__ import annotations

import random

from rlm.v1 import context_pb2

from benchmarks.neighbours.attacker import Attacker, Play
from benchmarks.neighbours.scenario import POOR, Table

TABLE = Table()

HARD = "a[ab]{60}c"
"""Its automaton has more states than any memory; nothing matches."""
LETTERS = 48_000_000


async def _text(attacker: Attacker, size: int) -> str:
    bits = bin(random.getrandbits(size))[2:]
    return await attacker.upload(bits.replace("0", "a").replace("1", "b"))


@TABLE.of(POOR)
async def hard_searches_of_code(attacker: Attacker) -> Play:
    """Sixty searches at once over 48 MB, from code."""
    context = await _text(attacker, LETTERS)
    sessions = await attacker.sessions(2, context_id=context)
    code = f"""
import _door
for n in range(30):
    _door.start("search", pattern="{HARD}" + str(n), documents=None, limit=1)
for n in range(30):
    _door.wait(20)
"""

    async def play() -> None:
        await attacker.together([attacker.turn(session, code) for session in sessions])

    return play


async def _searches(attacker: Attacker, context: str, pattern: str, at_once: int, documents: int = 0) -> Play:
    async def search(number: int) -> None:
        request = context_pb2.SearchContextRequest(
            context_id=context, pattern=pattern.format(number), documents=[0] * documents
        )
        await attacker.call(attacker.client.contexts.SearchContext, request)

    async def play() -> None:
        await attacker.at_once(at_once, search)

    return play


@TABLE.of(POOR)
async def hard_searches(attacker: Attacker) -> Play:
    """Sixty searches at once over 48 MB, by SearchContext."""
    return await _searches(
        attacker, await _text(attacker, LETTERS), HARD.replace("{", "{{").replace("}", "}}") + "{}", 60
    )


@TABLE.of(POOR)
async def hard_patterns(attacker: Attacker) -> Play:
    """Patterns that are long to compile, over a small text."""
    pattern = r"(?i)(?:[\pL\pN\pM]{{1,60}}[^\pL]){{1,15}}|x{}"
    return await _searches(attacker, await attacker.upload("a small text " * 100), pattern, 16)


@TABLE.of(POOR)
async def long_lists_of_documents(attacker: Attacker) -> Play:
    """A search in two million documents, all of them the same one."""
    return await _searches(attacker, await attacker.upload("a small text " * 10_000), "t.xt{}", 4, 2_000_000)


@TABLE.of(POOR)
async def large_answers_of_searches(attacker: Attacker) -> Play:
    """Searches from code that find 10,000 passages of 1,000 characters."""
    context = await attacker.upload("a text " * 3_000_000)
    sessions = await attacker.sessions(3, context_id=context)
    code = "for n in range(20): _ = search('[a-z ]{1000}', limit=10_000)"

    async def play() -> None:
        await attacker.together([attacker.turn(session, code) for session in sessions])

    return play
