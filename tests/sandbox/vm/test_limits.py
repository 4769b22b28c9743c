"""Every limit is held outside the guest, says its name, and costs at most the turn."""

from __future__ import annotations

import threading
from concurrent.futures import Future

import pytest

from sandbox.door import HostCall, Json
from sandbox.limits import MIB
from sandbox.turn import Status, Stop, Turn
from tests.sandbox.repl import Repl, Repls, answering


def stopped(turn: Turn, kind: Stop) -> bool:
    return turn.status is Status.ROLLED_BACK and turn.error is not None and turn.error.type is kind


@pytest.mark.parametrize(
    "code",
    [
        "while True: pass",
        "import re; re.match('(a+)+$', 'a' * 60 + 'b')",
        "10 ** 10 ** 8",
        "sum(range(10 ** 12))",
        "sorted(range(10 ** 7), key=lambda x: -x)",
        "int('9' * 10 ** 7) if not __import__('sys').set_int_max_str_digits(0) else 0",
        "import time; time.sleep(1e9)",
        "import time\nwhile True: time.sleep(0.01)",
        "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
        "class A:\n    def __repr__(self):\n        while True: pass\nA()",
        "class A(Exception):\n    def __str__(self):\n        while True: pass\nraise A",
        "import sys\nclass S:\n    def flush(self):\n        while True: pass\nsys.stdout = S()",
    ],
)
def test_a_turn_that_runs_too_long_is_rolled_back(start: Repls, code: str) -> None:
    repl = start(turn_seconds=0.3, memory_bytes=512 * MIB)
    repl.show("x = 1")
    turn = repl.run("x = 2\n" + code)
    assert stopped(turn, Stop.TURN_TIME), turn
    assert turn.error is not None
    assert "0.3 seconds" in turn.error.message
    assert repl.show("x") == "1"


def test_time_spent_waiting_in_the_door_is_not_the_turns(start: Repls) -> None:
    def handler(_: HostCall) -> Future[Json]:
        future: Future[Json] = Future()
        threading.Timer(1, future.set_result, [None]).start()
        return future

    repl = start(turn_seconds=0.5)
    turn = repl.run("import _door\n_door.call('wait')", handler)
    assert turn.status is Status.OK
    assert turn.running_seconds < 0.5


def test_growing_slowly_ends_in_a_memory_error_that_names_the_limit(start: Repls) -> None:
    repl = start(memory_bytes=64 * MIB)
    turn = repl.run("x = []\nwhile True: x.append(bytes(1 << 16))")
    assert turn.status is Status.ERROR
    assert turn.error is not None
    assert turn.error.type == "MemoryError"
    assert str(64 * MIB) in turn.error.message
    assert int(repl.show("len(x)")) > 100
    assert repl.show("del x\nlen(bytes(10 << 20))") == str(10 << 20)


@pytest.mark.parametrize("thing", ["object()", "''.join(['a', 'b'])"])
def test_memory_used_up_to_the_last_byte_leaves_enough_to_go_on(start: Repls, thing: str) -> None:
    repl = start(memory_bytes=48 * MIB)
    turn = repl.run(f"x = []\nwhile True: x.append({thing})")
    assert turn.status is Status.ERROR
    assert turn.error is not None
    assert turn.error.type == "MemoryError"
    repl.show("del x[:]")
    assert repl.show("sum(range(10))") == "45"


@pytest.mark.parametrize("thing", ["[None]", "1.5 + len(x)", "(x, x)"])
def test_an_interpreter_that_crashes_for_want_of_memory_loses_only_that_turn(start: Repls, thing: str) -> None:
    repl = start(memory_bytes=48 * MIB)
    repl.show("x = 1")
    repl.run(f"x = []\nwhile True: x.append({thing})")  # CPython itself may not survive this
    assert repl.run("x = 1").status is Status.OK


def test_a_single_huge_allocation_is_a_memory_error(repl: Repl) -> None:
    turn = repl.run("bytearray(2 ** 31 - 1)")
    assert turn.error is not None
    assert turn.error.type == "MemoryError"


