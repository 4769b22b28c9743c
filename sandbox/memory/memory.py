"""Guest memory as ordinary mappings: files in memory, and files laid over memory.

Linear memory stays at one host address for the life of an instance, so the host may map files over parts of it.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import sys
import tempfile
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

PAGE = 4096
SEAL_SECONDS, SEAL_PAUSE_SECONDS = 5.0, 0.02
"""For so long, and so often, a file is sealed again whose pages the kernel has in use: it says EBUSY after a while."""

Runs = list[tuple[int, int]]
"""Runs of whole pages in ascending order, each as (offset, bytes)."""

_KEEP_SIZE, _PUNCH_HOLE = 1, 2
_SYNC_FILE_RANGE_WRITE = 2
_PROT_READ_WRITE, _MAP_SHARED = 0x3, 0x01
_MAP_PRIVATE_FIXED_NORESERVE = 0x02 | 0x10 | 0x4000
_MAP_PRIVATE_ANONYMOUS_NORESERVE = 0x02 | 0x20 | 0x4000
_MAP_PRIVATE_ANONYMOUS_FIXED_NORESERVE = _MAP_PRIVATE_FIXED_NORESERVE | 0x20

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.ioctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p]

_M_MMAP_THRESHOLD = -3
_OWN_MAPPING = 256 << 10

MAPPING = sys.platform == "linux" and mmap.PAGESIZE == PAGE
"""Whether files can be laid over guest memory here; elsewhere they are copied into it."""


HUGE = 2 << 20
_MADV_COLLAPSE = 25


def collapse(fd: int, size: int) -> None:
    """Have the kernel keep a file in memory in huge pages where it can: mapping it then costs far fewer faults.

    (Linux 6.1: madvise(2), MADV_COLLAPSE; it works whatever the system's setting for huge pages is.)
    """
    if not MAPPING:
        return
    room = pages(size) + 2 * HUGE
    address = libc.mmap(None, room, 0, _MAP_PRIVATE_ANONYMOUS_NORESERVE, -1, 0)
    if address == ctypes.c_void_p(-1).value:
        return
    aligned = -(-address // HUGE) * HUGE
    if libc.mmap(aligned, size, 0x1, _MAP_SHARED | 0x10, fd, 0) == aligned:
        libc.madvise(aligned, size // HUGE * HUGE, _MADV_COLLAPSE)
    libc.munmap(address, room)


def give_back_freed() -> None:
    """Have malloc return freed blocks of 256 KiB and more to the system: this process makes and closes many instances.

    Wasmtime keeps about 1.5 MB of tables for an instance. Left to itself, glibc gives a mapping of its own only
    to blocks larger than the largest it has freed. Those tables would then stay resident after they are freed.
    (mallopt(3), M_MMAP_THRESHOLD; a libc without it is left as it is.)
    """
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, _OWN_MAPPING)


def pages(size: int) -> int:
    """Round a number of bytes up to whole pages, in bytes."""
    return -(-size // PAGE) * PAGE


def in_memory(name: str, size: int = 0) -> int:
    """Return a descriptor of a new file of zeros in memory, which nobody can shorten."""
    if not hasattr(os, "memfd_create"):
        with tempfile.TemporaryFile() as file:
            os.ftruncate(file.fileno(), size)
            return os.dup(file.fileno())
    import fcntl

    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    return fd


def sealed(data: bytes | mmap.mmap, name: str) -> int:
    """Return a descriptor of `data` in memory that nobody can change or shorten any more."""
    fd = in_memory(name)
    with memoryview(data) as view:
        written = 0
        while written < len(view):
            written += os.write(fd, view[written:])
    seal(fd)
    return fd


def seal(fd: int) -> None:
    """See to it that nobody can change or shorten a file of `in_memory` any more.

    Raises:
        OSError: the kernel refused, also where it had its pages in use for `SEAL_SECONDS`.
    """
    if hasattr(os, "memfd_create"):
        import fcntl

        until = time.monotonic() + SEAL_SECONDS
        while True:
            try:
                fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL)
            except OSError as error:
                if error.errno != errno.EBUSY or time.monotonic() > until:
                    raise
                time.sleep(SEAL_PAUSE_SECONDS)
            else:
                return


def share(fd: int, size: int) -> int:
    """Map the first `size` bytes of `fd` and return the address: what is written there is in the file.

    Raises:
        OSError: the kernel refused.
    """
    address = libc.mmap(None, size, _PROT_READ_WRITE, _MAP_SHARED, fd, 0)
    if address == ctypes.c_void_p(-1).value:
        number = ctypes.get_errno()
        raise OSError(number, f"mapping {size} bytes: {os.strerror(number)}")
    return int(address)


def give_back(fd: int, start: int, size: int) -> None:
    """Free the memory of part of a file in memory, which then reads as zeros, where the kernel can."""
    if hasattr(libc, "fallocate"):
        libc.fallocate(fd, _PUNCH_HOLE | _KEEP_SIZE, ctypes.c_long(start), ctypes.c_long(size))


def begin_to_flush(fd: int, start: int, size: int) -> None:
    """Have the kernel begin to write part of a file to its disk, where it can. Nothing is waited for or promised."""
    if hasattr(libc, "sync_file_range"):
        libc.sync_file_range(fd, ctypes.c_long(start), ctypes.c_long(size), _SYNC_FILE_RANGE_WRITE)


def view(fd: int, size: int) -> memoryview:
    """Map the first `size` bytes of a file to be read, for as long as the view or a part of it is there.

    Raises:
        OSError: the kernel refused.
    """
    address = libc.mmap(None, size, mmap.PROT_READ, _MAP_SHARED, fd, 0)
    if address == ctypes.c_void_p(-1).value:
        number = ctypes.get_errno()
        raise OSError(number, f"mapping {size} bytes: {os.strerror(number)}")
    mapped = (ctypes.c_char * size).from_address(address)
    weakref.finalize(mapped, libc.munmap, address, size)
    return memoryview(mapped).toreadonly().cast("B")


def unmap(address: int, size: int) -> None:
    """Take back what `share` mapped."""
    libc.munmap(address, size)


@contextmanager
def reading(fd: int, size: int, offset: int) -> Iterator[int]:
    """Yield the address of `size` bytes of a file from `offset` on, to be read only.

    Raises:
        OSError: the kernel refused.
    """
    skip = offset % mmap.ALLOCATIONGRANULARITY
    address = libc.mmap(None, skip + size, mmap.PROT_READ, _MAP_SHARED, fd, offset - skip)
    if address == ctypes.c_void_p(-1).value:
        number = ctypes.get_errno()
        raise OSError(number, f"mapping {size} bytes: {os.strerror(number)}")
    try:
        yield int(address) + skip
    finally:
        libc.munmap(address, skip + size)


def clear(address: int, size: int) -> None:
    """Take away what lies over memory at `address`, which then reads as zeros; both are whole pages.

    Raises:
        OSError: the kernel refused.
    """
    if not MAPPING:
        ctypes.memset(address, 0, size)
    elif libc.mmap(address, size, _PROT_READ_WRITE, _MAP_PRIVATE_ANONYMOUS_FIXED_NORESERVE, -1, 0) != address:
        number = ctypes.get_errno()
        raise OSError(number, f"unmapping {size} bytes of guest memory: {os.strerror(number)}")


def forbid(address: int, size: int) -> None:
    """Have every access to whole pages at `address` fault from now on.

    Raises:
        OSError: the kernel refused.
    """
    if libc.mprotect(address, size, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"protecting {size} bytes of guest memory: {os.strerror(number)}")


def lay_over(address: int, size: int, fd: int, offset: int = 0) -> None:
    """Map `size` bytes of `fd` from `offset` on copy-on-write over memory at `address`; all three are whole pages.

    Raises:
        OSError: the kernel refused.
    """
    if not MAPPING:
        data = os.pread(fd, size, offset)
        ctypes.memmove(address, data, len(data))
    elif libc.mmap(address, size, _PROT_READ_WRITE, _MAP_PRIVATE_FIXED_NORESERVE, fd, offset) != address:
        number = ctypes.get_errno()
        raise OSError(number, f"mapping {size} bytes over guest memory: {os.strerror(number)}")
