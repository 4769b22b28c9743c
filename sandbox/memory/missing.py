"""Pages that are taken away for a while: whoever touches one waits until it is brought back.

The kernel leaves it to this process to serve the faults of these pages (userfaultfd(2), UFFDIO_REGISTER_MODE_MISSING).
Nothing reads the events: a page is brought back when it is time, and with it go on those who wait.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import functools
import os
import struct

from sandbox.memory import userfaultfd
from sandbox.memory.memory import clear, libc

UFFDIO_ZEROPAGE, UFFDIO_WAKE = 0xC020AA04, 0x8010AA02
_REGISTER_MISSING = 1
_MADV_DONTNEED = 4


def can_serve() -> bool:
    """Whether faults can be served here. To be asked once before the process is confined."""
    return _server() >= 0


def serve(address: int, size: int) -> bool:
    """Lay memory of zeros over whole pages at `address`, whose faults this process serves. False where it cannot.

    The pages are missing from then on.
    """
    if not can_serve():
        return False
    clear(address, size)
    try:
        userfaultfd.register(_server(), address, size, _REGISTER_MISSING)
    except OSError:
        return False
    return True


def take_away(address: int, size: int) -> None:
    """Take away pages that `serve` laid there. Whoever touches one waits."""
    libc.madvise(address, size, _MADV_DONTNEED)


def bring(address: int, size: int) -> None:
    """Bring the pages back, as zeros, and have those who wait go on.

    Raises:
        OSError: the kernel refused.
    """
    asked = (ctypes.c_int64 * 4)(address, size, 0, 0)
    while libc.ioctl(_server(), UFFDIO_ZEROPAGE, ctypes.addressof(asked)) < 0:
        number = ctypes.get_errno()
        if number != errno.EAGAIN:  # memory was being mapped just then
            break
    else:
        return
    if number != errno.EEXIST:
        raise OSError(number, f"bringing a page of guest memory: {os.strerror(number)}")
    fcntl.ioctl(_server(), UFFDIO_WAKE, struct.pack("QQ", address, size))


@functools.cache
def _server() -> int:
    """Return the userfaultfd that serves these pages, or -1 where the kernel gives none."""
    return userfaultfd.opened(0)
