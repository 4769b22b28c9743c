"""Processor time that a worker takes besides running code: it starts sessions, attaches texts, checkpoints."""

from __future__ import annotations

import os
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_UTIME = 11
"""The place of the user's time after the name, in proc_pid_stat(5); the system's follows."""


class OwnTime:
    """Counts it for one worker. `ran` is what its turns of code have run, in seconds."""

    def __init__(self, pid: int) -> None:
        self._stat = Path(f"/proc/{pid}/stat")
        self.ran = 0.0
        self._begun: float | None = None
        self._taken = 0.0

    def begin(self) -> None:
        """Count from now on: it has an owner."""
        if self._begun is None:
            self._begun = self._used()

    def take(self, running: float) -> float:
        """Return the seconds since the last call. Turns under way have run so many seconds."""
        if self._begun is None:
            return 0.0
        besides = max(self._taken, self._used() - self._begun - self.ran - running)
        seconds, self._taken = besides - self._taken, besides
        return seconds

    def _used(self) -> float:
        try:
            fields = self._stat.read_text().rpartition(")")[2].split()
            return (int(fields[_UTIME]) + int(fields[_UTIME + 1])) / _TICKS
        except (OSError, ValueError, IndexError):
            return 0.0
