"""Little that names much: parts of a context, given to children; and what children are asked and answer."""

from __future__ import annotations

from rlm.v1 import run_pb2, types_pb2

from benchmarks.neighbours.attacker import Attacker, Play
from benchmarks.neighbours.client import block, question
from benchmarks.neighbours.scenario import USD, Table

TABLE = Table()

MODEST = types_pb2.Budget(nano_usd=USD // 2)
"""Of a run whose code tries more than that pays for."""


async def _runs(attacker: Attacker, code: str, *, context: str = "", runs: int = 1, max_depth: int = 2) -> Play:
    """Run the same code as the first block of several runs, again and again."""
    asked = {"context_id": context, "budget": MODEST, "limits": run_pb2.RunLimits(max_depth=max_depth)}

    async def play() -> None:
        await attacker.together([attacker.run(block(code), block("FINAL('done')"), **asked) for _ in range(runs)])

    return play


@TABLE.of()
async def references(attacker: Attacker) -> Play:
    """100,000 characters named by 60 bytes, 2,000 times in a request, where a model answers for the child."""
    context = await attacker.upload("A text that is named again and again. " * 50_000)
    code = """
import _door
part = {"corpus": 0, "document": 0, "start": 1, "end": 1_500_000}
for _ in range(5):
    try:
        _door.call("rlm_query", prompts=[str(n) for n in range(2000)], contexts=[part] * 2000, model=None, budget=None)
    except Exception as error:
        print(error)
"""
    return await _runs(attacker, code, context=context, max_depth=0)


@TABLE.of()
async def child_slices(attacker: Attacker) -> Play:
    """Sixteen children, each with all but the first character of 48 MB."""
    context = await attacker.upload("A text that is long.\n" * (48_000_000 // 21))
    return await _runs(attacker, "rlm_query_batched(['q'] * 16, [context[1:]] * 16)", context=context, runs=2)


@TABLE.of()
async def child_documents(attacker: Attacker) -> Play:
    """Sixteen children, each with 100,000 documents."""
    context = await attacker.upload("", ["a document"] * 100_000)
    return await _runs(attacker, "rlm_query_batched(['q'] * 16, [context[::-1]] * 16)", context=context, runs=2)


@TABLE.of()
async def child_texts(attacker: Attacker) -> Play:
    """Sixteen children, each with 400,000 texts of a letter."""
    return await _runs(attacker, "rlm_query_batched(['q'] * 16, [['a'] * 400_000] * 16)", runs=2)


@TABLE.of()
async def child_questions(attacker: Attacker) -> Play:
    """Children that are asked 10 MB each."""
    return await _runs(attacker, "rlm_query_batched(['q' * 10_000_000] * 3, ['', '', ''])", runs=2)


@TABLE.of()
async def child_answers(attacker: Attacker) -> Play:
    """Children that answer 10 MB each."""
    asked = question(block("FINAL('x' * 10_000_000)"))
    return await _runs(attacker, f"_ = rlm_query_batched([{asked!r}] * 8, [''] * 8)", runs=2)


@TABLE.of()
async def many_children(attacker: Attacker) -> Play:
    """Hundreds of children that end at once."""
    return await _runs(attacker, "_ = rlm_query_batched(['q'] * 400, [''] * 400, budget=0.001)", runs=4)
