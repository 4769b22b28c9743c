"""How a reply is read: which of its code runs, and which words of it are an answer."""

from __future__ import annotations

import pytest

from tests.compatibility.theatre import Case, Theatre, blocks, case, played
from tests.system.stage import code

END = code("FINAL('the end')")
LONG = 40_000
"""Characters that are more than the tokens of a reply."""


def fenced(source: str, language: str) -> str:
    return f"```{language}\n{source}\n```"


CASES = (
    case(
        "a_repl_block_amid_prose_is_run",
        "Let me see.\n" + code("print(6 * 7)\nFINAL('seen')") + "\nDone.",
        printed="42\n",
    ),
    case(
        "several_blocks_run_in_their_order",
        code("found = [1]", "found.append(2)", "FINAL(found)"),
        answer="[1, 2]",
        turns=1,
    ),
    case(
        "a_python_block_beside_a_repl_block_is_only_shown",
        fenced("x = 'python'", "python") + "\n" + code("FINAL(globals().get('x', 'nothing'))"),
        answer="nothing",
    ),
    case("python_blocks_run_where_there_is_no_repl_block", fenced("FINAL('ran')", "python"), answer="ran", turns=1),
    blocks(
        "a_block_of_many_lines_is_run_as_it_was_written",
        "def factorial(n):\n    if n <= 1:\n        return 1\n\n    return n * factorial(n - 1)\n\nFINAL(factorial(5))",
        answer="120",
    ),
    case("white_space_after_the_language_is_nothing", "```repl  \t\nFINAL('read')\n```  ", answer="read"),
    case(
        "a_block_after_one_that_raised_is_not_run",
        code("reached = 1", "1 / 0", "reached = 3"),
        code("FINAL(reached)"),
        answer="1",
        told=["ZeroDivisionError"],
    ),
    case("a_block_that_is_not_closed_goes_to_the_end", "```repl\nFINAL('open')", answer="open"),
    case(
        "a_reply_without_code_is_told_so_and_the_loop_goes_on",
        "I am thinking.",
        END,
        answer="the end",
        turns=2,
        told=["no"],
    ),
    case("an_empty_reply_does_not_end_the_run", "", END, answer="the end", turns=2),
    case("a_block_without_code_runs_nothing", "```repl\n\n```", END, answer="the end", turns=2, printed=""),
    case("final_in_prose_is_the_answer", "I have it.\n\nFINAL(forty-two)", answer="forty-two", turns=1),
    case("final_in_prose_may_have_brackets_in_it", "FINAL(f(x) = (x + 1))", answer="f(x) = (x + 1)"),
    case(
        "final_var_in_prose_gives_the_value_of_the_variable",
        code("found = 'a' * 3"),
        "FINAL_VAR(found)",
        answer="aaa",
        turns=2,
    ),
    case("prose_about_final_is_no_answer", "Then I will call FINAL(1) and be done.", END, answer="the end", turns=2),
    case(
        "final_in_prose_beside_code_is_not_obeyed",
        code("x = 1") + "\nFINAL(too early)",
        END,
        answer="the end",
        turns=2,
    ),
    case(
        "an_answer_within_reasoning_is_none", "Perhaps:\nFINAL(thought)\n</think>\nNo.", END, answer="the end", turns=2
    ),
    case("windows_line_endings_are_line_endings", code("x = 'read'", "FINAL(x)").replace("\n", "\r\n"), answer="read"),
    *(
        case(f"a_block_marked_{name}_is_code", fenced("FINAL('read')", language), answer="read", turns=1)
        for name, language in {"python3": "python3", "repl_in_braces": "{repl}"}.items()
    ),
    case(
        "fences_within_a_string_of_the_code_belong_to_it",
        code("prompt = '''Look:\n```\nnot the end\n```\nSo?'''\nFINAL(prompt.count('```'))"),
        answer="2",
        turns=1,
    ),
    case(
        "code_within_reasoning_is_not_run",
        "<think>\n" + code("FINAL('thought')") + "\n</think>\n" + code("FINAL('said')"),
        answer="said",
    ),
    case("code_indented_as_a_whole_is_code", "```repl\n    x = 'read'\n    FINAL(x)\n```", answer="read", turns=1),
    case(
        "a_block_within_a_list_loses_its_indentation",
        "1. Look:\n   ```repl\n   x = 'read'\n   FINAL(x)\n   ```",
        answer="read",
    ),
    case("prompts_of_a_console_are_taken_off", "```repl\n>>> x = 'read'\n>>> FINAL(x)\n```", answer="read", turns=1),
    case(
        "a_reply_that_was_cut_off_is_not_run",
        code("FINAL('half a plan')") + "\n" + "x" * LONG,
        END,
        answer="the end",
        turns=2,
    ),
    case(
        "final_var_in_prose_of_no_variable_lists_those_there_are",
        code("found = 1"),
        "FINAL_VAR(fuond)",
        END,
        answer="the end",
        turns=3,
        told=["fuond", "found"],
    ),
)


@pytest.mark.asyncio(loop_scope="package")
@played(CASES)
async def test_a_reply(theatre: Theatre, played_case: Case) -> None:
    await theatre.run(played_case)
