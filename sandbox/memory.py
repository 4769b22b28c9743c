"""Guest memory as ordinary mappings: files laid over it, and the pages a guest has made its own.

Linear memory stays at one host address for the life of an instance, so the host may map files over parts of it. A page
of a private file mapping that was written to becomes an anonymous copy, and `/proc/self/pagemap` tells which those are
(Linux: Documentation/admin-guide/mm/pagemap.rst). Elsewhere pages are compared with the image byte by byte.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import tempfile
from collections.abc import Iterable

PAGE = 4096

_PROT_READ_WRITE = 0x3
_MAP_PRIVATE_FIXED_NORESERVE = 0x02 | 0x10 | 0x4000

# The top three bits of a pagemap entry's last byte: present (63), swapped (62), file-backed or shared (61).
_OWN = bytes(1 if entry & 0x40 or (entry & 0x80 and not entry & 0x20) else 0 for entry in range(256))

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]

MAPPING = sys.platform == "linux" and mmap.PAGESIZE == PAGE
"""Whether files can be laid over guest memory here; elsewhere they are copied into it."""


def pages(size: int) -> int:
    """Round a number of bytes up to whole pages, in bytes."""
    return -(-size // PAGE) * PAGE


def runs(offsets: Iterable[int]) -> list[tuple[int, int]]:
    """Join pages, given by their offsets in ascending order, to runs: (offset, bytes)."""
    found: list[tuple[int, int]] = []
    for at in offsets:
        if found and found[-1][0] + found[-1][1] == at:
            found[-1] = (found[-1][0], found[-1][1] + PAGE)
        else:
            found.append((at, PAGE))
    return found


def sealed(data: bytes, name: str) -> int:
    """Return a descriptor of `data` in memory that nobody can change or shorten any more."""
    if not hasattr(os, "memfd_create"):
        with tempfile.TemporaryFile() as file:
            file.write(data)
            file.flush()
            return os.dup(file.fileno())
    import fcntl

    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL)
    return fd


def lay_over(address: int, size: int, fd: int) -> None:
    """Map the first `size` bytes of `fd` copy-on-write over memory at `address`; both are whole pages.

    Raises:
        OSError: the kernel refused.
    """
    if not MAPPING:
        ctypes.memmove(address, os.pread(fd, size, 0), size)
    elif _libc.mmap(address, size, _PROT_READ_WRITE, _MAP_PRIVATE_FIXED_NORESERVE, fd, 0) != address:
        number = ctypes.get_errno()
        raise OSError(number, f"mapping {size} bytes over guest memory: {os.strerror(number)}")


_PAGEMAP = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC) if MAPPING else -1


def own_pages(address: int, size: int, image: int) -> list[tuple[int, int]]:
    """Find the pages within `size` bytes at `address` that differ from the file `image` mapped there.

    Returns runs of pages in order, each as (offset, bytes). On Linux these are the pages that were written to.
    """
    count = size // PAGE
    if MAPPING:
        flags = os.pread(_PAGEMAP, 8 * count, address // PAGE * 8)[7::8].translate(_OWN)
    else:
        flags = bytes(
            ctypes.string_at(address + at, PAGE) != os.pread(image, PAGE, at).ljust(PAGE, b"\0")
            for at in range(0, size, PAGE)
        )
    found, end = [], 0
    while (start := flags.find(1, end)) >= 0:
        end = flags.find(0, start)
        end = count if end < 0 else end
        found.append((start * PAGE, (end - start) * PAGE))
    return found
