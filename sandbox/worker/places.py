"""Places of turns in a worker: so many run at once, and others wait in line.

A worker has a thread for each running turn, and guest code runs without the interpreter's lock. Without places, an
owner's hundreds of busy turns would leave a neighbour's single one next to no processor time. A turn gives its place
back while it waits in the door or sleeps, and passes it on after `SLICE_SECONDS` where others wait.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

SLICE_SECONDS = 0.05
"""So long a turn keeps its place while others wait in line."""


class Places:
    """`most` places. `before_waiting` is called by a thread that is about to wait in line."""

    def __init__(self, most: int, before_waiting: Callable[[], None]) -> None:
        self.before_waiting = before_waiting
        self._free = deque([None] * most)  # taken and given back without a lock where nobody waits
        self._line: deque[Place] = deque()
        self._lock = threading.Lock()  # of the line

    def take_free(self) -> bool:
        """Take a place if one is free and nobody waits for it."""
        if self._line:
            return False
        try:
            self._free.pop()
        except IndexError:
            return False
        return True

    def give(self) -> None:
        """Give a place back."""
        self._free.append(None)
        if self._line:  # looked at after the place is back: one who lines up looks for it after that
            self._hand_out()

    def line_up(self, place: Place) -> None:
        """Enter the line for a place."""
        with self._lock:
            self._line.append(place)
        self._hand_out()

    def leave(self, place: Place) -> None:
        """Leave the line, without a place."""
        with self._lock:
            if place in self._line:
                self._line.remove(place)
                place.come.release()

    def _hand_out(self) -> None:
        with self._lock:
            while self._line:
                try:
                    self._free.pop()
                except IndexError:
                    return
                place = self._line.popleft()
                place.held = True
                place.come.release()

    @property
    def wanted(self) -> bool:
        """Whether anybody waits in line."""
        return bool(self._line)


class Place:
    """The place of one session's turns. `stop` may be called from any thread, all else from the turn's."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._since = 0.0
        self._stopped = False
        self.held = False
        """Whether the turn has a place now."""
        self.come = threading.Lock()
        """Released once the turn has a place, or has left the line."""
        self.come.acquire()

    def begin(self) -> None:
        """Note that a turn is about to begin. Until then it waits for nothing."""
        self._stopped = False

    def take(self) -> float:
        """Take a place, and return for how many seconds this waited in line. A turn that is stopped gets none."""
        if self.held:
            return 0.0
        if self._places.take_free():
            self.held = True
            return 0.0
        if self._stopped:
            return 0.0
        started = time.monotonic()
        self._places.before_waiting()
        self._places.line_up(self)
        if self._stopped:  # perhaps since before it was in the line
            self._places.leave(self)
        self.come.acquire()
        self._since = time.monotonic()
        return self._since - started

    def give(self) -> None:
        """Give the place back, if the turn has one."""
        if self.held:
            self.held = False
            self._places.give()

    def pass_on(self) -> float:
        """Where others wait and the turn had its place for long, line up behind them. Return the seconds waited."""
        if not self._places.wanted or not self.held:
            return 0.0
        now = time.monotonic()
        if now - self._since < SLICE_SECONDS:
            return 0.0
        self.give()
        return self.take()

    def stop(self) -> None:
        """Have the turn wait no longer: what it does next is to end."""
        self._stopped = True
        self._places.leave(self)
