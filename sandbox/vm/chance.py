"""What a guest is told by chance, clocks and random bytes, and which replies come first: as it comes, or as noted.

A turn with `Inputs` is told again what they have noted, for as long as it asks for the same. Then it goes on as any
other does, and what it is told is noted.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Container
from hashlib import shake_256
from typing import Protocol

from sandbox.inputs import (
    BEGUN,
    FULL,
    MAX_LOG,
    OTHER,
    SAME,
    WAITED,
    Inputs,
    number,
    read_number,
    read_signed,
    signed,
)
from sandbox.vm import clocks

TIME_OF_DAY, MONOTONIC, RUNNING = range(3)
"""A guest's clocks."""

_BARE = (OTHER + SAME, OTHER + FULL)
"""Entries that say nothing but how many readings came before them."""
_ROOM = 16
"""Bytes of the log left for saying that it is full."""
_COARSER_EVERY = 12
"""After each so many bytes of the log, as a power of two, its clocks are twice as coarse: 4 KiB."""
_COARSEST = 10
"""How often they become so: up to 0.1 s."""
_LATEST = (1 << 62) // clocks.TICK_NANOSECONDS * clocks.TICK_NANOSECONDS
"""What a log can have a clock tell."""


class Chance(Protocol):
    """Where a guest's clocks and random bytes come from."""

    def clock(self, clock: int) -> int:
        """Read a clock, in nanoseconds. One above `RUNNING` is `RUNNING` as well."""
        ...

    def random(self, size: int) -> bytes:
        """Draw so many random bytes."""
        ...


class Unnoted:
    """Clocks and random bytes as they come. `running` tells for how many seconds the turn has run."""

    def __init__(self, running: Callable[[], float]) -> None:
        self.offset = clocks.new_offset()
        """Of the session's monotonic clock."""
        self._running = running

    def clock(self, clock: int) -> int:
        """Read a clock."""
        if clock == TIME_OF_DAY:
            return clocks.time_of_day()
        if clock == MONOTONIC:
            return clocks.monotonic(self.offset)
        return clocks.coarse(int(self._running() * 1e9))

    def random(self, size: int) -> bytes:
        """Draw so many random bytes."""
        return os.urandom(size)


