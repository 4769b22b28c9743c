"""The time, as all that is kept has it."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

DAY_MS = 86_400_000


def now() -> int:
    """Return the time in Unix milliseconds."""
    return time.time_ns() // 1_000_000


class Durations:
    """How long things took: how many within each of some bounds in seconds, and all of them together."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, seconds: float) -> None:
        """Count one more."""
        self._counts[bisect_left(self._bounds, seconds)] += 1
        self.sum += seconds

    def buckets(self) -> list[tuple[str, float]]:
        """Return how many were within each bound and those below it; the last bound is `+Inf`."""
        names = [*(str(bound) for bound in self._bounds), "+Inf"]
        return list(zip(names, map(float, accumulate(self._counts)), strict=True))
