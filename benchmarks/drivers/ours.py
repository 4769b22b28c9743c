"""Drives this project's sandbox in its own process: `sandbox.vm.session.Session`."""

from __future__ import annotations

import platform
import random
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

from benchmarks.drivers.serving import Measure, expect, seconds, serve
from benchmarks.runaways import GOING, RUNAWAYS
from sandbox.door import HostCall, Json
from sandbox.limits import Limits
from sandbox.turn import Status, Stop, Turn
from sandbox.vm.engine import THREAD_STACK_BYTES
from sandbox.vm.image import Loaded, prepare, standard_specs
from sandbox.vm.session import Session

LIMITS = Limits(door_calls=1_000_000)
TRIVIAL = "total = sum(range(10))\ntotal"
DATA = "import numpy, pandas\nint(pandas.Series(numpy.arange(4)).sum())"
STATE = "state = list(range(10_000))"
CALLS = 1000
EMPTY_LOOP = f"for _ in range({CALLS}): pass"
CALLING_LOOP = f"import _door\nfor _ in range({CALLS}): _door.call('ping')"


def checked(turn: Turn, shown: str = "") -> None:
    """Make sure that a turn worked and showed what it had to."""
    expect((turn.status, turn.error, turn.stdout), (Status.OK, None, shown))


def pong(_: HostCall) -> Future[Json]:
    """Answer the door at once."""
    future: Future[Json] = Future()
    future.set_result(None)
    return future


class Ours:
    """Sessions from the loaded images. Each measure makes sure of its result and closes what it made, untimed."""

    def __init__(self, loaded: Loaded) -> None:
        self._loaded = loaded
        self._warm, self._stateful = self._session(), self._session()
        checked(self._warm.execute(TRIVIAL), "45\n")
        checked(self._stateful.execute(STATE))
        self._programs: dict[str, Session] = {}
        self._held: list[Session] = []

    def _session(self, image: str = "core") -> Session:
        return Session(self._loaded.program, self._loaded.images[image], LIMITS)

    def _first_result(self, start: Callable[[], Session], code: str, shown: str) -> float:
        made: list[Session] = []

        def work() -> None:
            made.append(start())
            checked(made[0].execute(code), shown)

        taken = seconds(work)
        made[0].close()
        return taken

    def fresh(self) -> float:
        """From no session to its first result."""
        return self._first_result(self._session, TRIVIAL, "45\n")

    def fresh_data(self) -> float:
        """From no session to the first result of numpy and pandas."""
        return self._first_result(lambda: self._session("data"), DATA, "6\n")

    def fork(self) -> float:
        """From a session with state to the first result of its fork."""
        return self._first_result(self._stateful.fork, "len(state)", "10000\n")

    def trivial(self) -> float:
        """Run a turn in a session that has run others."""
        return seconds(lambda: checked(self._warm.execute(TRIVIAL), "45\n"))

    def door(self) -> float:
        """Call the host once; the loop around the calls is taken off."""
        empty = seconds(lambda: checked(self._warm.execute(EMPTY_LOOP, pong)))
        return (seconds(lambda: checked(self._warm.execute(CALLING_LOOP, pong))) - empty) / CALLS

    def program(self, name: str, first: str, code: str) -> float:
        """Run a program in a session of its own, where `first` makes it ready to run."""
        if name not in self._programs:
            self._programs[name] = self._session()
            checked(self._programs[name].execute(first))
        return seconds(lambda: checked(self._programs[name].execute(code)))

    def stop(self, kind: str) -> float:
        """From the interrupt of a runaway, at any moment of it, until its session is ready for the next turn."""
        runaway = RUNAWAYS[kind]
        session = self._session(runaway.image)
        going, stopped_at = threading.Event(), [0.0]

        def stop() -> None:
            going.wait()
            time.sleep(random.uniform(0.02, 0.2))
            stopped_at[0] = time.perf_counter()
            session.interrupt()

        def heard(_stream: int, data: bytes) -> None:
            if GOING.encode() in data:
                going.set()

        stopper = threading.Thread(target=stop)
        stopper.start()
        try:
            turn = session.execute(runaway.turn, pong, heard)
            taken = time.perf_counter() - stopped_at[0]
        finally:
            going.set()
            stopper.join()
        expect(turn.error.type if turn.error is not None else "nothing", Stop.INTERRUPTED)
        checked(session.execute(TRIVIAL), "45\n")
        session.close()
        return taken

    def hold(self, count: int) -> float:
        """Hold so many more sessions, each after a turn; return how many are held."""
        for _ in range(count):
            self._held.append(self._session())
            checked(self._held[-1].execute(TRIVIAL), "45\n")
            self._held[-1].take_checkpoint()  # counted as well
        return len(self._held)

    @property
    def measures(self) -> dict[str, Measure]:
        """What can be asked for."""
        return {
            "fresh": self.fresh,
            "fresh_data": self.fresh_data,
            "exec": self.trivial,
            "fork": self.fork,
            "door": self.door,
            "program": self.program,
            "stop": self.stop,
            "hold": self.hold,
        }


def on_a_guest_thread(work: Callable[[], None]) -> None:
    """Run `work` on a thread whose stack is large enough for guests."""
    threading.stack_size(THREAD_STACK_BYTES)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def main() -> None:
    """Serve until stdin is closed."""
    loaded = prepare(standard_specs({}), progress=lambda step: print(step, file=sys.stderr))
    about = f"this sandbox, in process, under Python {platform.python_version()}"
    on_a_guest_thread(lambda: serve(about, Ours(loaded).measures))


if __name__ == "__main__":
    main()
