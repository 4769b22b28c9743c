"""Why a turn must stop, how long it has run, and how another thread stops it or keeps it waiting."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from sandbox.turn import Stop, TurnError
from sandbox.vm.poll_page import PollPage


class TurnGuard:
    """Decides when a guest's turn must stop. A turn may run for `turn_seconds`. The first reason to stop counts.

    The reason is set before the guest is stopped by its poll page, so that whoever finds it stopped finds the reason.
    Any thread may call `interrupt`, `tick`, `pause` and `resume`; only the turn's own all else.
    """

    def __init__(self, turn_seconds: float, page: PollPage) -> None:
        self.turn_seconds = turn_seconds
        self.error: TurnError | None = None
        """Why the turn must stop, or was stopped."""
        self.waits = False
        """Whether the guest waits in the host, which then looks at the time and at interrupts itself."""
        self._page = page
        self._waited = 0.0
        self._paused = False
        self._stands = 0
        """For how many reasons the turn's time stands still: it is paused, or waits for an answer, or both."""
        self._stood_at = 0.0
        """Since when, if there is one."""
        self._started = time.monotonic()
        self._running = False
        self._interrupted = False
        self._lock = threading.Lock()  # of all these

    def begin(self) -> None:
        """Begin a turn."""
        with self._lock:
            self._started = self._stood_at = time.monotonic()
            self._waited = 0.0
            self.error, self._running = None, True

    def end(self) -> None:
        """End the turn. From now on only an interrupt is a reason to stop."""
        with self._lock:
            self._running = False

    @property
    def running_seconds(self) -> float:
        """For how many seconds the turn has run. Waiting in the door is not counted, nor in line for the processor."""
        with self._lock:
            return self._seconds()

    def _seconds(self) -> float:
        until = self._stood_at if self._stands else time.monotonic()
        return until - self._started - self._waited

    def waited(self, seconds: float) -> None:
        """Note that the turn has waited so long, which does not count as running."""
        with self._lock:
            self._waited += seconds

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Wait in the host meanwhile, for what does not count as running."""
        with self._lock:
            self.waits = True
            self._stand()
        try:
            yield
        finally:
            with self._lock:
                self._go_on()
                self.waits = False

    def _stand(self) -> None:
        """Have the turn's time stand still. However many reasons there are at once, it is counted once."""
        if not self._stands:
            self._stood_at = time.monotonic()
        self._stands += 1

    def _go_on(self) -> None:
        self._stands -= 1
        if not self._stands:
            self._waited += time.monotonic() - self._stood_at

    # ---- stopping ------------------------------------------------------------------------------------------------

    def stop(self, error: TurnError) -> None:
        """Note that the turn's own thread stops it, for this reason unless there was one before."""
        with self._lock:
            if self.error is None:
                self.error = error

    def interrupt(self) -> None:
        """Stop the running turn, and every later one."""
        with self._lock:
            self._interrupted = True
            self._look()
            self._page.block()

    @property
    def interrupted(self) -> bool:
        """Whether `interrupt` was called."""
        return self._interrupted

    def tick(self) -> None:
        """Stop the turn if its time is up."""
        with self._lock:
            if self._running and not self.waits:  # read first: what it waited is counted before it waits no more
                self._look()
                if self.error is not None:
                    self._page.block()

    def reason(self) -> str | None:
        """Return the limit or other cause for which the turn must stop now, or None where it may go on."""
        with self._lock:
            self._look()
            return self.error.type if self.error is not None else None

    def _look(self) -> None:
        if self.error is None and self._running:
            if self._interrupted:
                self.error = TurnError(Stop.INTERRUPTED, "the turn was interrupted")
            elif self._seconds() > self.turn_seconds:
                self.error = TurnError(Stop.TURN_TIME, f"the turn ran longer than {self.turn_seconds:g} seconds")

    # ---- waiting for the processor -------------------------------------------------------------------------------

    def pause(self) -> bool:
        """Have the guest wait at its next loop, which is not running time. Return False where it cannot."""
        with self._lock:
            if self._running and self.error is None and not (self._paused or self.waits) and self._page.pause():
                self._paused = True
                self._stand()
            return self._paused

    def resume(self) -> None:
        """Let a guest that waits go on."""
        with self._lock:
            if self._paused:
                self._paused = False
                self._go_on()
                self._page.resume()
