"""Who gets a processor first: this process, which serves everybody, before the workers that run one owner's code."""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from contextlib import suppress

NICENESS = 10
"""Of workers, added to the server's own."""

SLICE_SECONDS, SERVERS_SLICE_SECONDS = 0.0005, 0.0001
"""How long a worker may go on when another of the same niceness wants its processor, and how long this process may.

The system's own choice is some milliseconds, which each step of an answer waited for where workers were busy.
"""

_SET = {"x86_64": 314, "aarch64": 274}.get(platform.machine())
_ATTRIBUTES = struct.Struct("=IIQiIQQQ")
"""struct sched_attr of sched_setattr(2): size, policy, flags, niceness, priority, slice in ns, two of deadlines."""


def give_way(pid: int) -> None:
    """Have a process, which has just begun, let this one go first."""
    niceness = os.getpriority(os.PRIO_PROCESS, 0) + NICENESS
    with suppress(OSError):  # it has ended
        os.setpriority(os.PRIO_PROCESS, pid, niceness)
        _slice(pid, min(niceness, 19), SLICE_SECONDS)


def take_short_turns() -> None:
    """Have this thread, and those that it begins from now on, come to their turn quickly."""
    _slice(0, os.getpriority(os.PRIO_PROCESS, 0), SERVERS_SLICE_SECONDS)


def _slice(pid: int, niceness: int, seconds: float) -> None:
    """Set how long a turn is at most, where the system can: Linux from 6.12 on. Elsewhere nothing happens."""
    if _SET is not None:
        attributes = _ATTRIBUTES.pack(_ATTRIBUTES.size, 0, 0, niceness, 0, round(seconds * 1e9), 0, 0)
        ctypes.CDLL(None).syscall(_SET, pid, ctypes.c_char_p(attributes), 0)