def test_output_over_its_limit_keeps_head_and_tail_and_counts_all(start: Repls) -> None:
    repl = start(output_bytes=1000)
    turn = repl.run("print('HEAD')\nfor i in range(10000): print('middle', i)\nprint('TAIL')")
    assert turn.status is Status.OK
    assert turn.truncated
    assert turn.output_bytes == 10 + sum(len(f"middle {i}\n") for i in range(10000))
    assert turn.stdout.startswith("HEAD\nmiddle 0\n")
    assert turn.stdout.endswith("middle 9999\nTAIL\n")
    assert f"{turn.output_bytes - 1000} bytes of output cut out" in turn.stdout
    assert len(turn.stdout) < 1100


def test_output_is_limited_over_both_streams_together(start: Repls) -> None:
    repl = start(output_bytes=1000)
    turn = repl.run("import sys\nfor i in range(1000): print('o'); print('e', file=sys.stderr)")
    assert turn.output_bytes == 4000
    assert len(turn.stdout) + len(turn.stderr) < 1100


def test_writing_nothing_forever_keeps_nothing(start: Repls) -> None:
    repl = start(output_bytes=1000)
    assert repl.run("import os\nfor _ in range(5000): os.write(1, b'')").output_bytes == 0


def test_output_that_is_not_text_is_shown_as_well_as_can_be(repl: Repl) -> None:
    turn = repl.run("import os\n_ = os.write(1, b'\\xff\\xfe ok\\x1b[31m')")
    assert turn.stdout == "\ufffd\ufffd ok\x1b[31m"


@pytest.mark.parametrize(
    "code",
    [
        "def f(n): return f(n + 1)\nf(0)",
        "import json; json.loads('[' * 1_000_000)",
        "import json\na = []\nfor _ in range(100_000): a = [a]\njson.dumps(a)",
        "a = []\nfor _ in range(200_000): a = [a]\nrepr(a)",
        "import ast; ast.parse('-' * 500_000 + '1')",
        "eval('(' * 100_000 + ')' * 100_000)",
        "eval('+'.join(['x'] * 200_000))",
        "import re; re.compile('(' * 50_000 + ')' * 50_000)",
        "import sys; sys.setrecursionlimit(10 ** 9)\ndef f(): f()\nf()",
        "import sys; sys.setrecursionlimit(10 ** 9)\nclass A:\n    def __repr__(self): return repr(self)\nrepr(A())",
        "import pickle\na = []\nfor _ in range(100_000): a = [a]\npickle.dumps(a)",
        "a = ()\nfor _ in range(500_000): a = (a,)\nhash(a)",
    ],
)
def test_runaway_nesting_is_contained(start: Repls, code: str) -> None:
    repl = start(memory_bytes=256 * MIB, turn_seconds=5)
    repl.show("kept = 1")
    turn = repl.run("kept = 2\n" + code)
    assert turn.status in (Status.ERROR, Status.ROLLED_BACK)
    assert turn.error is not None
    assert turn.error.type in ("RecursionError", "MemoryError", "NameError", Stop.STACK, Stop.TURN_TIME)
    assert repl.show("kept") == ("1" if turn.status is Status.ROLLED_BACK else "2")


