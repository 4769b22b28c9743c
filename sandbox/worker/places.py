"""Places of turns in a worker: so many run at once, and others wait in line.

A worker has a thread for each running turn, and guest code runs without the interpreter's lock. Without places, an
owner's hundreds of busy turns would leave a neighbour's single one next to no processor time. A turn gives its place
back while it waits in the door or sleeps. After `SLICE_SECONDS` it is taken from it where others wait: its guest then
waits at its next loop until its place comes again.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from sandbox.vm.waiting import Pausable

SLICE_SECONDS = 0.05
"""So long a turn keeps its place while others wait in line."""


class Places:
    """`most` places. `before_waiting` is called by a thread that is about to wait in line."""

    def __init__(self, most: int, before_waiting: Callable[[], None]) -> None:
        self.before_waiting = before_waiting
        self.free = most
        self.line: deque[Place] = deque()
        self.lock = threading.Lock()
        """Of these two and of all places."""

    def hand_out(self) -> None:
        """Give free places to the first in line. To be called with the lock."""
        while self.line and self.free:
            self.free -= 1
            self.line.popleft().came()

    @property
    def wanted(self) -> bool:
        """Whether anybody waits in line."""
        return bool(self.line)


class Place:
    """The place of one session's turns. Any thread may call `stop` and `pass_on`, only the turn's all else."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._since = 0.0
        self._stopped = False
        self._paused: Pausable | None = None
        self.held = False
        """Whether the turn has a place now."""
        self._come = threading.Lock()  # released once the turn has a place, or has left the line
        self._come.acquire()

    def begin(self) -> None:
        """Note that a turn is about to begin. Until then it waits for nothing."""
        self._stopped = False

    def take(self) -> float:
        """Take a place, and return for how many seconds this waited in line. A turn that is stopped gets none."""
        places = self._places
        with places.lock:
            if self.held or self._stopped:
                return 0.0
            if places.free and not places.wanted:
                places.free -= 1
                self._hold()
                return 0.0
            places.line.append(self)
        started = time.monotonic()
        places.before_waiting()
        self._come.acquire()
        return time.monotonic() - started

    def _hold(self) -> None:
        self.held = True
        self._since = time.monotonic()

    def came(self) -> None:
        """Take the place that has come, and go on. To be called with the lock."""
        self._hold()
        self._go_on()

    def _go_on(self) -> None:
        """Have whoever waits in line for this place go on: the turn's thread, or its guest where that was paused."""
        paused, self._paused = self._paused, None
        if paused is None:
            self._come.release()
        else:
            paused.resume()

    def give(self) -> None:
        """Give the place back, if the turn has one. A guest that is paused is so no longer, and has none."""
        places = self._places
        with places.lock:
            if self.held:
                self.held = False
                places.free += 1
                places.hand_out()
            elif self._paused is not None:
                self._leave()

    def _leave(self) -> None:
        if self in self._places.line:
            self._places.line.remove(self)
            self._go_on()

    def pass_on(self, turn: Pausable) -> None:
        """Where others wait and the turn had its place for long, pause it, and line it up behind them.

        Where turns cannot be paused, it goes on beside them, without a place.
        """
        places = self._places
        if not places.wanted or not self.held:
            return
        with places.lock:
            if not places.wanted or not self.held or time.monotonic() - self._since < SLICE_SECONDS:
                return
            if turn.pausable:
                if not turn.pause():
                    return
                self._paused = turn
                places.line.append(self)
            self.held = False
            places.free += 1
            places.hand_out()

    def stop(self) -> None:
        """Have the turn wait no longer: what it does next is to end."""
        with self._places.lock:
            self._stopped = True
            self._leave()
