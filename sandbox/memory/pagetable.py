"""What the kernel's page table tells of guest memory: which pages are private copies, which were written since.

A page of a private file mapping that was written to is an anonymous copy from then on. PAGEMAP_SCAN finds those, and
in a range that is watched, those written since it was last called (Linux 6.7: Documentation/admin-guide/mm/pagemap.rst
and userfaultfd.rst, "Write Protect Notifications"). Older kernels tell the former by `/proc/self/pagemap`; elsewhere
pages are compared with the image byte by byte.

Watching has a price: the first write to a watched page costs a fault of about a microsecond, five times what copying
the page costs. So it pays only for a guest that writes to few of its pages in a turn.
"""

from __future__ import annotations

import ctypes
import functools
import os
import resource
import threading

from sandbox.memory import userfaultfd
from sandbox.memory.memory import MAPPING, PAGE, Runs, libc, reading

PAGEMAP_SCAN = 0xC0606610
_WRITE_PROTECT_ASYNC, _REGISTER_WRITE_PROTECT = 1 << 15, 2
_PROTECT_MATCHING, _CHECK_WATCHED = 1, 2
_WRITTEN, _FILE, _PRESENT, _SWAPPED = 2, 4, 8, 16
_MAX_REGIONS = 2048

_PAGEMAP = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC) if MAPPING else -1
"""Opened at once: a confined process cannot."""

# The top three bits of a pagemap entry's last byte: present (63), swapped (62), file-backed or shared (61).
_OWN = bytes(1 if entry & 0x40 or (entry & 0x80 and not entry & 0x20) else 0 for entry in range(256))
_OF_FILE = bytes(1 if entry & 0xA0 == 0xA0 else 0 for entry in range(256))


class _OnThisThread(threading.local):
    def __init__(self) -> None:
        self.regions = (ctypes.c_uint64 * (3 * _MAX_REGIONS))()


_buffer = _OnThisThread()


def own_pages(address: int, size: int, image: int, start: int = 0) -> Runs:
    """Find the pages within `size` bytes at `address` that differ from the file `image` mapped there.

    On Linux these are the pages that were written to. What is below `start` is left out.
    """
    if _can_scan():
        return _scan(address, size, 0, _FILE, start=start)
    if MAPPING:
        return _runs(_entries(address + start, size - start).translate(_OWN), start)
    return _runs(
        bytes(
            ctypes.string_at(address + at, PAGE) != os.pread(image, PAGE, at).ljust(PAGE, b"\0")
            for at in range(start, size, PAGE)
        ),
        start,
    )


def touched(address: int, size: int) -> Runs:
    """Find the pages within `size` bytes at `address`, mapped from a file, that the kernel has brought for a reader.

    Where files are not mapped but copied, nothing is known: all count.
    """
    if not MAPPING:
        return [(0, size)]
    if _can_scan():
        return _scan(address, size, 0, _FILE | _PRESENT, inverted=0, any_of=0)
    return _runs(_entries(address, size).translate(_OF_FILE))


def brings_more(fd: int, offset: int, size: int, block: int) -> bool:
    """Whether touching a page of a file brings more than the `block` of bytes around it; both ends are whole pages.

    Since Linux 6.18 all of a large folio is mapped at once, and how large those of a file are depends on who has
    written or read it. This touches a few pages to see.
    """
    with reading(fd, size, offset) as address:
        for part in _PROBED:
            ctypes.string_at(address + size // 8 * part // PAGE * PAGE, 1)
        return any(length > block for _, length in touched(address, size))


_PROBED = (1, 3, 6)
"""Eighths of a file's size at which to touch it."""


def _entries(address: int, size: int) -> bytes:
    """Return the last byte of each page's entry."""
    return os.pread(_PAGEMAP, 8 * (size // PAGE), address // PAGE * 8)[7::8]


def _runs(flags: bytes, first: int = 0) -> Runs:
    found, end = [], 0
    while (start := flags.find(1, end)) >= 0:
        end = flags.find(0, start)
        end = len(flags) if end < 0 else end
        found.append((first + start * PAGE, (end - start) * PAGE))
    return found


def faults() -> tuple[int, int]:
    """Return how often this thread has had a page brought or copied for it.

    A page becomes a private copy by a fault of the thread that writes to it. So while this number stays the same, the
    guest that the thread runs has no new pages of its own. Most later turns of a session cause no fault. To find that
    out costs a hundredth of looking through the page table.
    """
    used = resource.getrusage(resource.RUSAGE_THREAD)
    return used.ru_minflt, used.ru_majflt


def can_watch() -> bool:
    """Whether writes can be watched here. To be asked once before the process is confined."""
    return _watcher() >= 0


def watch(address: int, size: int) -> None:
    """Watch writes to a range of memory from now on; what is mapped over it later is not watched.

    Raises:
        OSError: the kernel refused.
    """
    userfaultfd.register(_watcher(), address, size, _REGISTER_WRITE_PROTECT)


def written(address: int, size: int, start: int = 0) -> Runs:
    """Return the private pages of a watched range that were written since the last call, and begin anew.

    What is below `start` is left out, and need not be watched.

    Raises:
        OSError: part of the range is not watched.
    """
    return _scan(address, size, _PROTECT_MATCHING | _CHECK_WATCHED, _WRITTEN | _FILE, start=start)


def _scan(
    address: int, size: int, flags: int, mask: int, *, inverted: int = _FILE, any_of: int = _PRESENT | _SWAPPED,
    start: int = 0,
) -> Runs:  # fmt: skip
    """Find pages of all categories in `mask`, or not of it where it is in `inverted`, and of one of `any_of`."""
    regions = _buffer.regions
    runs: Runs = []
    at, end = address + start, address + size
    while at < end:
        scan = (ctypes.c_uint64 * 12)(
            96, flags, at, end, 0, ctypes.addressof(regions), _MAX_REGIONS, 0,
            inverted, mask, any_of, mask & ~inverted | _PRESENT,
        )  # fmt: skip
        count = libc.ioctl(_PAGEMAP, PAGEMAP_SCAN, ctypes.addressof(scan))
        if count < 0:
            number = ctypes.get_errno()
            raise OSError(number, f"PAGEMAP_SCAN: {os.strerror(number)}")
        values = regions[: 3 * count]
        runs += [(a - address, b - a) for a, b in zip(values[::3], values[1::3], strict=True)]
        # It ends early only for want of room. Where it then says it came to (walk_end) may be where one of the shorter
        # walks ended that it is made of.
        at = values[-2] if count == _MAX_REGIONS else end
    return runs


@functools.cache
def _can_scan() -> bool:
    if not MAPPING:
        return False
    try:
        _scan(ctypes.addressof(_buffer.regions) // PAGE * PAGE, PAGE, 0, _FILE)
    except OSError:
        return False
    return True


@functools.cache
def _watcher() -> int:
    """Return this process's userfaultfd, or -1 where the kernel has no asynchronous write protection."""
    return userfaultfd.opened(_WRITE_PROTECT_ASYNC) if _can_scan() else -1
