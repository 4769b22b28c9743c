"""The time, as all that is kept has it."""

from __future__ import annotations

import time


def now() -> int:
    """Return the time in Unix milliseconds."""
    return time.time_ns() // 1_000_000
