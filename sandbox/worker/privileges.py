"""Gives up every privilege a process may have from the user that started it: all capabilities, and root.

See capabilities(7) and credentials(7). A process of an ordinary user has no privileges and loses nothing. Linux only.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import struct
from pathlib import Path

STATUS = Path("/proc/self/status")
NOBODY = 65534
"""The user and group that owns nothing."""
MIN_PROCESSES = 4096
"""Root is exempt from the limit of processes and threads, nobody is not: with less, threads might not start."""

_PR_CAPBSET_READ, _PR_CAPBSET_DROP, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 23, 24, 47, 4
_CAPSET = {"x86_64": 126, "aarch64": 91}
_CAPABILITY_VERSION_3 = 0x20080522
_KILL, _SETGID, _SETUID, _SETPCAP = 5, 6, 7, 8
_BITS = 64
_SETS = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")

_libc = ctypes.CDLL(None, use_errno=True)


def give_up() -> frozenset[str]:
    """Give up all capabilities and, where this is root and can, become nobody. For good, and for this thread only.

    Returns:
        the sets of capabilities, by their names in /proc/PID/status, that are empty now. The bounding set limits what
        an exec may gain. Emptying it takes CAP_SETPCAP; a process without that keeps it.

    Raises:
        OSError: the kernel refused something it must not refuse, or there is no /proc.
    """
    held = _held(STATUS.read_text())["CapEff"]
    bounded = bool(held >> _SETPCAP & 1)
    if bounded:
        _empty_bounding_set()
    if os.geteuid() == 0 and all(held >> capability & 1 for capability in (_KILL, _SETGID, _SETUID)):
        _become_nobody()
    _call(_libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0), "the ambient capabilities")
    header = ctypes.create_string_buffer(struct.pack("<Ii", _CAPABILITY_VERSION_3, 0), 8)
    _call(_libc.syscall(_CAPSET[platform.machine()], header, ctypes.create_string_buffer(24)), "capset")
    return frozenset(_SETS) if bounded else frozenset(_SETS) - {"CapBnd"}


def kept(status: str, empty: frozenset[str]) -> list[str]:
    """Return which of these sets are not empty, by the content of /proc/PID/status. A set not listed there counts."""
    held = _held(status)
    return sorted(name for name in empty if held.get(name, 1) != 0)


def _held(status: str) -> dict[str, int]:
    lines = (line.partition(":\t") for line in status.splitlines())
    return {name: int(value, 16) for name, _, value in lines if name in _SETS}


def _empty_bounding_set() -> None:
    for capability in range(_BITS):
        if _libc.prctl(_PR_CAPBSET_READ, capability, 0, 0, 0) == 1:
            _call(_libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0), "the bounding set")


def _become_nobody() -> None:
    """Take the user and group that own nothing, where they exist here and may have enough threads.

    This is done only where root may signal processes of others: otherwise the server could not end this one.
    """
    hard = resource.getrlimit(resource.RLIMIT_NPROC)[1]
    if hard != resource.RLIM_INFINITY and hard < MIN_PROCESSES:
        return
    resource.setrlimit(resource.RLIMIT_NPROC, (hard, hard))
    try:
        os.setresuid(-1, NOBODY, -1)  # a trial that can be undone, as a user namespace may not have this user
        os.setresuid(-1, 0, -1)
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
    except OSError:  # a user namespace without them, or one that forbids setgroups
        return
    os.setresuid(NOBODY, NOBODY, NOBODY)


def _call(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
