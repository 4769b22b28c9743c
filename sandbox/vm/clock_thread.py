"""The thread that looks at running guests: whether their time is up, and what else must be done while they run."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

log = logging.getLogger(__name__)

TICK_SECONDS = 0.01
"""How often a running guest is looked at: the resolution of its time limit, and how long its output waits."""
REST_TICKS = 100
"""The thread goes idle so many ticks after the last guest."""


class Running(Protocol):
    """A guest that runs a turn."""

    def tick(self) -> None:
        """Look whether the turn must stop. It may have ended just now."""
        ...


class ClockThread:
    """Looks at the guests that run, once a tick, and goes idle when none has run for a while.

    The thread starts with the first guest that runs, and again with the first after `close`. It goes on for a second
    after a turn, so that a turn that follows need not wake it.
    """

    def __init__(self) -> None:
        self._guests: set[Running] = set()
        self._idle = False
        self._changed = threading.Condition()  # of all these
        self._thread: threading.Thread | None = None

    @contextmanager
    def watching(self, guest: Running) -> Iterator[None]:
        """Look at a guest meanwhile."""
        with self._changed:
            self._guests.add(guest)
            if self._thread is None:
                self._thread = threading.Thread(target=self._tick, name="guest-clock", daemon=True)
                self._thread.start()
            if self._idle:
                self._changed.notify()
        try:
            yield
        finally:
            with self._changed:
                self._guests.discard(guest)

    def _tick(self) -> None:
        mine = threading.current_thread()
        idle = 0
        while self._thread is mine:
            time.sleep(TICK_SECONDS)  # first: most turns end before
            with self._changed:
                guests = tuple(self._guests)
            for guest in guests:
                try:
                    guest.tick()
                except Exception:  # the other guests' time goes on
                    log.exception("looking at a running guest failed")
            idle = 0 if guests else idle + 1
            if idle > REST_TICKS:
                with self._changed:
                    self._idle = True
                    self._changed.wait_for(lambda: self._guests or self._thread is not mine)
                    self._idle = False

    def close(self) -> None:
        """Stop the thread. No guest must run."""
        with self._changed:
            thread, self._thread = self._thread, None
            self._changed.notify()
        if thread is not None:
            thread.join()
