"""How much of its time a turn could have run, where more turns are under way in its worker than run there at once."""

from __future__ import annotations

import time


class FairClock:
    """The clock of a worker's turns. It goes at full speed while every turn can run, and slower where they take turns.

    A turn that waits for its place in the worker has not run, so no deadline of its running may pass meanwhile.
    """

    def __init__(self, places: int) -> None:
        self._places = places
        self._under_way = 0
        self._seconds, self._at = 0.0, time.monotonic()

    def begin(self) -> None:
        """Note that a turn has begun."""
        self._advance()
        self._under_way += 1

    def end(self) -> None:
        """Note that a turn has ended."""
        self._advance()
        self._under_way -= 1

    @property
    def seconds(self) -> float:
        """For how many seconds a turn that was always under way could have run."""
        self._advance()
        return self._seconds

    def until(self, seconds: float) -> float:
        """Return in how many seconds of the world the clock shows so much, if no turn begins or ends before."""
        return max(0.0, seconds - self.seconds) / self._speed

    @property
    def _speed(self) -> float:
        return min(1.0, self._places / max(1, self._under_way))

    def _advance(self) -> None:
        now = time.monotonic()
        self._seconds += (now - self._at) * self._speed
        self._at = now
