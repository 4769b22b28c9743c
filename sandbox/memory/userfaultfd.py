"""userfaultfd(2): how a process serves faults of its own memory, or learns what is written to it."""

from __future__ import annotations

import fcntl
import os
import platform
import struct

from sandbox.memory.memory import MAPPING, libc

UFFDIO_REGISTER = 0xC020AA00
_UFFDIO_API, _API = 0xC018AA3F, 0xAA
_NUMBERS = {"x86_64": 323, "aarch64": 282}
"""The number of the system call, by machine."""
_CLOSE_ON_EXEC, _USER_MODE_ONLY = 0x80000, 1


def opened(features: int) -> int:
    """Return a new descriptor for faults of user mode, or -1 where the kernel gives none with these features."""
    if not MAPPING or platform.machine() not in _NUMBERS:
        return -1
    fd = int(libc.syscall(_NUMBERS[platform.machine()], _CLOSE_ON_EXEC | _USER_MODE_ONLY))
    if fd >= 0:
        try:
            fcntl.ioctl(fd, _UFFDIO_API, struct.pack("QQQ", _API, features, 0))
        except OSError:
            os.close(fd)
            return -1
    return fd


def register(fd: int, address: int, size: int, mode: int) -> None:
    """Have the descriptor tell of whole pages at `address`.

    Raises:
        OSError: the kernel refused.
    """
    fcntl.ioctl(fd, UFFDIO_REGISTER, struct.pack("QQQQ", address, size, mode, 0))
