"""Turns stopped at random moments, by several threads at once: no session is damaged, and nothing goes on running.

RLM_TEST_STOPS sets how often.
"""

from __future__ import annotations

import os
import random
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress

import pytest

from sandbox.door import HostCall, Json
from sandbox.turn import Status, Stop, Turn
from sandbox.vm.image import Loaded
from sandbox.vm.instance import Instance
from tests.sandbox.repl import Repl, Repls

STOPS = int(os.environ.get("RLM_TEST_STOPS", "400"))
AT_ONCE = 4
TURNS = {
    "ending just now": "",
    "ending a little later": "sum(range(20_000))",
    "raising": "raise LookupError",
    "busy": "while True: pass",
    "within C": "sum(range(10**11))",
    "waiting": "import _door\n_door.call('never')",
    "asking": "import _door\nwhile True: _door.call('a')",
    "asking and waiting": "import _door, asyncio\nfor _ in range(20): _door.call('soon')",
    "growing": "kept = []\nwhile True: kept.append(bytearray(1 << 20)) if len(kept) < 40 else kept.clear()",
    "copying": "kept = bytearray(20_000_000)\nwhile True: kept[:] = kept[::-1]",
    "printing": "while True: print('x', flush=True)",
    "sleeping": "import time\ntime.sleep(1e9)",
    "writing files": "while True: open('/tmp/x', 'w').write('x' * 10_000)",
    "recursing": "def f(): return f()\nwhile True:\n    try: f()\n    except RecursionError: pass",
}
ENDS = {"ending just now", "ending a little later", "raising", "asking and waiting"}
"""Turns of these kinds may end before they are stopped."""


class Stopped:
    """A session whose turns are stopped, and what is known of it."""

    def __init__(self, start: Repls, seed: int) -> None:
        self._start, self._chance = start, random.Random(seed)
        self._begin()

    def _begin(self) -> None:
        self._repl, self._turns = self._start(turn_seconds=60, door_calls=10**9, door_bytes=1 << 50), 0
        self._repl.show("turns = 0\n_ = open('/tmp/turns', 'w').write('0')")

    def work(self, stops: int) -> set[str]:
        """Stop so many turns, and return which kinds they were of."""
        return {self._one() for _ in range(stops)}

    def _one(self) -> str:
        kind = self._chance.choice(list(TURNS))
        delay = self._chance.choice((0.0, 0.0005, 0.002, 0.02)) * self._chance.random()
        running = self._repl.begin(f"turns += 1\nopen('/tmp/turns', 'w').write(str(turns))\n{TURNS[kind]}", answer)
        stoppers = [threading.Timer(delay, self._repl.session.interrupt) for _ in range(self._chance.choice((1, 1, 3)))]
        for stopper in stoppers:
            stopper.start()
        while not self._ended(running, 0.2 if kind in ENDS else 0.05):  # it may have come before the turn began
            self._repl.session.interrupt()
        for stopper in stoppers:
            stopper.join()
        self._check(kind, running.result())
        return kind

    def _ended(self, running: Future[Turn], seconds: float) -> bool:
        with suppress(TimeoutError):
            running.result(seconds)
            return True
        return False

    def _check(self, kind: str, turn: Turn) -> None:
        if turn.status is Status.ROLLED_BACK:
            assert turn.error is not None
            assert turn.error.type is Stop.INTERRUPTED, turn
        else:
            assert kind in ENDS, turn
            self._turns += 1
        state = self._repl.show("turns, int(open('/tmp/turns').read()), sum(range(100))")
        assert state == repr((self._turns, self._turns, 4950))
        if self._chance.random() < 0.1:  # its memory goes away while others' are stopped, and its addresses come again
            self._repl.session.close()
            self._repl.session.interrupt()
            self._begin()


def answer(call: HostCall) -> Future[Json]:
    """Answer at once, in a moment, or never."""
    future: Future[Json] = Future()
    if call.op == "a":
        future.set_result(None)
    elif call.op == "soon":

        def reply() -> None:
            if future.set_running_or_notify_cancel():
                future.set_result(None)

        threading.Timer(0.001, reply).start()
    return future


def test_turns_stopped_at_random_moments_leave_every_session_whole_and_nothing_running(
    loaded: Loaded, start: Repls
) -> None:
    sessions = [Stopped(start, seed) for seed in range(AT_ONCE)]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        works = [pool.submit(session.work, STOPS // AT_ONCE) for session in sessions]
        kinds = set[str]().union(*(work.result() for work in works))
    assert kinds == set(TURNS)
    assert loaded.program.clock._guests == set()


def stop_late(instance: Instance) -> None:
    instance.interrupt()
    instance.tick()
    instance.pause()
    instance.resume()


def test_a_stop_that_comes_after_the_memory_is_gone_touches_nobody_elses(start: Repls) -> None:
    ended = start()
    instance = ended.session._instance
    base = instance.memory.base
    ended.session.close()
    others: list[Repl] = []
    while len(others) < 20 and base not in {other.session._instance.memory.base for other in others}:
        others.append(start())
    stop_late(instance)
    assert [other.show("sum(range(1000))") for other in others] == ["499500"] * len(others)


@pytest.mark.parametrize("pause", [True, False])
def test_a_turn_that_is_paused_runs_no_further_until_it_is_resumed_or_stopped(start: Repls, pause: bool) -> None:
    repl = start(turn_seconds=60)
    going, heard = threading.Event(), list[bytes]()

    def listen(_stream: int, data: bytes) -> None:
        heard.append(data)
        going.set()

    running = repl.begin("while True: print('x', flush=True)", None, listen)
    assert going.wait(20)
    instance = repl.session._instance
    assert instance.pause()
    before = -1
    while before != len(heard):  # what it was just doing comes to its end
        before = len(heard)
        threading.Event().wait(0.05)
    ran = instance.running_seconds
    threading.Event().wait(0.05)
    assert instance.running_seconds == ran
    assert len(heard) == before
    if pause:
        going.clear()
        instance.resume()
        assert going.wait(20)
        assert instance.pause()
    repl.session.interrupt()
    turn = running.result(20)
    assert turn.error is not None
    assert turn.error.type is Stop.INTERRUPTED
