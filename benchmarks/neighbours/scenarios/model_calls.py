"""Calls of models that cannot be paid, that fail, that are repeated, and replies that are costly to read."""

from __future__ import annotations

import random

from benchmarks.neighbours.attacker import Attacker, Play
from benchmarks.neighbours.client import block
from benchmarks.neighbours.scenario import POOR, Table

TABLE = Table()

BATCH = 2_000
MB = 1_000_000
LETTERS = 32_000
"""Of a reply: as many as a node's model may give."""


async def _turns(attacker: Attacker, code: str, sessions: int = 2, context: str = "") -> Play:
    """Run the same code again and again in several sessions."""
    made = await attacker.sessions(sessions, context_id=context)

    async def play() -> None:
        await attacker.together([attacker.turn(session, code) for session in made])

    return play


def _batch(prompts: str, **named: str) -> str:
    arguments = "".join(f", {name}={value}" for name, value in named.items())
    return f"""
try:
    _ = llm_query_batched({prompts}{arguments}, return_exceptions=True)
except Exception:
    pass
"""


NEW = f"[f'{{time.time()}} {{n}}' for n in range({BATCH})]"
"""Prompts that nobody has asked yet."""


@TABLE.of(POOR)
async def long_model_names(attacker: Attacker) -> Play:
    """A model's name of a megabyte, with 2,000 prompts."""
    return await _turns(attacker, "import time\n" + _batch(NEW, model=f"'m' * {MB}"))


@TABLE.of(POOR)
async def unknown_models(attacker: Attacker) -> Play:
    """2,000 prompts to a model that there is not, eight times a turn."""
    return await _turns(attacker, "import time\nfor _ in range(8):" + _indented(_batch(NEW, model="'nobody'")))


@TABLE.of(POOR)
async def unpayable_prompts(attacker: Attacker) -> Play:
    """2,000 prompts that there is no money for, eight times a turn."""
    return await _turns(attacker, "import time\nfor _ in range(8):" + _indented(_batch(NEW)))


@TABLE.of(POOR)
async def unpayable_megabytes(attacker: Attacker) -> Play:
    """Thirty prompts of a megabyte that there is no money for."""
    return await _turns(attacker, _batch(f"[f'{{n}}' * {MB} for n in range(30)]"))


@TABLE.of()
async def failing_calls(attacker: Attacker) -> Play:
    """2,000 prompts that the provider refuses."""
    return await _turns(attacker, "import time\n" + _batch(f"[f'fail {{time.time()}} {{n}}' for n in range({BATCH})]"))


@TABLE.of()
async def memo_hits(attacker: Attacker) -> Play:
    """The same prompt 100,000 times."""
    return await _turns(attacker, "for _ in range(50):" + _indented(_batch(f"['the same'] * {BATCH}")))


@TABLE.of(POOR)
async def lineage_unsent(attacker: Attacker) -> Play:
    """Prompts full of the context that are never sent, because there is no money."""
    lines = [f"{random.random()} is a line that stands here once.\n" for _ in range(150_000)]
    context = await attacker.upload("".join(lines))
    prompts = "[context[n * 50_000 : n * 50_000 + 300_000] + str(n) for n in range(60)]"
    return await _turns(attacker, _batch(prompts), context=context)


@TABLE.of(POOR)
async def lineage_everywhere(attacker: Attacker) -> Play:
    """Prompts whose text stands in a hundred thousand places of the context, never sent."""
    context = await attacker.upload(
        ("All work and no play makes a dull text, and this is such a text. " * 4 + "\n") * 30_000
    )
    return await _turns(attacker, _batch("[context[n : n + 300_000] for n in range(60)]"), context=context)


@TABLE.of()
async def calls_left_under_way(attacker: Attacker) -> Play:
    """A thousand calls that are begun in a turn, and left there when it ends."""
    code = """
import _door, time
try:
    for n in range(1000):
        _door.start("llm_query", prompts=[f"wait 20 {time.time()} {n}"], model=None)
except Exception:
    pass
"""
    return await _turns(attacker, code, sessions=4)


@TABLE.of()
async def waiting_calls(attacker: Attacker) -> Play:
    """Thousands of calls at once to a model that is slow."""
    return await _turns(
        attacker, "import time\n" + _batch(f"[f'wait 20 {{time.time()}} {{n}}' for n in range({BATCH})]"), 8
    )


@TABLE.of()
async def large_replies(attacker: Attacker) -> Play:
    """2,000 replies of 16,000 letters in one answer."""
    return await _turns(
        attacker, "import time\n" + _batch(f"[f'long 16000 {{time.time()}} {{n}}' for n in range({BATCH})]")
    )


async def _replies(attacker: Attacker, *replies: str) -> Play:
    async def play() -> None:
        await attacker.together([attacker.run(reply) for reply in replies])

    return play


@TABLE.of()
async def fenced_replies(attacker: Attacker) -> Play:
    """Replies of ``` and 32,000 letters, blanks, or more of the same."""
    return await _replies(
        attacker,
        *("```" + letter * LETTERS for letter in ("a", " ", "\t", "`", "r ", "\n", "~", "\r")),
        "```repl" + " " * LETTERS,
        "```repl\n" * (LETTERS // 8),
        "```\n" * (LETTERS // 4),
        "\n```repl \n```" * (LETTERS // 12),
    )


@TABLE.of()
async def many_blocks(attacker: Attacker) -> Play:
    """Replies of 1,500 blocks, each of which prints."""
    return await _replies(attacker, *["\n".join([block("print(1)")] * 1_500)] * 4)


def _indented(code: str) -> str:
    return code.replace("\n", "\n    ")
