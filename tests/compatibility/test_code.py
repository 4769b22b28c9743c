"""What code may do, how its errors are told, and how its output is."""

from __future__ import annotations

import pytest

from tests.compatibility.theatre import Case, Theatre, blocks, case, played
from tests.system.stage import Ended, Play, code

SEEN = code("FINAL('seen')")
LONG = "print('A' * 100 + 'x' * 60_000 + 'Z' * 100)"


def one_message_for_all_blocks(_: Ended, play: Play) -> None:
    roles = [message.role for message in play.asked[-1].messages]
    assert roles == ["user", "assistant", "user"]


def cut_to_a_size(_: Ended, play: Play) -> None:
    shown = play.asked[-1].messages[-1].content
    assert "A" * 100 in shown
    assert "Z" * 100 in shown
    assert shown.count("x") < 20_000


CASES = (
    case("what_code_prints_is_told", code("print('Hello', 6 * 7)"), SEEN, told=["Hello 42"]),
    case(
        "what_goes_to_stderr_is_told", code("import sys\nprint('a warning', file=sys.stderr)"), SEEN, told=["a warning"]
    ),
    case(
        "an_exception_is_told_with_its_line",
        code("print('before')\nrows = []\nrows[7]"),
        SEEN,
        told=["before", "IndexError", "rows[7]"],
        untold=["_runner", "site-packages"],
    ),
    case("a_syntax_error_is_told", code("def broken("), SEEN, told=["SyntaxError"]),
    case(
        "the_output_of_all_blocks_comes_in_one_message",
        code("print('first')", "print('second')"),
        SEEN,
        told=["first", "second"],
        check=one_message_for_all_blocks,
    ),
    case(
        "variables_are_told_and_those_with_an_underscore_are_not",
        code("total, _hidden = 1, 2"),
        SEEN,
        told=["total"],
        untold=["_hidden"],
    ),
    case("the_value_of_a_last_expression_is_shown", code("x = 6\nx * 7"), SEEN, printed="42\n", told=["42"]),
    case("long_output_is_cut_and_both_ends_are_told", code(LONG), SEEN, check=cut_to_a_size),
    case(
        "any_text_can_be_printed",
        code("print('äöü 日本語 🙂')"),
        SEEN,
        printed="äöü 日本語 🙂\n",
        told=["äöü 日本語 🙂"],
    ),
    case(
        "output_that_looks_like_a_message_is_output", code("print('{\"ready\": true}')"), SEEN, told=['{"ready": true}']
    ),
    case("code_that_prints_nothing_goes_on", code("x = 1"), SEEN, printed="", turns=2),
    blocks(
        "the_usual_builtins_are_there",
        "FINAL([len('abc'), sum([1, 2]), sorted([3, 1]), max(map(abs, [-4]))])",
        answer="[3, 3, [1, 3], 4]",
    ),
    blocks(
        "eval_exec_and_globals_are_there", "exec('x = 6')\nFINAL(eval('x * 7') == globals()['x'] * 7)", answer="True"
    ),
    blocks(
        "the_standard_library_can_be_imported",
        "import collections, datetime, json, math, re, statistics\nFINAL(math.isqrt(49))",
        answer="7",
    ),
    case("input_raises", code("input('Name? ')"), SEEN, told=["Error"], turns=2),
    case(
        "leaving_the_interpreter_ends_no_run",
        code("x = 'there'\nraise SystemExit(1)"),
        code("FINAL(x)"),
        answer="there",
        turns=2,
    ),
    case(
        "there_is_no_network",
        code("import socket\nsocket.create_connection(('127.0.0.1', 80))"),
        SEEN,
        told=["Error"],
        turns=2,
    ),
    case("there_are_no_files_of_the_host", code("open('/etc/passwd')"), SEEN, told=["FileNotFoundError"], turns=2),
    blocks(
        "there_is_nothing_secret_in_the_environment",
        "import os\nFINAL(any('KEY' in name for name in os.environ))",
        answer="False",
    ),
    blocks(
        "await_works_at_the_top_level", "import asyncio\nFINAL(await asyncio.sleep(0, 'awaited'))", answer="awaited"
    ),
    case(
        "the_whole_of_long_output_is_kept_for_code",
        code(LONG),
        code("FINAL(f'{type(printed[-1]).__name__} {printed[-1].count(\"x\")}')"),
        answer="str 60000",
        told=["printed[-1]"],
    ),
    blocks(
        "files_can_be_written_in_the_working_directory",
        "with open('notes.txt', 'w') as file:\n    _ = file.write('noted')",
        "FINAL(open('notes.txt').read())",
        answer="noted",
        turns=2,
    ),
    blocks(
        "a_thread_runs_to_its_end",
        "import threading\nfound = []\nthread = threading.Thread(target=found.append, args=('ran',))\n"
        "thread.start(); thread.join()\nFINAL(found[0])",
        answer="ran",
    ),
    blocks(
        "whole_numbers_of_numpy_have_64_bits",
        "import numpy as np\nFINAL(int(np.array([2_000_000_000, 2_000_000_000]).sum()))",
        answer="4000000000",
        asked={"image": "data"},
    ),
)


@pytest.mark.asyncio(loop_scope="package")
@played(CASES)
async def test_code(theatre: Theatre, played_case: Case) -> None:
    await theatre.run(played_case)
