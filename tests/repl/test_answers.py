"""What a program's answer becomes, when it counts, and which names of a program's the server puts back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from sandbox.door import DoorRefusal, HostCall, Json
from sandbox.turn import Status, Turn
from sandbox.vm.image import Loaded
from tests.sandbox.repl import Repl, Repls, answering


@dataclass
class Program:
    """A program's turns, and what it told of its answer."""

    repl: Repl
    told: list[tuple[str, bool]] = field(default_factory=list)
    most: int = 1 << 20

    def __call__(self, code: str) -> Turn:
        return self.repl.run(code, answering(self._take))

    def _take(self, call: HostCall) -> Json:
        if call.op == "llm_query":
            raise DoorRefusal("ModelError", "small: it was busy", "rate_limited")
        if len(call.text("content")) > self.most:
            raise DoorRefusal("LimitExceeded", "answer_bytes")
        self.told.append((call.text("content"), call.arguments["ready"]))
        return None

    def fails(self, code: str) -> tuple[str, str]:
        """Run a turn that must fail, and return how."""
        turn = self(code)
        assert turn.status is Status.ERROR, turn
        assert turn.error is not None
        return turn.error.type, turn.error.message


@pytest.fixture
def program(images: Loaded) -> Iterator[Program]:
    repls = Repls(images)
    yield Program(repls())
    repls.close()


@pytest.fixture
def data(images: Loaded) -> Iterator[Program]:
    repls = Repls(images)
    yield Program(repls("data", memory_bytes=512 << 20))
    repls.close()


# ---- what an answer becomes --------------------------------------------------------------------------------------

PLAIN = {
    "'a text'": "a text",
    "type('Own', (str,), {'__str__': lambda self: 1 / 0})('kin')": "kin",
    "7": "7",
    "2.0": "2.0",
    "1e300": "1e+300",
    "True": "True",
    "None": "None",
    "__import__('decimal').Decimal('2.50')": "2.50",
    "__import__('fractions').Fraction(1, 3)": "1/3",
    "1 + 2j": "(1+2j)",
    "__import__('enum').IntEnum('E', ['A']).A": "1",
    "[1, 2.0, 'é', None, True, (1,)]": '[1, 2.0, "é", null, true, [1]]',
    "{'a': {2: [float('nan')]}}": '{"a": {"2": [NaN]}}',
    "__import__('collections').Counter('aab')": '{"a": 2, "b": 1}',
    "[]": "[]",
}
OF_LIBRARIES = {
    "np.float64(2.0)": "2.0",
    "np.float32(0.1)": "0.1",
    "np.int64(7)": "7",
    "np.bool_(True)": "True",
    "np.str_('text')": "text",
    "np.datetime64('2026-01-02')": "2026-01-02",
    "np.arange(3000)": str(list(range(3000))),
    "np.array([[1.5, 2], [3, 4]])": "[[1.5, 2.0], [3.0, 4.0]]",
    "[np.int64(1), np.float32(0.1), np.bool_(False), np.arange(2)]": "[1, 0.1, false, [0, 1]]",
    "{np.int64(1): np.float64(0.5)}": '{"1": 0.5}',
    "pd.NA": "<NA>",
    "pd.Series([1, 2], name='n', index=['a', 'b'])": ",n\na,1\nb,2",
    "pd.Series([0.1, 2])": "0.1\n2.0",
    "pd.Index(['a', 'b'])": '["a", "b"]',
    "pd.Categorical(['a', 'b'])": '["a", "b"]',
    "pd.DataFrame({'n': range(500), 'x': 'long ' * 30})": "n,x\n"
    + "\n".join(f"{n},{'long ' * 30}" for n in range(500)),
    "pd.DataFrame({f'c{n}': [n / 3] for n in range(60)})": ",".join(f"c{n}" for n in range(60))
    + "\n"
    + ",".join(str(n / 3) for n in range(60)),
}
GIVEN = ("FINAL({})", "SUBMIT({})", "v = {}; FINAL_VAR('v')", "answer['content'] = {}; answer['ready'] = True")


@pytest.mark.parametrize("given", GIVEN)
def test_an_answer_is_written_as_python_or_json_writes_it(program: Program, given: str) -> None:
    for value, text in PLAIN.items():
        if value == "None" and "content" in given:  # there, it is the place of an answer with nothing in it
            continue
        assert program(given.format(value)).error is None, value
        assert program.told.pop() == (text, True), value


def test_what_numpy_and_pandas_hold_is_written_in_full(data: Program) -> None:
    data("import numpy as np, pandas as pd")
    for value, text in OF_LIBRARIES.items():
        assert data(f"FINAL({value})").error is None, value
        assert data.told.pop() == (text, True), value


