"""A session is a REPL: what a turn says, keeps and reports."""

from __future__ import annotations

import pytest

from sandbox.turn import Status, Stop, Variable
from tests.sandbox.repl import Repl, Repls, answering


def test_the_value_of_a_last_expression_is_shown(repl: Repl) -> None:
    turn = repl.run("x = 20\nx + 1")
    assert (turn.status, turn.stdout, turn.stderr, turn.error) == (Status.OK, "21\n", "", None)


def test_none_and_statements_show_nothing(repl: Repl) -> None:
    assert repl.show("None") == repl.show("x = 1") == repl.show("") == repl.show("# nothing") == ""


def test_names_functions_and_imports_last_from_turn_to_turn(repl: Repl) -> None:
    repl.show("import math\ndef area(r):\n    return math.pi * r * r\nx = [1]")
    repl.show("x.append(area(1))")
    assert repl.show("len(x), round(x[1], 3)") == "(2, 3.142)"


def test_stdout_and_stderr_are_kept_apart(repl: Repl) -> None:
    turn = repl.run("import sys\nprint('out')\nprint('err', file=sys.stderr)")
    assert (turn.stdout, turn.stderr, turn.output_bytes, turn.truncated) == ("out\n", "err\n", 8, False)


def test_output_is_streamed_as_it_is_printed(repl: Repl) -> None:
    seen: list[object] = []

    def answer(_: object) -> None:
        seen.append("call")

    code = "import sys, _door\nprint('a', flush=True)\n_door.call('now')\nprint('b', file=sys.stderr, flush=True)"
    repl.run(code, answering(answer), lambda stream, data: seen.append((stream, data)))
    assert seen == [(1, b"a\n"), "call", (2, b"b\n")]


def test_an_error_keeps_what_was_set_before_it(repl: Repl) -> None:
    turn = repl.run("x = 1\n1 / 0")
    assert turn.status is Status.ERROR
    assert turn.error is not None
    assert (turn.error.type, turn.error.message) == ("ZeroDivisionError", "division by zero")
    assert repl.show("x") == "1"


def test_a_traceback_shows_the_programs_own_frames_only_with_their_source(repl: Repl) -> None:
    repl.show("def inner():\n    raise KeyError('gone')")
    turn = repl.run("inner()")
    assert turn.error is not None
    trace = turn.error.traceback
    assert '"<turn 1>", line 2, in inner' in trace
    assert '"<turn 2>", line 1, in <module>' in trace
    assert "raise KeyError('gone')" in trace
    assert "_runner" not in trace
    assert "exec(" not in trace


def test_the_cause_of_an_error_is_shown_too(repl: Repl) -> None:
    turn = repl.run("try:\n    1 / 0\nexcept ZeroDivisionError as error:\n    raise ValueError('second') from error")
    assert turn.error is not None
    assert "ZeroDivisionError" in turn.error.traceback
    assert "direct cause" in turn.error.traceback


def test_a_syntax_error_names_its_place(repl: Repl) -> None:
    turn = repl.run("x = = 1")
    assert turn.status is Status.ERROR
    assert turn.error is not None
    assert turn.error.type == "SyntaxError"
    assert "<turn 1>" in turn.error.traceback
    assert "_runner" not in turn.error.traceback


@pytest.mark.parametrize("code", ["'\\ud800'", "print('\\ud800')", "raise ValueError('\\ud800')", "'\\0'"])
def test_odd_characters_do_no_harm(repl: Repl, code: str) -> None:
    assert repl.run(code).status is not Status.ROLLED_BACK
    assert repl.show("1") == "1"


def test_code_that_holds_a_lone_surrogate_is_an_error_like_any_other(repl: Repl) -> None:
    turn = repl.run("x = '\ud800'")
    assert turn.error is not None
    assert turn.error.type == "UnicodeEncodeError"


def test_sys_exit_ends_the_turn_and_leaves_the_session(repl: Repl) -> None:
    turn = repl.run("x = 1\nimport sys\nsys.exit(3)")
    assert turn.status is Status.ERROR
    assert turn.error is not None
    assert (turn.error.type, turn.error.message) == ("SystemExit", "3")
    assert repl.show("x") == "1"


def test_os_exit_is_rolled_back(repl: Repl) -> None:
    turn = repl.run("x = 1\nimport os\nos._exit(3)")
    assert turn.status is Status.ROLLED_BACK
    assert turn.error is not None
    assert turn.error.type is Stop.EXIT
    assert repl.show("'x' in globals()") == "False"


def test_variables_are_reported_with_type_and_length_but_not_modules_or_private_names(repl: Repl) -> None:
    turn = repl.run("import math\na = [1, 2]\nb = 7\n_c = 1\ndef f(): pass")
    assert turn.variables == (Variable("a", "list", 2), Variable("b", "int", -1), Variable("f", "function", -1))


def test_variables_are_reported_after_an_error_too(repl: Repl) -> None:
    assert repl.run("a = 'abc'\n1 / 0").variables == (Variable("a", "str", 3),)


@pytest.mark.parametrize(
    "damage",
    [
        "import builtins\nbuiltins.len = builtins.print = builtins.exec = None",
        "import builtins\ndel builtins.__import__, builtins.compile",
        "import sys\nsys.modules.clear()",
        "import sys\nsys.modules = {}",
        "globals().clear()",
        "import sys\nsys.stdout.close()\nsys.stderr = None",
        "import os\nos.close(1)\nos.close(2)",
    ],
)
def test_what_a_careless_program_breaks_is_mended_for_the_next_turn(repl: Repl, damage: str) -> None:
    repl.run(damage)
    assert repl.show("import json\nprint(len('abc'))\njson.dumps([1])") == "3\n'[1]'"


def test_a_program_that_breaks_the_runner_itself_loses_only_that_turn(repl: Repl) -> None:
    repl.show("x = 1")
    turn = repl.run("import sys\ndel sys.modules['_runner'].mend\ndel sys.modules['_runner'].variables\nx = 2")
    assert turn.status is Status.ROLLED_BACK
    assert turn.error is not None
    assert turn.error.type is Stop.DAMAGED
    assert repl.show("x") == "1"


@pytest.mark.parametrize(
    "report",
    [
        "error=5, variables=[]",
        "error=None, variables={}",
        "error=None, variables=[[1, 2]]",
        "error={'type': []}, variables=[]",
        "error=None, variables=[['a', 'b', 'c']]",
        "error={'type': 'TURN_TIME', 'message': 1, 'traceback': None}, variables=[]",
    ],
)
def test_a_forged_report_is_read_as_a_claim(repl: Repl, report: str) -> None:
    turn = repl.run(
        f"import sys, _door\n_door.call('sandbox.report', {report})\n"
        "sys.modules['_runner'].variables = lambda: sys.modules['os']._exit(0)"
    )
    assert turn.status is Status.ROLLED_BACK
    assert repl.show("1") == "1"


def test_a_session_that_is_closed_runs_nothing(start: Repls) -> None:
    repl = start()
    repl.session.close()
    repl.session.close()
    with pytest.raises(RuntimeError, match="closed"):
        repl.run("1")
