"""The processor time of work in a thread, told while it still runs: a step of it may take a second."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class ThreadTime:
    """Counts what work takes of a thread. Any thread may have it charged."""

    def __init__(self, spend: Callable[[float], None]) -> None:
        """`spend` is called with seconds, each of them once."""
        self._spend = spend
        self._clock: int | None = None
        """Of the thread in which the work is done, while it is."""
        self._charged_until = 0.0
        self._charging = threading.Lock()

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count what the block takes of the present thread."""
        clock = time.pthread_getcpuclockid(threading.get_ident())
        with self._charging:
            self._clock, self._charged_until = clock, time.clock_gettime(clock)
        try:
            yield
        finally:
            self.charge()
            with self._charging:
                self._clock = None

    def charge(self) -> None:
        """Charge what the work took since it was charged last."""
        with self._charging:
            if self._clock is None:
                return
            before, self._charged_until = self._charged_until, time.clock_gettime(self._clock)
            self._spend(self._charged_until - before)