REFUSED = {
    "{1, 2}": ("a set", "sorted(value)"),
    "b'bytes'": ("a bytes", "value.decode()"),
    "(n for n in 'ab')": ("a generator", "list(value)"),
    "{}.keys()": ("a dict_keys", "list(value)"),
    "print": ("a builtin_function_or_method", "call it"),
    "int": ("a type", "call it"),
    "__import__('re')": ("a module", "a value"),
    "__import__('datetime').date(2026, 1, 2)": ("a date", "str(value)"),
    "ValueError('x')": ("a ValueError", "str(value)"),
    "object()": ("an object", "str(value)"),
    "Bad()": ("a Bad", "str(value)"),
    "[1, [Bad()]]": ("a Bad", "str(value)"),
}
BAD = "class Bad:\n    def __repr__(self): 1 / 0\n    __str__ = __format__ = __len__ = __repr__"


@pytest.mark.parametrize("given", GIVEN)
def test_anything_else_is_refused_once_with_its_type_and_how_to_convert_it(program: Program, given: str) -> None:
    program(BAD)
    for value, (kind, advice) in REFUSED.items():
        type_, message = program.fails(given.format(value))
        assert type_ == "TypeError"
        assert message.startswith(("an answer cannot be " + kind, "an answer cannot hold " + kind)), value
        assert advice in message, value
        assert program("1").error is None, "the next turn is not told so again"
    assert program.told == []


def test_an_answer_that_json_cannot_nest_is_refused(program: Program) -> None:
    assert program.fails("d = {}; d['d'] = d; FINAL(d)") == (
        "ValueError",
        "the answer contains itself, so it cannot be written",
    )
    assert program.fails("FINAL({(1, 2): 3})")[1].startswith(
        "an answer cannot hold a dict with keys of the type a tuple"
    )
    deep = "d = []\nfor _ in range(100_000): d = [d]\nFINAL(d)"
    assert program.fails(deep)[0] == "ValueError"
    assert program("FINAL('after all')").error is None
    assert program.told == [("after all", True)]


@pytest.mark.parametrize("value", ["''", "' \\n\\t '"])
@pytest.mark.parametrize("given", GIVEN)
def test_an_answer_without_content_is_refused(program: Program, given: str, value: str) -> None:
    assert program.fails(given.format(value))[1].startswith("the answer is empty")
    assert program("1").error is None
    assert program.told == []


@pytest.mark.parametrize("code", ["answer['ready'] = True", "answer['content'] = None; answer['ready'] = True"])
def test_an_answer_that_is_ready_before_there_is_one_is_refused(program: Program, code: str) -> None:
    assert program.fails(code)[1].startswith("the answer is empty")
    assert program.told == []


def test_a_draft_that_is_no_text_is_no_error_until_it_is_ready(program: Program) -> None:
    assert program("answer['content'] = {1, 2}").error is None
    assert program.fails("answer['ready'] = True")[0] == "TypeError"
    assert program("answer['content'] = sorted(answer['content']); answer['ready'] = True").error is None
    assert program.told == [("[1, 2]", True)]


def test_an_answer_that_is_too_long_is_refused_once(program: Program) -> None:
    program.most = 100
    assert program.fails("FINAL('x' * 101)") == ("LimitExceeded", "answer_bytes")
    assert program("1").error is None
    assert program("FINAL('short')").error is None
    assert program.told == [("short", True)]


# ---- when it counts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["1 / 0", "exit()", "import sys; sys.exit(0)", "raise KeyboardInterrupt"])
@pytest.mark.parametrize("given", ["FINAL('x')", "answer['content'] = 'x'; answer['ready'] = True"])
def test_ready_is_taken_back_where_the_block_did_not_run_to_its_end(program: Program, given: str, ending: str) -> None:
    turn = program(f"{given}\n{ending}")
    assert turn.status is Status.ERROR
    assert turn.stderr == '[answer["ready"] is False again: the block that set it did not run to its end]\n'
    assert program("1").stdout == "1\n"
    assert program.told == [("x", False)], "it is kept as a draft"


def test_ready_that_has_no_truth_is_an_error_once(data: Program) -> None:
    assert data.fails("import numpy as np\nanswer['content'] = 'x'; answer['ready'] = np.arange(2)")[0] == "ValueError"
    assert data("1").error is None
    assert data.told == [("x", False)]


@pytest.mark.parametrize(
    "code",
    ["for answer in ['a', 'b']: pass", "answer = 'x'", "answer = {'ready': True}", "answer = ['content', 'ready']"],
)
def test_a_variable_called_answer_is_not_the_answer_and_is_kept(program: Program, code: str) -> None:
    turn = program(f"{code}\nmine = answer")
    assert (
        'answer is the server\'s name and is put back; what your code gave that name is in kept["answer"]'
        in turn.stderr
    )
    assert program("kept['answer'] is mine, answer").stdout == "(True, {'content': '', 'ready': False})\n"
    assert program.told == []


@pytest.mark.parametrize(
    "code", ["answer = {'content': 'x', 'ready': True}", "answer = dict(ready=1, content='x', sure=True)"]
)
def test_a_dict_with_both_keys_is_the_answer(program: Program, code: str) -> None:
    assert program(code).stderr == ""
    assert program.told == [("x", True)]


def test_an_answer_given_beside_a_loop_variable_called_answer_counts(program: Program) -> None:
    program("for answer in ['a', 'b']:\n    pass\nFINAL(answer)")
    assert program.told == [("b", True)]


