"""A turn can be stopped from outside at any moment, whatever it is doing."""

from __future__ import annotations

import threading
from concurrent.futures import Future

import pytest

from sandbox.door import HostCall, Json
from sandbox.turn import Status, Stop, Turn
from sandbox.vm.instance import Instance
from tests.sandbox.conftest import MakeText
from tests.sandbox.repl import Repl, Repls, answering


@pytest.mark.parametrize(
    "code",
    [
        "while True: pass",
        "while True:\n    try: [x for x in range(1000)]\n    except BaseException: pass",
        "10 ** 10 ** 8",
        "__import__('re').match('(a+)+$', 'a' * 60 + 'b')",
        "__import__('time').sleep(1e9)",
        "while True: print('x')",
    ],
    ids=["Python", "catching everything", "C", "regex", "sleep", "printing"],
)
def test_a_running_turn(start: Repls, code: str) -> None:
    repl = start(turn_seconds=60)
    repl.show("x = 1")
    under_way = threading.Event()
    running = repl.begin("x = 2\nprint('under way', flush=True)\n" + code, None, lambda *_: under_way.set())
    assert under_way.wait(20)
    repl.session.interrupt()
    turn = running.result(20)
    assert turn.status is Status.ROLLED_BACK
    assert turn.error is not None
    assert turn.error.type is Stop.INTERRUPTED
    assert repl.show("x") == "1"


def test_a_turn_that_waits_for_the_host(repl: Repl) -> None:
    waiting, answer = threading.Event(), Future[Json]()

    def handler(_: HostCall) -> Future[Json]:
        waiting.set()
        return answer

    running = repl.begin("import _door\ntry: _door.call('a')\nexcept BaseException: x = 1", handler)
    assert waiting.wait(20)
    repl.session.interrupt()
    turn = running.result(20)
    assert turn.error is not None
    assert turn.error.type is Stop.INTERRUPTED
    assert answer.cancelled()
    assert repl.show("'x' in globals()") == "False"


def test_an_interrupt_while_the_handler_starts(repl: Repl) -> None:
    def handler(_: HostCall) -> Future[Json]:
        repl.session.interrupt()
        return Future()

    turn = repl.run("import _door\n_door.call('a')", handler)
    assert turn.error is not None
    assert turn.error.type is Stop.INTERRUPTED


def test_an_interrupt_between_turns_does_nothing(repl: Repl) -> None:
    repl.session.interrupt()
    repl.show("x = 1")
    repl.session.interrupt()
    assert repl.show("x") == "1"


def test_interrupts_at_random_moments_leave_a_whole_number_of_turns(start: Repls) -> None:
    repl = start()
    repl.show("n = 0; log = []")
    done = 0
    for i in range(60):
        running = repl.begin("n += 1\nlog.append(n)\nsum(range(2000))")
        if i % 3:
            repl.session.interrupt()
        done += running.result(20).status is Status.OK
        assert repl.show("n, len(log)") == repr((done, done))


def test_a_session_cannot_be_closed_under_a_running_turn(start: Repls) -> None:
    repl = start()
    waiting, answer = threading.Event(), Future[Json]()

    def handler(_: HostCall) -> Future[Json]:
        waiting.set()
        return answer

    running = repl.begin("import _door\n_door.call('a')", handler)
    assert waiting.wait(20)
    with pytest.raises(RuntimeError, match="running"):
        repl.session.close()
    answer.set_result(None)
    assert running.result(20).status is Status.OK


class TestConcurrency:
    def test_a_trap_in_one_session_while_another_waits_in_a_host_call(self, start: Repls) -> None:
        waits, traps = start(), start()
        waiting, answer = threading.Event(), Future[Json]()

        def handler(_: HostCall) -> Future[Json]:
            waiting.set()
            return answer

        running = waits.begin("import _door\nx = _door.call('a')\nx * 2", handler)
        assert waiting.wait(20)
        for code in ("import os; os.abort()", "import os; os._exit(1)", "import json; json.loads('[' * 1_000_000)"):
            assert traps.run(code).status is Status.ROLLED_BACK
        answer.set_result(21)
        assert running.result(20).stdout == "42\n"

    def test_a_fault_of_the_host_in_one_session_is_not_anothers(self, start: Repls) -> None:
        def broken(_: HostCall) -> Json:
            raise RuntimeError("host")

        fails, works = start(), start()
        code = "import _door\nfor _ in range(200):\n    try: _door.call('a')\n    except RuntimeError: pass"
        failing = fails.begin(code, answering(broken))
        working = works.begin("import _door\nsum(_door.call('a') for _ in range(200))", answering(lambda _: 1))
        assert failing.result(30).status is Status.OK
        assert working.result(30).stdout == "200\n"

    def test_a_turn_within_a_host_call_of_another_session_on_the_same_thread(self, start: Repls) -> None:
        outer, inner = start(), start()

        def answer(_: HostCall) -> Json:
            return inner.session.execute("print('inner')\n6 * 7").stdout

        assert outer.show("import _door\nprint('outer')\n_door.call('a'), _door.call('a')", answering(answer)) == (
            "outer\n" + repr(("inner\n42\n", "inner\n42\n"))
        )

    def test_fifty_sessions_each_with_its_own_state(self, start: Repls) -> None:
        repls = [start() for _ in range(50)]
        for round_ in range(4):
            turns = [r.begin(f"x = globals().get('x', {i}) + 1\nx") for i, r in enumerate(repls)]
            assert [turn.result(60).stdout for turn in turns] == [f"{i + round_ + 1}\n" for i in range(50)]

    def test_two_busy_sessions_at_once_both_meet_their_deadline(self, start: Repls) -> None:
        turns = [start(turn_seconds=0.4).begin("while True: pass") for _ in range(2)]
        for turn in turns:
            error = turn.result(20).error
            assert error is not None
            assert error.type is Stop.TURN_TIME


def test_a_turn_that_was_announced_is_stopped_before_it_has_begun(repl: Repl) -> None:
    repl.show("x = 1")
    repl.session.announce()
    repl.session.interrupt()
    turn = repl.run("x = 2\nwhile True: pass")
    assert turn.error is not None
    assert turn.error.type is Stop.INTERRUPTED
    assert repl.show("x") == "1"


def test_an_interrupt_of_what_could_not_be_attached_reaches_no_later_turn(
    repl: Repl, text: MakeText, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> Turn:
        repl.session.interrupt()
        raise MemoryError("it does not fit")

    repl.show("x = 1")
    with monkeypatch.context() as patched:
        patched.setattr(Instance, "attach", full)
        with pytest.raises(MemoryError):
            repl.attach("context", text("abc"))
    assert repl.show("x") == "1"
