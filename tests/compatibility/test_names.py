"""What lives on from turn to turn, and which names are put back."""

from __future__ import annotations

import pytest

from tests.compatibility.theatre import Case, Theatre, blocks, case, played
from tests.system.stage import code

SHOWN = """\
from contextlib import redirect_stdout
from io import StringIO
with redirect_stdout(StringIO()) as shown:
    SHOW_VARS()
words = ['found', 'list', '_hidden', 'llm_query']
FINAL(' '.join(word for word in words if word in shown.getvalue()))"""

CASES = (
    blocks("variables_live_on", "x = 42", "y = x + 8", "print(y)\nFINAL(y)", answer="50", printed="50\n", turns=3),
    blocks(
        "functions_live_on",
        "def greet(name):\n    return f'Hello, {name}!'",
        "FINAL(greet('you'))",
        answer="Hello, you!",
    ),
    blocks(
        "imports_and_classes_live_on", "import math\nclass A: pi = math.pi", "FINAL(A.pi == math.pi)", answer="True"
    ),
    blocks(
        "functions_see_names_that_are_set_later",
        "def total():\n    return sum(n * factor for n in numbers)",
        "numbers, factor = [1, 2, 3], 10",
        "FINAL(total())",
        answer="60",
    ),
    blocks("names_that_begin_with_an_underscore_live_on", "_hidden = 'there'", "FINAL(_hidden)", answer="there"),
    blocks("what_was_set_before_an_exception_is_kept", "x = 'kept'\n1 / 0", "FINAL(x)", answer="kept"),
    blocks(
        "objects_that_cannot_be_pickled_live_on",
        "import threading\nnumbers = (n for n in range(5)); next(numbers)\nlock = threading.Lock()\nf = lambda: 'f'",
        "FINAL(f'{next(numbers)} {lock.locked()} {f()}')",
        answer="1 False f",
    ),
    *(
        blocks(
            f"{name}_is_put_back",
            f"{name} = lambda *_: 'taken'",
            f"FINAL({ask})",
            answer=found,
            turns=2,
            children={"q": code("FINAL('from a child')")},
        )
        for name, ask, found in (
            ("llm_query", "llm_query('q')", "Q"),
            ("llm_query_batched", "' '.join(llm_query_batched(['a', 'b']))", "A B"),
            ("rlm_query", "rlm_query('q')", "from a child"),
            ("rlm_query_batched", "rlm_query_batched(['q'])[0]", "from a child"),
        )
    ),
    blocks("context_is_put_back", "context = 'taken'", "FINAL(context)", answer="the text", context="the text"),
    blocks("show_vars_is_put_back", "SHOW_VARS = None", "SHOW_VARS()\nFINAL('shown')", answer="shown", turns=2),
    blocks(
        "show_vars_shows_names_and_types_of_the_programs_own_variables",
        "found, _hidden = [1, 2], 3",
        SHOWN,
        answer="found list",
    ),
    blocks("names_of_builtins_can_be_used", "list = [1]\nmax = 2", "FINAL(f'{list} {max}')", answer="[1] 2"),
    case(
        "runs_share_no_names",
        code("FINAL(sorted(name for name in globals() if name in ('important', 'found', 'x')))"),
        answer="[]",
    ),
    blocks(
        "what_took_a_reserved_name_is_kept_and_the_model_is_told",
        "budget = 1200",
        "FINAL(kept['budget'])",
        answer="1200",
        turns=2,
        told=["budget", "kept"],
    ),
    blocks(
        "streams_that_were_replaced_are_put_back",
        "import io, sys\nsys.stdout = io.StringIO()",
        "print('heard')",
        "FINAL('it')",
        told=["heard"],
    ),
    blocks(
        "show_vars_returns_what_it_prints",
        "found = [1, 2]",
        "FINAL('found' in SHOW_VARS())",
        answer="True",
    ),
)


@pytest.mark.asyncio(loop_scope="package")
@played(CASES)
async def test_names(theatre: Theatre, played_case: Case) -> None:
    await theatre.run(played_case)


@pytest.mark.asyncio(loop_scope="package")
async def test_a_session_keeps_its_names_and_another_has_none_of_them(theatre: Theatre) -> None:
    one, other = [await theatre.caller.open_session() for _ in range(2)]
    await theatre.caller.turn(one, "important = 42")
    assert (await theatre.caller.turn(one, "print(important)")).printed == "42\n"
    assert (await theatre.caller.turn(other, "print(important)")).result.error.type == "NameError"
    for session in (one, other):
        await theatre.caller.delete(session)


@pytest.mark.asyncio(loop_scope="package")
async def test_an_answer_ends_no_session(theatre: Theatre) -> None:
    session = await theatre.caller.open_session()
    await theatre.caller.turn(session, "answer['content'] = 'first'; answer['ready'] = True")
    assert (await theatre.caller.turn(session, "print('goes on')")).printed == "goes on\n"
    await theatre.caller.delete(session)
