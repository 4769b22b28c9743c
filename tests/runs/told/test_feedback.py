"""What a model is told after its code ran: what it printed, how it ended, and which variables are news."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlm_server.repl import functions
from rlm_server.runs.told.feedback import (
    FEEDBACK_CHARACTERS,
    PRINTED_CHARACTERS,
    Block,
    feedback,
    own_lines,
)
from rlm_server.runs.told.quantities import cut
from rlm_server.runs.told.variables import MOST, Variables
from sandbox.turn import Status, Stop, Turn, TurnError, Variable
from tests.runs.stage import a_turn


def told(*turns: Turn, blocks: int = 0, code: str = "", waited: float = 0.0) -> str:
    ran = [Block(code, turn, waited) for turn in turns]
    return feedback(ran, blocks or len(ran), Variables()).text


def test_of_one_block_it_is_told_how_long_it_ran_and_what_it_printed_in_characters() -> None:
    variables = (Variable("words", "list", 3), Variable("total", "int", -1))
    assert told(a_turn("äö\n", variables=variables)) == (
        "Your code ran 0.25 s and printed 3 characters:\näö\n\n"
        "Variables that are new or changed: words: list[3], total: int"
    )


def test_the_time_it_waited_for_models_is_told_apart() -> None:
    assert told(a_turn("1"), waited=12.4).startswith("Your code ran 0.25 s, waited 12 s for models, and printed 1 char")


def test_code_that_prints_nothing_is_told_so() -> None:
    assert told(a_turn()).startswith("Your code ran 0.25 s and printed nothing.\n")


def test_of_several_blocks_each_has_its_number_and_those_that_did_not_run_are_counted() -> None:
    failed = a_turn("before\n", error=TurnError("ValueError", "no", "Traceback …\nValueError: no"))
    said = told(a_turn("1"), failed, blocks=4)
    assert said.startswith("Block 1 of 4 ran 0.25 s and printed 1 character:\n1\n\n")
    assert (
        "Block 2 of 4 ran 0.25 s and raised an exception; what it had set before is kept. It printed 7 characters:\n"
        "before\nTraceback …\nValueError: no" in said
    )
    assert "\n\n2 blocks after it did not run." in said


def test_what_is_cut_out_is_counted_and_it_is_told_where_the_whole_is() -> None:
    said = told(a_turn("a" * 10_000 + "b" * 10_000))
    assert "printed 20,000 characters:\naaa" in said
    assert "[... 12,000 characters cut out; `printed[-1]`, a str, has all of it ...]\nbbb" in said


def test_of_several_blocks_the_whole_of_each_is_where_it_is_told_to_be() -> None:
    long = a_turn("x" * 9_000)
    undone = a_turn("x" * 9_000, error=TurnError(Stop.TURN_TIME, "too long"), status=Status.ROLLED_BACK)
    said = told(long, long, undone)
    assert said.count("`printed[-2]`") == said.count("`printed[-1]`") == 1
    assert said.index("`printed[-2]`") < said.index("`printed[-1]`")
    assert "1,000 characters cut out ...]" in said, "what was undone is not kept"


def test_where_not_even_the_program_has_all_it_is_told_what_it_has() -> None:
    said = told(a_turn("x" * 60_000, truncated=True, output_bytes=PRINTED_CHARACTERS + 1))
    assert "printed more than is kept here; `printed[-1]`, a str, has its beginning and its end:" in said
    assert "has all of it" in told(a_turn("x" * 60_000, truncated=True, output_bytes=PRINTED_CHARACTERS))


def test_the_program_keeps_as_much_as_the_model_is_told() -> None:
    stub = Path(functions.__file__).parent / "guest" / "_printed.py"
    tree = ast.parse(stub.read_text())
    (value,) = (one.value for one in tree.body if isinstance(one, ast.Assign) and ast.unparse(one.targets[0]) == "MOST")
    assert eval(ast.unparse(value)) == PRINTED_CHARACTERS


@pytest.mark.parametrize(
    ("stop", "advice"), [(Stop.TURN_TIME, "Do less in one block"), (Stop.STACK, "loop"), (Stop.EXIT, "Do not exit")]
)
def test_what_was_undone_is_said_to_be_with_the_limit_and_what_to_do(stop: Stop, advice: str) -> None:
    stopped = a_turn(error=TurnError(stop, "the limit (its_name)"), status=Status.ROLLED_BACK)
    said = told(stopped)
    assert "was stopped and undone: all variables are as they were before it" in said
    assert f"{stop}: the limit (its_name)\n" in said
    assert advice in said


def test_what_was_printed_to_both_streams_is_shown() -> None:
    assert "\nout\nerr\n" in told(a_turn("out", "err"))


def test_where_no_code_ran_nothing_is_told_of_it() -> None:
    assert told() == ""


@pytest.mark.parametrize("turn", [a_turn("x" * 1_000_000), a_turn(error=TurnError("E", "x" * 1_000_000))])
def test_the_feedback_stays_small_whatever_a_block_prints_or_raises(turn: Turn) -> None:
    assert len(told(turn)) < FEEDBACK_CHARACTERS + 1_000


def test_what_was_shown_is_counted() -> None:
    said = feedback([Block("", a_turn("abc\n")), Block("", a_turn("x" * 1_000_000))], 2, Variables())
    assert said.shown == len("abc") + FEEDBACK_CHARACTERS


@given(st.text(max_size=60), st.integers(2, 40))
def test_what_is_cut_keeps_both_ends_and_says_how_much_is_missing(text: str, most: int) -> None:
    shown = cut(text, most)
    if len(text) <= most:
        assert shown == text
        return
    half = most // 2
    start, end = text[:half], text[-half:]
    assert shown == f"{start}\n[... {len(text) - 2 * half} characters cut out ...]\n{end}"


# ---- exceptions ------------------------------------------------------------------------------------------------------

TRACEBACK = """\
Traceback (most recent call last):
  File "<turn 2>", line 3, in <module>
    read(text)
    ~~~~^^^^^^
  File "<turn 1>", line 5, in read
    return json.loads(text)
           ~~~~~~~~~~^^^^^^
  File "/lib/json/__init__.py", line 352, in loads
    return _default_decoder.decode(s)
  File "/lib/json/decoder.py", line 345, in decode
    obj, end = self.raw_decode(s, idx=_w(s, 0).end())