class TestDoor:
    def test_too_many_calls(self, start: Repls) -> None:
        repl = start(door_calls=10)
        turn = repl.run("import _door\nfor i in range(100): _door.call('a')", answering(lambda _: None))
        assert turn.error is not None
        assert turn.error.type == "LimitExceeded"
        assert "11 requests in one turn, the limit is 10" in turn.error.message
        assert repl.show("_door.call('a')", answering(lambda _: 1)) == "1"  # the next turn counts anew

    def test_too_large_a_request(self, start: Repls) -> None:
        repl = start(frame_bytes=1000)
        turn = repl.run("import _door\n_door.call('a', x='y' * 2000)", answering(lambda _: None))
        assert turn.error is not None
        assert turn.error.type == "LimitExceeded"
        assert "bytes in one request, the limit is 1000" in turn.error.message

    def test_too_many_bytes_in_all(self, start: Repls) -> None:
        repl = start(door_bytes=5000)
        turn = repl.run("import _door\nfor i in range(9): _door.call('a', x='y' * 900)", answering(lambda _: None))
        assert turn.error is not None
        assert "bytes in requests and replies of one turn, the limit is 5000" in turn.error.message

    def test_too_large_a_reply(self, start: Repls) -> None:
        repl = start(frame_bytes=1000)
        turn = repl.run("import _door\n_door.call('a')", answering(lambda _: "y" * 2000))
        assert turn.error is not None
        assert turn.error.type == "LimitExceeded"
        assert "the reply has" in turn.error.message

    def test_a_reply_that_does_not_fit_into_memory_is_a_memory_error(self, start: Repls) -> None:
        repl = start(memory_bytes=48 * MIB)
        turn = repl.run("import _door\n_door.call('a')", answering(lambda _: "y" * (20 << 20)))
        assert turn.error is not None
        assert turn.error.type == "MemoryError"
        assert repl.show("1") == "1"

    def test_a_turn_at_its_limit_of_calls_can_still_report_how_it_ended(self, start: Repls) -> None:
        repl = start(door_calls=1)
        turn = repl.run("import _door\n_door.call('a')\n1 / 0", answering(lambda _: None))
        assert turn.error is not None
        assert turn.error.type == "ZeroDivisionError"
        assert turn.door_calls == 1


class TestFiles:
    def test_bytes(self, start: Repls) -> None:
        repl = start(file_bytes=10_000)
        turn = repl.run("with open('/tmp/a', 'wb') as f: f.write(bytes(10_001))")
        assert turn.error is not None
        assert turn.error.type == "OSError"
        assert "No space left" in turn.error.message
        assert repl.show("open('/tmp/a', 'wb').write(bytes(9_000))") == "9000"

    def test_removed_files_that_are_still_open_count(self, start: Repls) -> None:
        repl = start(file_bytes=10_000)
        repl.show("import os\nf = open('/tmp/a', 'wb', buffering=0)\n_ = f.write(bytes(9_000))\nos.remove('/tmp/a')")
        turn = repl.run("with open('/tmp/b', 'wb') as g: g.write(bytes(2_000))")
        assert turn.error is not None
        assert "No space left" in turn.error.message
        assert repl.show("f.close()\nopen('/tmp/b', 'wb').write(bytes(2_000))") == "2000"

    def test_sparse_files_are_counted_whole(self, start: Repls) -> None:
        repl = start(file_bytes=10_000)
        for code in ("f.truncate(1 << 40)", "f.seek(1 << 40); f.write(b'x')", "f.seek((1 << 62) - 1); f.write(b'x')"):
            turn = repl.run(f"with open('/tmp/a', 'wb', buffering=0) as f: {code}")
            assert turn.error is not None
            assert turn.error.type == "OSError"

    def test_count(self, start: Repls) -> None:
        repl = start(files=5)
        turn = repl.run("for i in range(10): open(f'/tmp/{i}', 'w').close()")
        assert turn.error is not None
        assert "No space left" in turn.error.message
        assert repl.show("import os\nlen(os.listdir('/tmp'))") == "4"  # and /tmp itself
        repl.show("os.rename('/tmp/0', '/tmp/new')")  # makes no more of them

    def test_directories_count_too(self, start: Repls) -> None:
        repl = start(files=5)
        turn = repl.run("import os\nfor i in range(10): os.mkdir(f'/tmp/{i}')")
        assert turn.error is not None
        assert "No space left" in turn.error.message

    def test_open_files(self, start: Repls) -> None:
        repl = start(open_files=8)
        turn = repl.run("kept = [open(f'/tmp/{i}', 'w') for i in range(20)]")
        assert turn.error is not None
        assert "[Errno 33]" in turn.error.message  # WASI's EMFILE
        assert repl.show("import json, wave\n1") == "1"
