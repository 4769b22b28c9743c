"""A turn that is stopped leaves the session exactly as it was."""

from __future__ import annotations

import pytest

from sandbox.turn import Status, Stop
from tests.sandbox.repl import Repls, answering, memory_of

STOPS = {
    Stop.TURN_TIME: "while True: pass",
    Stop.STACK: "import json; json.loads('[' * 1_000_000)",
    Stop.EXIT: "import os; os._exit(0)",
    Stop.DAMAGED: "import sys; del sys.modules['_runner'].variables",
    Stop.TRAP: "import os; os.abort()",
}


@pytest.mark.parametrize("kind", STOPS)
def test_names_and_files_are_as_before(start: Repls, kind: Stop) -> None:
    repl = start(turn_seconds=0.5)
    repl.show("import os\nx = {'a': [1]}\nf = open('/tmp/log', 'w+')\n_ = f.write('before'); f.flush()")
    repl.show("open('/tmp/old', 'w').close()")
    turn = repl.run(
        "x['a'].append(2)\nnew = 1\nf.write(' after'); f.flush()\nopen('/tmp/new', 'w').close()\n"
        "os.remove('/tmp/old')\nos.mkdir('/tmp/d')\nimport fractions, wave\n" + STOPS[kind]
    )
    assert turn.status is Status.ROLLED_BACK
    assert turn.error is not None
    assert turn.error.type is kind
    assert repl.show("x, 'new' in globals()") == "({'a': [1]}, False)"
    assert repl.show("sorted(os.listdir('/tmp')), f.seek(0), f.read()") == "(['log', 'old'], 0, 'before')"
    assert repl.show("f.write('!'), f.flush(), f.seek(0), f.read()") == "(1, None, 0, 'before!')"


def test_what_a_stopped_turn_printed_is_still_shown(start: Repls) -> None:
    turn = start().run("print('so far', flush=True)\nimport os; os._exit(0)")
    assert turn.stdout == "so far\n"


def test_memory_is_byte_for_byte_that_of_the_last_checkpoint(start: Repls) -> None:
    repl = start()
    repl.show("x = list(range(100_000))")
    before = memory_of(repl)
    repl.run("x = x[::-1]; y = bytearray(b'z' * 5_000_000)\nimport os; os._exit(0)")
    assert memory_of(repl) == before


def test_a_session_survives_many_stops_in_a_row(start: Repls) -> None:
    repl = start()
    repl.show("n = 0")
    for i in range(20):
        repl.run("n = 100\nimport os; os._exit(0)")
        assert repl.show("n += 1; n") == str(i + 1)


def test_a_stop_in_the_first_turn_leaves_a_fresh_session(start: Repls) -> None:
    repl = start()
    repl.run("x = 1\nimport os; os._exit(0)")
    assert repl.show("'x' in globals()") == "False"


def test_a_call_through_the_door_before_a_stop_is_still_counted(start: Repls) -> None:
    turn = start().run("import _door, os\n_door.call('a')\nos._exit(0)", answering(lambda _: None))
    assert turn.door_calls == 1