json.decoder.JSONDecodeError: Expecting value: line 1 column 1 (char 0)
"""


def test_of_a_traceback_the_models_own_lines_are_shown_and_those_of_libraries_are_not() -> None:
    shown = own_lines(TRACEBACK)
    assert "read(text)" in shown
    assert "json.loads(text)" in shown
    assert "/lib/" not in shown
    assert "raw_decode" not in shown
    assert shown.endswith("Expecting value: line 1 column 1 (char 0)\n")


def test_a_traceback_without_a_line_of_the_models_is_shown_whole() -> None:
    foreign = TRACEBACK.replace("<turn", "<other")
    assert own_lines(foreign) == foreign


# ---- variables -------------------------------------------------------------------------------------------------------


def listed(**types: str) -> tuple[Variable, ...]:
    return tuple(Variable(name, kind, -1) for name, kind in types.items())


def test_variables_are_news_once_and_again_where_they_change() -> None:
    node = Variables()
    one = (Variable("total", "int", -1), Variable("rows", "list", 3))
    assert node.news(["total = 1\nrows = [1, 2, 3]"], one) == "total: int, rows: list[3]"
    assert node.news(["print(total)"], one) == "none"
    assert node.news(["total += 1"], one) == "total: int"
    assert node.news(["rows.append(1)"], (one[0], Variable("rows", "list", 4))) == "rows: list[4]"
    assert node.news(["total == 1 and print(rows)"], (one[0], Variable("rows", "list", 4))) == "none"


def test_modules_functions_and_leftovers_of_loops_are_no_news() -> None:
    node = Variables()
    code = "import re\ndef f(): pass\nfor i, line in enumerate(lines):\n    n = 1\nline_count: int = 4\na, b = 1, 2"
    now = listed(
        re="module", f="function", i="int", line="str", n="int", line_count="int", a="int", b="int", answer="dict"
    )
    assert node.news([code], now) == "n: int, line_count: int, a: int, b: int"


def test_what_a_loop_and_a_line_assign_to_is_a_result() -> None:
    assert Variables().news(["best = None\nfor best in found: pass"], listed(best="str")) == "best: str"


def test_of_many_new_variables_the_newest_are_named_and_the_others_counted() -> None:
    said = Variables().news([""], listed(**{f"name_{number}": "int" for number in range(200)}))
    assert "name_199: int" in said
    assert said.count("name_") == MOST
    assert said.endswith(f", and {200 - MOST} more")


@pytest.mark.parametrize("code", ["for" + " " * 90_000, "a, " * 30_000, "x: " + "y" * 90_000, "for x" * 18_000])
def test_code_is_read_once_whatever_it_is(code: str) -> None:
    assert Variables().news([code, code], ()) == "none"