# ---- FINAL_VAR ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("FINAL_VAR('city')", "paris"),
        ("FINAL_VAR(city)", "paris"),
        ("FINAL_VAR('paris')", "3"),
        ("FINAL_VAR(f'{city}')", "3"),
        ("FINAL_VAR(paris)", "3"),
        ("FINAL_VAR('city'.upper())", "CITY"),
        ("FINAL_VAR(name='paris')", "3"),
        ("FINAL_VAR(\n    'paris',  # é\n)", "3"),
        ("def f():\n    é = 'inner'; FINAL_VAR('é')\nf()", "inner"),
        ("exec(\"FINAL_VAR('paris')\")", "3"),
        ("budget = 'mine'; FINAL_VAR('budget')", "mine"),
        ("answer['content'] = 'in it'; FINAL_VAR('answer')", "in it"),
        ("answer['content'] = 'in it'; FINAL_VAR(answer)", "in it"),
        ("for answer in ['last']: pass\nFINAL_VAR('answer')", "last"),
    ],
)
def test_final_var_takes_a_text_in_quotes_for_a_name_and_all_else_for_the_value(
    program: Program, code: str, text: str
) -> None:
    program("city = 'paris'; paris = 3")
    assert program(code).error is None
    assert program.told == [(text, True)]


def test_final_var_gives_a_value_of_an_earlier_turn_that_was_put_aside(program: Program) -> None:
    program("answer = 'mine'")
    program("FINAL_VAR('answer')")
    assert program.told == [("mine", True)]


@pytest.mark.parametrize(
    "code", ["FINAL_VAR('nowhere')", "FINAL_VAR('The answer is 3.')", "exec(\"FINAL_VAR('nowhere')\")"]
)
def test_final_var_of_a_name_that_is_not_there_is_never_the_answer_and_lists_those_that_are(
    program: Program, code: str
) -> None:
    program("city = 'paris'; paris = 3")
    kind, message = program.fails(code)
    assert kind == "NameError"
    assert "there is no variable called " in message
    assert "The variables are: city, paris" in message
    assert program.told == []


def test_a_name_that_is_not_there_is_not_repeated_whole(program: Program) -> None:
    assert len(program.fails(f"FINAL_VAR('{'x' * 100_000}')")[1]) < 200


# ---- names of the server's ---------------------------------------------------------------------------------------


def test_a_name_of_the_servers_is_put_back_after_the_turn_that_used_it_and_its_value_is_kept(program: Program) -> None:
    turn = program(
        "budget = 5\nfrom re import search\ncontext = 'mine'\n[budget, context, search('a', 'a') is not None]"
    )
    words = '{0} is the server\'s name and is put back; what your code gave that name is in kept["{0}"]'
    told = [f"[{words.format(name)}]" for name in ("budget", "context", "search")]
    assert (turn.stdout, sorted(turn.stderr.splitlines())) == ("[5, 'mine', True]\n", told)
    assert program("kept['budget'], kept['context'], context, callable(budget)").stdout == "(5, 'mine', '', True)\n"


def test_the_names_are_put_back_after_a_turn_that_failed_as_well(program: Program) -> None:
    assert 'kept["budget"]' in program("budget = 5\n1 / 0").stderr
    assert program("callable(budget), kept['budget']").stdout == "(True, 5)\n"


def test_a_name_that_was_deleted_is_back_without_a_word(program: Program) -> None:
    assert program("del budget, answer").stderr == ""
    assert program("callable(budget), answer['ready']").stdout == "(True, False)\n"


def test_a_variable_of_the_programs_called_kept_stays_its_own(program: Program) -> None:
    program("kept = [1, 2]")
    assert 'what your code gave that name is in kept_1["budget"]' in program("budget = 5").stderr
    assert program("kept, kept_1['budget']").stdout == "([1, 2], 5)\n"


def test_exceptions_that_code_should_catch_exist_by_name(program: Program) -> None:
    ask = "try: llm_query('x')\nexcept ModelError as error: print(type(error).__name__, error, error.kind)"
    assert program(ask).stdout == "ModelError small: it was busy rate_limited\n"
    assert program("issubclass(ModelError, RuntimeError), issubclass(AnswerCut, ModelError)").stdout == "(True, True)\n"
    assert program("issubclass(LimitExceeded, Exception), ModelError('x').kind").stdout == "(True, '')\n"
    error: Any = program("raise LimitExceeded('no more')").error
    assert error.traceback.endswith("\nLimitExceeded: no more\n")
    assert program("LimitExceeded = ModelError = None").stderr.count("is put back") == 2


def test_show_vars_returns_what_it_prints(program: Program) -> None:
    assert program("SHOW_VARS()").stdout == "no variables yet\n"
    program("city = 'paris'")
    assert program("SHOW_VARS()").stdout == "city: str of length 5\n"
    assert program("shown = SHOW_VARS()").stdout == "city: str of length 5\n"
    assert program("shown").stdout == "'city: str of length 5'\n"


def test_the_working_directory_can_be_written(program: Program) -> None:
    assert program("_ = open('found.txt', 'w').write('here')\nopen('found.txt').read()").stdout == "'here'\n"
