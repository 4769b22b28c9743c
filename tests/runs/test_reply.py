"""How a model's reply is read: its code, or an answer given outside code."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlm_server.runs.reply import Reply, read


def fenced(code: str, language: str = "repl", fence: str = "```") -> str:
    return f"{fence}{language}\n{code}{fence}\n"


def test_repl_blocks_are_the_code_in_their_order() -> None:
    first, second = "a = 1\n", "print(a)\n"
    text = f"First look.\n{fenced(first)}Then print.\n{fenced(second)}That is all."
    assert read(text) == Reply((first, second))


@pytest.mark.parametrize("language", ["python", "py", "Python", "PY"])
def test_python_blocks_are_the_code_where_there_is_no_repl_block(language: str) -> None:
    block = fenced("x = 1\n", language)
    assert read(block) == Reply(("x = 1\n",))
    assert read(block + fenced("y = 2\n")) == Reply(("y = 2\n",))


@pytest.mark.parametrize("language", ["", "json", "sh", "replica", "text"])
def test_blocks_of_another_kind_are_no_code(language: str) -> None:
    assert read(fenced("x = 1\n", language)) == Reply(())


def test_a_block_without_code_is_none() -> None:
    assert read(fenced(" \n\n") + fenced("x = 1\n", "python")) == Reply(("x = 1\n",))


@pytest.mark.parametrize("fence", ["~~~", "````", "~~~~~"])
def test_a_fence_is_closed_by_its_own_kind_only(fence: str) -> None:
    code = "text = '''\n```\nnot the end\n```\n'''\n"
    assert read(fenced(code, fence=fence) + "More prose.") == Reply((code,))


def test_a_block_that_is_not_closed_goes_to_the_end() -> None:
    assert read("```repl\nx = 1\ny = 2") == Reply(("x = 1\ny = 2",))


def test_words_after_the_language_are_ignored() -> None:
    assert read("```repl title=look\nx = 1\n```") == Reply(("x = 1\n",))


lines = st.lists(st.text(st.characters(blacklist_characters="`~\n\r", codec="utf-8"), max_size=20), max_size=6)


@given(st.lists(lines.filter(lambda found: "".join(found).strip() != ""), max_size=4), lines)
def test_any_code_comes_out_as_it_was_written(blocks: list[list[str]], prose: list[str]) -> None:
    codes = ["".join(f"{line}\n" for line in block) for block in blocks]
    between = "".join(f"> {line}\n" for line in prose)
    assert read(between + "".join(fenced(code) + between for code in codes)).blocks == tuple(codes)


# ---- an answer outside code ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("FINAL(42)", "42"),
        ("I am sure.\n\n  FINAL( The answer is 42. )  ", "The answer is 42."),
        ('FINAL("forty-two")', "forty-two"),
        ("FINAL('forty-two')", "forty-two"),
        ("FINAL('forty\")", "'forty\""),
        ("FINAL(')", "'"),
        ("FINAL(f(x) = (1))", "f(x) = (1)"),
        ("FINAL(two\nlines)", "two\nlines"),
        ("FINAL()", ""),
        ("```json\n{}\n```\nFINAL(42)", "42"),
    ],
)
def test_final_in_plain_text_is_the_answer(text: str, answer: str) -> None:
    assert read(text) == Reply((), final=answer)


def test_final_var_in_plain_text_names_the_variable() -> None:
    assert read("Done.\nFINAL_VAR(result)") == Reply((), final_variable="result")
    assert read('FINAL_VAR("result")') == Reply((), final_variable="result")


@pytest.mark.parametrize(
    "text",
    [
        "I will call FINAL(42)",
        "FINAL(42) will be next.",
        "FINAL(42",
        "FINAL_VAR()",
        "FINAL_VAR('')",
        "FINAL 42",
        "FINALLY(42)",
        "```text\nFINAL(42)\n```",
        "",
        "No code, and no answer.",
    ],
)
def test_what_only_looks_like_an_answer_is_none(text: str) -> None:
    assert read(text) == Reply(())


def test_beside_code_final_is_no_answer() -> None:
    assert read(fenced("x = 1\n") + "FINAL(42)") == Reply(("x = 1\n",))


PARTS = (
    "`", "~", "```", " ", "a", "(", "```repl", "``` ", "~~~a", "```\n", "````\n```\n",
    "FINAL(", "FINAL(\n", "FINAL()x\n",
)  # fmt: skip


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("start", ["", "```", "```\n", "FINAL("])
def test_a_reply_is_read_in_proportion_to_its_size(start: str, part: str) -> None:
    """Where reading went over the reply again for each of its parts, this would take days."""
    read(start + part * (1_000_000 // len(part)))
