"""The clocks of a session: coarse, its own, and never turned back."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from sandbox.limits import Limits
from sandbox.pool.snapshots import SessionStore
from sandbox.turn import Status
from sandbox.vm import clocks, files, wasi
from sandbox.vm.chance import Unnoted
from sandbox.vm.clocks import TICK_NANOSECONDS
from sandbox.vm.engine import Direct
from sandbox.vm.guest_memory import BadAddress
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


def test_the_clock_goes_on_through_rollback_fork_and_hibernation(loaded: Loaded, start: Repls, tmp_path: Path) -> None:
    repl = start()
    first = now(repl)
    stopped = repl.run("import os, time\nprint(time.monotonic_ns(), flush=True)\nos._exit(1)")
    assert stopped.status is Status.ROLLED_BACK
    told = [first, int(stopped.stdout), now(repl), now(start.fork(repl))]
    slept = time.monotonic_ns()
    store = SessionStore(tmp_path, bytes(32))
    file = store.put(repl.session.checkpoint, "a")
    stored = store.get(file, "a", loaded.images["core"], ()).checkpoint
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

    chance = Unnoted(lambda: 1.23456789)
    told = 0

    @property
    def memory(self) -> Guest:
        return self

    def write_long(self, address: int, value: int) -> None:
        if address != 4096:
            raise BadAddress(address)
        self.told = value


def clock_time_get(guest: Guest, clock: int, address: int = 4096) -> int:
    """Ask for the time as a guest does: each argument has four words."""
    served = wasi.FUNCTIONS[wasi.MODULE, "clock_time_get"]
    assert isinstance(served, Direct)
    return served.function(guest, [clock, 0, 0, 0, 1, 0, 0, 0, address, 0, 0, 0])


@pytest.mark.parametrize("clock", [2, 3])
def test_the_clocks_of_the_processor_tell_how_long_the_turn_has_run(clock: int) -> None:
    guest = Guest()
    assert clock_time_get(guest, clock) == wasi.SUCCESS
    assert guest.told == 1_234_500_000


def test_there_are_no_other_clocks() -> None:
    assert clock_time_get(Guest(), 4) == files.INVAL


def test_a_time_is_written_only_to_the_guests_own_memory() -> None:
    assert clock_time_get(Guest(), 1, 2**32 - 4) == wasi.FAULT


def test_the_clock_of_a_stored_session_goes_on_where_the_host_was_started_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    offset = clocks.new_offset()
    stored = clocks.kept(offset)
    assert clocks.taken_up(stored) == offset
    before = clocks.monotonic(offset)
    monkeypatch.setattr(clocks, "_boot", lambda: "another")
    up = time.monotonic_ns
    monkeypatch.setattr(time, "monotonic_ns", lambda: up() - 10**15)
    assert before <= clocks.monotonic(clocks.taken_up(stored)) < before + 60 * 10**9
    monkeypatch.setattr(time, "time_ns", lambda: 0)  # it was set back
    assert before <= clocks.monotonic(clocks.taken_up(stored)) < before + 60 * 10**9
    wrongs: list[list[int | str]] = [["x", "y", 1, 2], [], ["x", 1, 2]]
    for wrong in wrongs:
        with pytest.raises((TypeError, ValueError)):
            clocks.taken_up(wrong)
