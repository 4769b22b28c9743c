"""There are no threads in the sandbox: a thread runs to its end when it is started, and is joined at once."""

from __future__ import annotations

from sandbox.turn import Status
from tests.sandbox.repl import Repl

NOTE = """
import threading
seen = []
def note(word):
    seen.append((word, threading.current_thread().name))
"""


def test_a_thread_runs_to_its_end_when_it_is_started_and_join_returns(repl: Repl) -> None:
    repl.show(NOTE)
    threads = "threads = [threading.Thread(target=note, args=(n,), name=f't{n}', daemon=n > 1) for n in range(3)]"
    started = (
        "[t.start() for t in threads], seen, [t.join(timeout=1) for t in threads], [t.is_alive() for t in threads]"
    )
    seen = [(n, f"t{n}") for n in range(3)]
    assert repl.show(f"{threads}\n{started}") == repr(([None] * 3, seen, [None] * 3, [False] * 3))
    assert repl.show("threading.current_thread().name, threading.active_count()") == "('MainThread', 1)"


def test_a_subclass_a_timer_and_a_thread_in_a_thread_run_too(repl: Repl) -> None:
    repl.show(NOTE)
    repl.show(
        "class Own(threading.Thread):\n"
        "    def run(self):\n"
        "        inner = threading.Thread(target=note, args=('inner',), name='in')\n"
        "        inner.start(); inner.join(); note('outer')\n"
        "Own(name='out').start()\n"
        "timer = threading.Timer(0.01, note, ('late',)); timer.name = 'timer'; timer.start(); timer.join()"
    )
    assert repl.show("seen") == repr([("inner", "in"), ("outer", "out"), ("late", "timer")])


def test_a_timer_waits_until_it_is_joined_and_one_that_is_cancelled_never_runs(repl: Repl) -> None:
    repl.show(NOTE)
    start = "timer = threading.Timer(3600, note, ('never',)); timer.start(); alive = timer.is_alive(); timer.cancel()"
    assert repl.show(f"{start}\nalive, timer.is_alive(), timer.join(), seen") == "(True, False, None, [])"


def test_a_thread_that_fails_says_so_without_frames_of_the_sandbox_and_the_turn_goes_on(repl: Repl) -> None:
    turn = repl.run("import threading\nt = threading.Thread(target=lambda: 1 / 0, name='t')\nt.start(); t.join(); 'on'")
    assert (turn.status, turn.stdout) == (Status.OK, "'on'\n")
    assert turn.stderr.startswith("Exception in thread t:\nTraceback")
    assert turn.stderr.endswith("ZeroDivisionError: division by zero\n")
    assert "_threads" not in turn.stderr
    turn = repl.run("t = threading.Thread(target=exit); t.start(); t.join(); 'on'")
    assert (turn.status, turn.stdout, turn.stderr) == (Status.OK, "'on'\n", "")


def test_what_a_thread_does_not_allow_is_an_error_as_elsewhere(repl: Repl) -> None:
    for code, message in (
        ("t = threading.Thread(target=print); t.join()", "cannot join thread before it is started"),
        ("t = threading.Thread(target=int); t.start(); t.start()", "threads can only be started once"),
        ("threading.current_thread().start()", "threads can only be started once"),
    ):
        error = repl.run(f"import threading\n{code}").error
        assert error is not None
        assert (error.type, error.message) == ("RuntimeError", message)
