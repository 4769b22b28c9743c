"""The clocks of a session: coarse, its own, and never turned back."""

from __future__ import annotations

import time
from io import BytesIO

import pytest

from sandbox.limits import Limits
from sandbox.pool.snapshots import Sealer
from sandbox.turn import Status
from sandbox.vm import clocks, files, wasi
from sandbox.vm.clocks import TICK_NANOSECONDS
from sandbox.vm.image import Loaded
from sandbox.vm.session import Session
from tests.sandbox.repl import Repl, Repls

HOUR = 3600 * 10**9
NOW = "import time\ntime.monotonic_ns()"


def now(repl: Repl) -> int:
    return int(repl.show(NOW))


def test_a_session_learns_nothing_of_how_long_the_host_is_up(start: Repls) -> None:
    older, newer = start(), start()
    told = [now(newer), now(older)]
    assert told[0] < told[1]
    assert all(HOUR <= at < HOUR + 60 * 10**9 and at % TICK_NANOSECONDS == 0 for at in told)


def test_the_clock_goes_on_through_rollback_fork_and_hibernation(loaded: Loaded, start: Repls) -> None:
    repl = start()
    first = now(repl)
    stopped = repl.run("import os, time\nprint(time.monotonic_ns(), flush=True)\nos._exit(1)")
    assert stopped.status is Status.ROLLED_BACK
    told = [first, int(stopped.stdout), now(repl), now(start.fork(repl))]
    slept = time.monotonic_ns()
    sealer, out = Sealer(bytes(32)), BytesIO()
    sealer.write(repl.session.checkpoint, "a", out)
    stored = sealer.read(BytesIO(out.getvalue()), "a", loaded.images["core"])
    slept = time.monotonic_ns() - slept
    told.append(now(start.keep(Session(loaded.program, stored, Limits()))))
    assert told == sorted(set(told))
    assert told[4] - told[3] >= slept - TICK_NANOSECONDS


def test_sleeping_takes_its_time_on_every_clock(repl: Repl) -> None:
    code = """
import time
clocks = time.monotonic_ns, time.perf_counter_ns, time.process_time_ns
before = [clock() for clock in clocks]
time.sleep(0.02)
all(20_000_000 <= clock() - at < 10**10 for clock, at in zip(clocks, before))"""
    assert repl.show(code) == "True"


class Guest:
    """What a clock is read for; it is its own memory."""

    clock_offset = clocks.new_offset()
    running_seconds = 1.23456789
    told = 0

    @property
    def memory(self) -> Guest:
        return self

    def write(self, _address: int, data: bytes) -> None:
        self.told = int.from_bytes(data, "little")


@pytest.mark.parametrize("clock", [2, 3])
def test_the_clocks_of_the_processor_tell_how_long_the_turn_has_run(clock: int) -> None:
    guest = Guest()
    assert wasi.FUNCTIONS[wasi.MODULE, "clock_time_get"](guest, clock, 1, 0) == wasi.SUCCESS
    assert guest.told == 1_234_500_000


def test_there_are_no_other_clocks() -> None:
    assert wasi.FUNCTIONS[wasi.MODULE, "clock_time_get"](Guest(), 4, 1, 0) == files.INVAL
