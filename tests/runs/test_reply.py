"""How a model's reply is read: its code, or an answer given outside code."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from types import FrameType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlm_server.runs.reply import reader
from rlm_server.runs.reply.finals import Final
from rlm_server.runs.reply.reader import MOST_BLOCKS
from rlm_server.runs.reply.seen import FINAL_BESIDE_CODE
from tests.runs.reading import Read, read, reply


def fenced(code: str, language: str = "repl", fence: str = "```") -> str:
    return f"{fence}{language}\n{code}{fence}\n"


def test_repl_blocks_are_the_code_in_their_order() -> None:
    first, second = "a = 1\n", "print(a)\n"
    text = f"First look.\n{fenced(first)}Then print.\n{fenced(second)}That is all."
    assert read(text) == Read((first, second))


@pytest.mark.parametrize("language", ["python", "py", "Python", "PY"])
def test_python_blocks_are_the_code_where_there_is_no_repl_block(language: str) -> None:
    block = fenced("x = 1\n", language)
    assert read(block) == Read(("x = 1\n",))
    assert read(block + fenced("y = 2\n")) == Read(("y = 2\n",))


@pytest.mark.parametrize("language", ["", "json", "sh", "replica", "text"])
def test_blocks_of_another_kind_are_no_code(language: str) -> None:
    assert read(fenced("x = 1\n", language)) == Read(())


def test_a_block_without_code_is_none() -> None:
    assert read(fenced(" \n\n") + fenced("x = 1\n", "python")) == Read(("x = 1\n",))


@pytest.mark.parametrize("fence", ["~~~", "````", "~~~~~"])
def test_a_fence_is_closed_by_its_own_kind_only(fence: str) -> None:
    code = "text = '''\n```\nnot the end\n```\n'''\n"
    assert read(fenced(code, fence=fence) + "More prose.") == Read((code,))


def test_a_block_that_is_not_closed_goes_to_the_end() -> None:
    assert read("```repl\nx = 1\ny = 2") == Read(("x = 1\ny = 2",))


def test_words_after_the_language_are_ignored() -> None:
    assert read("```repl title=look\nx = 1\n```") == Read(("x = 1\n",))


# ---- any program, wrapped in any way ---------------------------------------------------------------------------------

STATEMENTS = (
    "x = 1", "print(x)", "# FINAL(42)", "def f(a):\n    return a", "for i in range(3):\n    if i:\n        print(i)\n",
    "prompt = '''Write code:\n```python\nprint(1)\n```\nand stop.'''", 'y = """\n~~~\n> quoted\n~~~\n"""',
    "text = '''\n```repl\nx\n```\n```repl\ny\n```\n'''", "z = '''\n!pip install x\n%d items\n'''",
    "t = '''<think>\n</think>\n<reasoning>'''", "s = '''FINAL(1)\n'''", 'w = f"{x!r} {\'a\'}"', "d = {\n    1: 1\n}",
    "n = (10\n% 3)", "u = '''\n>>> x\n... y\nIn [1]: z\n'''", "await asyncio.sleep(0)", "class A: ...", "",
    "v = '\\\nb'", "k = 'äöü 🎉 \u2028 \x0c'",
)  # fmt: skip
programs = st.lists(st.sampled_from(STATEMENTS), min_size=1, max_size=6).map(lambda found: "\n".join(["a = 0", *found]))


def prompts(program: str) -> str:
    return "\n".join(f"{'...' if number else '>>>'} {line}" for number, line in enumerate(program.split("\n")))


def cells(program: str) -> str:
    return "\n".join(f"{'   ...' if number else 'In [1]'}: {line}" for number, line in enumerate(program.split("\n")))


def indented(text: str, by: str) -> str:
    return "\n".join(by + line for line in text.split("\n"))


AROUND = {
    "nothing": "{}",
    "prose": "I look at `x`, then say FINAL.\n\n{}\n\nThat is all.",
    "reasoning": "<think>\nMaybe\n```repl\nwrong()\n```\nFINAL(0)\n</think>\n\n{}",
    "reasoning in the line": "<thinking>hm</thinking>{}",
    "reasoning without its beginning": "Maybe:\n```python\nwrong()\n```\n</think>\n{}",
    "channels": "<|channel|>analysis<|message|>wrong<|end|><|start|>assistant<|channel|>final<|message|>{}<|return|>",
    "other blocks": "```json\n{{}}\n```\n{}\n```text\nFINAL(0)\n```",
}
INFOS = ("repl", "REPL", "python", "Python", "py", "python3", "{repl}", "{python}", "{.python .x}", 'repl title="a b"')


@given(
    programs,
    st.sampled_from([str, prompts, cells, lambda program: "%%python\n" + program, lambda code: indented(code, "    ")]),
    st.sampled_from(["```", "````", "~~~", "~~~~~"]),
    st.sampled_from(INFOS),
    st.sampled_from(["", " ", "   ", "1. ", "- ", "10. "]),
    st.sampled_from(sorted(AROUND)),
    st.sampled_from(["\n", "\r\n", "\r"]),
)
def test_any_program_comes_out_byte_for_byte(
    program: str, habit: Callable[[str], str], fence: str, info: str, place: str, around: str, newline: str
) -> None:
    block = indented(f"{fence}{info}\n{habit(program)}\n{fence}", " " * len(place))
    block = place + block[len(place) :]
    if place.strip():
        block = "\n" + block  # a list begins a line of its own
    assert read(AROUND[around].format(block).replace("\n", newline)) == Read((program + "\n",))


def test_code_whose_strings_hold_fences_goes_to_the_fence_where_it_is_python() -> None:
    first, second = "p = '''\n```python\nx\n```\n'''\nprint(p)\n", "q = '''\n```\n'''\n"
    assert read(f"Look:\n{fenced(first)}and\n{fenced(second)}FINAL(1)") == Read((first, second))


def test_a_block_left_open_ends_where_the_next_one_opens() -> None:
    assert read("```repl\nx = 1\n```repl\ny = 2\n```") == Read(("x = 1\n", "y = 2\n"))


# ---- an answer outside code ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "argument"),
    [
        ("FINAL(42)", "42"),
        ("FINAL(42).", "42"),
        ("FINAL(42)\n", "42"),
        ("```\nFINAL(42)\n```", "42"),
        ("FINAL(42)\n```", "42"),
        ("I am sure.\n\n  FINAL( The answer is 42. )  ", "The answer is 42."),
        ('FINAL("forty-two")', '"forty-two"'),
        ("FINAL('forty\")", "'forty\""),
        ("FINAL(')", "'"),
        ("FINAL(It's (about) 42)", "It's (about) 42"),
        ('FINAL("a smile :)")', '"a smile :)"'),
        ('FINAL("""a)\nb(""")', '"""a)\nb("""'),
        ("FINAL(f(x) = (1))", "f(x) = (1)"),
        ("FINAL(two\nlines)", "two\nlines"),
        ("FINAL()", ""),
        ("FINAL(1)\nNo, wait.\nFINAL(2)", "2"),
        ("FINAL(never closed\n\nFINAL(42)", "42"),
        ("```json\n{}\n```\nFINAL(42)", "42"),
    ],
)
def test_final_in_plain_text_is_the_answer(text: str, argument: str) -> None:
    assert read(text) == Read((), Final("FINAL", argument))


def test_final_var_in_plain_text_names_the_variable() -> None:
    assert read("Done.\nFINAL_VAR(result)") == Read((), Final("FINAL_VAR", "result"))
    assert read('FINAL_VAR("result")') == Read((), Final("FINAL_VAR", '"result"'))


@pytest.mark.parametrize(
    "text",
    [
        "I will call FINAL(42)",
        "FINAL(42) will be next.",
        "FINAL(42)\nwill be my answer once I have looked.",
        "FINAL(42",
        "FINAL 42",
        "FINALLY(42)",
        "    FINAL(42)",
        "> FINAL(42)",
        "```text\nFINAL(42)\n```",
        "```\nFINAL(42)\n```\nis how I shall end.",
        "<think>FINAL(42)</think>",
        "FINAL(1)\n</think>\nLet me look.",
        "",
        "No code, and no answer.",
    ],
)
def test_what_only_looks_like_an_answer_is_none(text: str) -> None:
    assert read(text) == Read(())


def test_beside_code_final_is_no_answer_and_the_model_is_told() -> None:
    beside = reply(fenced("x = 1\n") + "FINAL(42)")
    assert beside.codes == ("x = 1\n",)
    assert beside.told == (FINAL_BESIDE_CODE,)


# ---- time ------------------------------------------------------------------------------------------------------------

MEGABYTE = 1_000_000

PARTS = (
    "`", "~", "```", " ", "a", "(", "```repl", "``` ", "~~~a", "```\n", "````\n```\n", "FINAL(", "FINAL(\n",
    "FINAL()x\n", "<think>", "a <think>", "</think>\n", "<|end|>", "FINAL('\\'", "\n", "{\n", "```repl\n'''\n```\n",
    "```repl\n", "!a\n", ">>> \n", "- ", "</s>",
)  # fmt: skip


def steps_of_reading(text: str) -> int:
    """How many functions are called, Python's own included, while a reply is read."""
    steps = 0

    def count(frame: FrameType, event: str, arg: object) -> None:
        nonlocal steps
        steps += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        asyncio.run(reader.read(text, reader.first))
    finally:
        sys.setprofile(None)
    return steps


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("start", ["", "```repl\n"])
def test_a_reply_of_a_megabyte_is_read_in_proportion_to_its_size(start: str, part: str) -> None:
    """Where reading went over the reply again for each of its parts, this would take hours."""
    quarter, whole = (steps_of_reading(start + part * (size // len(part))) for size in (MEGABYTE // 4, MEGABYTE))
    assert whole <= 4 * quarter + 2_000


async def test_of_very_many_blocks_the_first_are_read_and_the_model_is_told_that_the_rest_was_not() -> None:
    text = "".join(f"```repl\nx = {number}\n```\n" for number in range(10_000))
    found = await reader.read(text, reader.first)
    assert found.codes == tuple(f"x = {number}\n" for number in range(MOST_BLOCKS))
    assert any("was not read" in told for told in found.told)
    assert found.spoken == text


async def test_others_have_their_turn_while_a_large_reply_is_read() -> None:
    text = "```text\nx\n```\n" * 20_000 + "\nprose" * 20_000
    turns, reading = 0, asyncio.create_task(reader.read(text, reader.first))
    while not reading.done():
        turns += 1
        await asyncio.sleep(0)
    assert turns > 200
