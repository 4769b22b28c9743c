"""Why a turn must stop, and how long it has run."""

from __future__ import annotations

import threading
import time

from sandbox.turn import Stop, TurnError


class TurnGuard:
    """Decides when a guest's turn must stop. A turn may run for `turn_seconds`. The first reason to stop counts.

    Only `interrupt` may be called from another thread than the turn's.
    """

    def __init__(self, turn_seconds: float) -> None:
        self.turn_seconds = turn_seconds
        self.error: TurnError | None = None
        """Why the turn must stop, or was stopped."""
        self.waited = 0.0
        """Seconds that the turn has waited in the door, or in line for the processor, which do not count as running."""
        self._started = time.monotonic()
        self._running = False
        self._interrupted = threading.Event()

    def begin(self) -> None:
        """Begin a turn."""
        self._started, self.waited = time.monotonic(), 0.0
        self.error, self._running = None, True

    def end(self) -> None:
        """End the turn. From now on only an interrupt is a reason to stop."""
        self._running = False

    @property
    def running_seconds(self) -> float:
        """For how many seconds the turn has run. Waiting in the door is not counted."""
        return time.monotonic() - self._started - self.waited

    def stop(self, error: TurnError) -> None:
        """Have the turn stopped, for this reason unless there was one before."""
        self.error = self.error or error

    def interrupt(self) -> None:
        """Have the running turn stopped, and every later one."""
        self._interrupted.set()

    def interrupted(self) -> bool:
        """Whether `interrupt` was called."""
        return self._interrupted.is_set()

    def reason(self) -> str | None:
        """Return the limit or other cause for which the turn must stop now, or None where it may go on."""
        if self.error is None and self._running:
            if self._interrupted.is_set():
                self.error = TurnError(Stop.INTERRUPTED, "the turn was interrupted")
            elif self.running_seconds > self.turn_seconds:
                self.error = TurnError(Stop.TURN_TIME, f"the turn ran longer than {self.turn_seconds:g} seconds")
        return self.error.type if self.error else None