class Noted:
    """What one turn is told: first what was noted of it, then what comes, which is noted. It has one thread.

    A reading that tells nothing new is only counted. The fuller the log, the coarser are the clocks while it is
    written, so that a turn that only reads clocks has room in it for all of its time.
    """

    def __init__(self, inputs: Inputs) -> None:
        self._seed, self._drawn = inputs.seed, 0
        self._log = bytearray(inputs.log)
        self._sent = len(self._log)  # so much of it the server has
        self._left: int | None = None  # where the turn has left its former path, until the server knows
        self._full = False
        self._now: Callable[[int], int] = lambda _: 0
        self._last = [0, 0, 0]  # what each clock has told last
        self._ahead = [0, 0, 0]  # by how much it is ahead of the guest's own
        self._same = 0  # readings that told nothing new since the last entry
        self._brought = 0  # the number of the request whose reply was told last
        self._tick = clocks.TICK_NANOSECONDS
        # Of the next entry that is to be told: where it is, what it says, and its readings that tell nothing new.
        self._at = self._after = 0
        self._says, self._value, self._numbers = OTHER, 0, tuple[int, ...]()
        self._before = self._before_left = 0
        self.telling = bool(self._log)
        """Whether there is something left of what was noted."""

    def begin(self, turn: int, fresh: bool) -> tuple[int, bool]:
        """Begin the turn. Return its number, and whether it draws new entropy first: as told, or as noted."""
        if self.telling:
            turn, at = read_number(self._log, 2)
            fresh, self._after = self._log[at] == 1, at + 1
            self._read()
        else:
            self._note(OTHER, bytes([BEGUN]) + number(turn) + bytes([fresh]))
        return turn, fresh

    def over(self, now: Callable[[int], int]) -> None:
        """Say how the guest's own clocks are read. To be called before the turn runs."""
        self._now = now

    @property
    def proof(self) -> int:
        """The number by which the guest shows that the turn was run to its end."""
        return 16 + self._made(b"proof", 0, 1)[0] % 224

    def _made(self, purpose: bytes, count: int, size: int) -> bytes:
        return shake_256(self._seed + count.to_bytes(8) + purpose).digest(size)

    # ---- what the guest is told ----------------------------------------------------------------------------------

    def random(self, size: int) -> bytes:
        """Draw so many random bytes."""
        self._drawn += 1
        return self._made(b"random", self._drawn, size)

    def clock(self, clock: int) -> int:
        """Read a clock."""
        if clock > RUNNING:
            clock = RUNNING
        if self.telling:
            return self._told(clock)
        now, last = self._now(clock) + self._ahead[clock], self._last[clock]
        if 0 <= now - last < self._tick or (now < last and clock):
            self._same += 1
            return last
        self._last[clock] = now
        ticks = (now - last) // clocks.TICK_NANOSECONDS
        self._note(clock, number(ticks) if clock else signed(ticks))
        return now

    def due(self, under_way: Container[int]) -> tuple[int, ...] | None:
        """Return the requests whose replies the guest's wait must bring, in order. None where that is as it comes."""
        if not self.telling:
            return None
        due = self._numbers
        waits = self._says == OTHER + WAITED and not self._before_left
        if waits and len({*due}) == len(due) and all(one in under_way for one in due):
            return due
        self._leave()
        return None

    def brought(self, numbers: tuple[int, ...]) -> None:
        """Note which replies the guest's wait has brought, in order."""
        if self.telling and numbers != self._numbers:
            self._leave()
        differences = bytearray()
        for one in numbers:
            differences += signed(one - self._brought)
            self._brought = one
        if self.telling:
            self._read()
        else:
            self._note(OTHER, bytes([WAITED, *differences, 0]))

    # ---- what was noted ------------------------------------------------------------------------------------------

    def _told(self, clock: int) -> int:
        """Tell what was noted of this reading."""
        if self._before_left:
            self._before_left -= 1
            if not self._before_left and self._says in _BARE:
                self._read()
        elif self._says == clock:
            told = self._last[clock] + self._value * clocks.TICK_NANOSECONDS
            self._last[clock] = told = max(0, min(told, _LATEST))
            self._read()
            return told
        else:
            self._leave()
            return self.clock(clock)
        return self._last[clock]

    def _read(self) -> None:
        """Read the next entry that is to be told. After the last, the turn goes on as it comes."""
        while self._after < len(self._log):
            self._at = self._after
            head, at = read_number(self._log, self._at)
            self._before = self._before_left = head >> 2
            self._says = head & 3
            if self._says < OTHER:
                self._value, self._after = (read_number if self._says else read_signed)(self._log, at)
                return
            self._says += self._log[at]
            self._numbers, self._after = self._read_numbers(at + 1) if self._says == OTHER + WAITED else ((), at + 1)
            self._full = self._says == OTHER + FULL
            if self._before or self._says not in _BARE:
                return
        self._go_on()

    def _read_numbers(self, at: int) -> tuple[tuple[int, ...], int]:
        numbers, last = [], self._brought
        while self._log[at]:
            difference, at = read_signed(self._log, at)
            last += difference
            numbers.append(last)
        return tuple(numbers), at + 1

    def _leave(self) -> None:
        """Leave the path that was noted: the guest asks for something else."""
        self._left, self._full = self._at, False
        self._same = self._before - self._before_left
        del self._log[self._at :]
        self._go_on()

    def _go_on(self) -> None:
        """Go on as it comes. Clocks that measure how long something takes go on from what they told last."""
        self.telling = False
        for clock in (MONOTONIC, RUNNING):
            if self._last[clock]:
                self._ahead[clock] = self._last[clock] - self._now(clock)
        self._set_tick()

    # ---- noting --------------------------------------------------------------------------------------------------

    def _note(self, tag: int, said: bytes) -> None:
        if self._full:
            return
        entry = number(self._same << 2 | tag) + said
        if len(self._log) + len(entry) > MAX_LOG - _ROOM:
            self._full, entry = True, number(self._same << 2 | OTHER) + bytes([FULL])
        self._log += entry
        self._same = 0
        self._set_tick()

    def _set_tick(self) -> None:
        self._tick = clocks.TICK_NANOSECONDS << min(len(self._log) >> _COARSER_EVERY, _COARSEST)

    def untold(self) -> tuple[int, bytes] | None:
        """Return what was noted since the last call, and from which byte of the log on. None where that is nothing."""
        if self.telling:
            return None
        if self._same:
            self._note(OTHER, bytes([SAME]))
        at, self._left = self._sent if self._left is None else self._left, None
        if at == len(self._log) == self._sent:
            return None
        self._sent = len(self._log)
        return at, bytes(self._log[at:])
