"""The clocks a guest sees, in nanoseconds. All are coarse. Only the time of day is the host's own."""

from __future__ import annotations

import functools
import time
from pathlib import Path

TICK_NANOSECONDS = 100_000
"""Clocks are this coarse: finer ones help only to observe neighbours."""

_BEGINS = 3600 * 10**9
"""Where a session's monotonic clock begins; not at 0, which programs take for "never", nor before its image's start."""


def coarse(nanoseconds: int) -> int:
    """Return the last tick."""
    return nanoseconds - nanoseconds % TICK_NANOSECONDS


def time_of_day() -> int:
    """Return the time since 1970."""
    return coarse(time.time_ns())


def new_offset() -> int:
    """Return the offset that a session that begins now adds to the host's monotonic clock.

    With it a session sees for how long it has existed, but not for how long the host has run. The session keeps its
    offset in forks and when it wakes in another process. So its clock also runs while it hibernates or a turn is rolled
    back, and never goes backwards for as long as the host is up.
    """
    return _BEGINS - time.monotonic_ns()


def monotonic(offset: int) -> int:
    """Return the time on the monotonic clock of the session that has this offset."""
    return coarse(time.monotonic_ns() + offset)


def kept(offset: int) -> list[int | str]:
    """Return what is stored of the clock of a session that has this offset."""
    return [_boot(), offset, time.monotonic_ns() + offset, time.time_ns()]


def taken_up(stored: list[int | str]) -> int:
    """Return the offset of a session whose stored clock goes on here.

    Where the host was started anew, or is another, the time of day says how long the session was away.

    Raises:
        ValueError, TypeError: it is nothing that `kept` returned.
    """
    boot, offset, told, at = stored
    if not (isinstance(offset, int) and isinstance(told, int) and isinstance(at, int)):
        raise TypeError("a clock that is no number")
    if boot and boot == _boot():
        return offset
    return told + max(0, time.time_ns() - at) - time.monotonic_ns()


@functools.cache
def _boot() -> str:
    """Return what identifies this start of the host; nothing where that is not told."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
