"""A guest's linear memory as the host uses it: copies at checked addresses, growth, and which pages were written."""

from __future__ import annotations

import ctypes

from sandbox.memory import memory, pagetable
from sandbox.memory.memory import Runs
from sandbox.vm.engine import GuestStopped, Machine
from sandbox.vm.safepoints import PAGE_BYTES

ADDRESSES = 1 << 32
"""Bytes a guest can address."""
WATCHED_FROM = 1024
"""Pages of its own from which on a guest's writes are watched; up to there copying all of them costs less."""
_WASM_PAGE = 65536


class BadAddress(Exception):
    """The guest named memory it does not have, or the page by which it is stopped."""


class GuestMemory:
    """The memory of one guest. It may grow to `limit` bytes; memory reserved for documents is counted apart.

    It begins as the `image_size` bytes of the golden image in the file `image_fd`. Without a file (-1) it begins as the
    module's own. Its first page may be unreadable at any time, and is left alone. Not thread-safe.
    """

    def __init__(self, machine: Machine, limit: int, image_fd: int = -1, image_size: int = 0) -> None:
        self._machine = machine
        self._limit = limit + _WASM_PAGE  # the interpreter grows by whole pages
        self._image_fd = image_fd
        self.base = machine.base
        """Where it begins in the host's memory, as long as it lives."""
        self._watched = False
        self._own: Runs | None = None  # its own pages; None once a turn may have changed which these are
        self._known_size = 0  # memory never shrinks, so addresses within this need no new look
        if image_fd >= 0:
            machine.grow(image_size)
            memory.lay_over(self.base + PAGE_BYTES, image_size - PAGE_BYTES, image_fd, PAGE_BYTES)

    # ---- size ----------------------------------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """Bytes of memory now."""
        self._known_size = self._machine.size
        return self._known_size

    def grow(self, size: int, reserved: int = 0) -> None:
        """Grow to at least `size` bytes, whatever the limit is. Of these, `reserved` are counted apart from it.

        Raises:
            MemoryError: there is no such memory.
        """
        self._allow(max(self._limit + reserved, size))
        self._machine.grow(size)

    def reserve(self, size: int, reserved: int) -> int | None:
        """Return the address of `size` bytes from the guest's allocator, or None where the guest has no room.

        They are counted apart from the limit, as `reserved` bytes are already.
        """
        self._allow(self._limit + reserved + size)
        address = self.allocate_or_none(size)
        if address is None:
            self._allow(self._limit + reserved)
        return address

    def _allow(self, size: int) -> None:
        self._machine.limit_memory(min(size, ADDRESSES))

    def allocate_or_none(self, size: int) -> int | None:
        """Return the address of `size` bytes from the guest's allocator. None where it has none, or lies about it."""
        address = self._machine.call("host_alloc", size)
        return address if address >= PAGE_BYTES and self._has(address + size) else None

    def allocate(self, size: int) -> int:
        """Return the address of `size` bytes from the guest's allocator.

        Raises:
            GuestStopped: the allocator has no such memory, or trapped.
        """
        address = self.allocate_or_none(size)
        if address is None:
            raise GuestStopped(f"the guest could not allocate {size} bytes")
        return address

    # ---- bytes ---------------------------------------------------------------------------------------------------

    def _has(self, end: int) -> bool:
        return end <= self._known_size or end <= self.size

    def _check(self, address: int, size: int) -> None:
        if (address < PAGE_BYTES and size) or not self._has(address + size):
            raise BadAddress(address)

    def read(self, address: int, size: int) -> bytes:
        """Copy bytes out.

        Raises:
            BadAddress: they are not all within memory, or some are in its first page.
        """
        self._check(address, size)
        return ctypes.string_at(self.base + address, size)

    def write(self, address: int, data: bytes) -> None:
        """Copy bytes in.

        Raises:
            BadAddress: they would not all be within memory, or some in its first page.
        """
        self._check(address, len(data))
        ctypes.memmove(self.base + address, data, len(data))

    def write_long(self, address: int, value: int) -> None:
        """Write a number of 64 bits, at little cost.

        Raises:
            BadAddress: it would not be within memory, or in the first page.
        """
        if address < PAGE_BYTES or not self._has(address + 8):
            raise BadAddress(address)
        ctypes.c_uint64.from_address(self.base + address).value = value

    def view(self) -> memoryview:
        """Return a view of the memory at its present size. It must not be used after the guest is closed.

        Its first page must not be touched while another thread may stop the guest.
        """
        return memoryview((ctypes.c_char * self.size).from_address(self.base)).cast("B")

    # ---- what was written ----------------------------------------------------------------------------------------

    def watch(self) -> None:
        """Watch writes from now on, where that is possible. The caller knows the guest's own pages up to now."""
        if pagetable.can_watch():
            pagetable.watch(self.base + PAGE_BYTES, ADDRESSES - PAGE_BYTES)
            pagetable.written(self.base, self.size, PAGE_BYTES)
            self._watched = True

    def changed_pages(self) -> tuple[Runs, bool]:
        """Return the pages that may have changed since the last call, and whether all others are the image's."""
        if self._watched:
            return pagetable.written(self.base, self.size, PAGE_BYTES), False
        if self._own is None:
            self._own = pagetable.own_pages(self.base, self.size, self._image_fd, PAGE_BYTES)
            if sum(size for _, size in self._own) > WATCHED_FROM * memory.PAGE:
                self.watch()
        return self._own, True

    def note_faults(self) -> None:
        """Note that pages were touched for the first time, so that it is no longer known which are the guest's own."""
        self._own = None

    def mappings_changed(self) -> None:
        """Note that mappings changed. Pages that are mapped over a watched range are not watched."""
        self._watched, self._own = False, None
