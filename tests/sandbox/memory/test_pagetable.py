"""The page table is read right, however many runs of pages there are."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator

import pytest

from sandbox.memory import memory, pagetable
from sandbox.memory.memory import PAGE, in_memory

PAGES = 12_000


@pytest.fixture
def mapped() -> Iterator[tuple[int, int]]:
    """Yield the address of memory with a file laid over it, none of which was touched, and the file's descriptor."""
    fd = in_memory("test", PAGES * PAGE)
    os.pwrite(fd, b"x" * PAGES * PAGE, 0)
    address = int(memory.libc.mmap(None, PAGES * PAGE, 3, 0x4022, -1, 0))
    memory.lay_over(address, PAGES * PAGE, fd)
    yield address, fd
    memory.unmap(address, PAGES * PAGE)
    os.close(fd)


@pytest.mark.skipif(not memory.MAPPING, reason="files are copied here, not mapped")
@pytest.mark.parametrize("count", [0, 1, 511, 512, 513, 1024, 1500, 2047, 2048, 2049, 2560, 4096, 5000])
def test_every_run_of_written_pages_is_found_once(mapped: tuple[int, int], count: int) -> None:
    address, fd = mapped
    written = [(2 * number * PAGE, PAGE) for number in range(count)]
    for at, _ in written:
        ctypes.memset(address + at, 1, 1)
    assert pagetable.own_pages(address, PAGES * PAGE, fd) == written


@pytest.mark.skipif(not memory.MAPPING, reason="files are copied here, not mapped")
@pytest.mark.parametrize("count", [1, 513, 2049, 3000])
def test_writes_that_are_watched_are_told_once_each(mapped: tuple[int, int], count: int) -> None:
    address, _ = mapped
    if not pagetable.can_watch():
        pytest.skip("this kernel cannot watch writes")
    pagetable.watch(address, PAGES * PAGE)
    pagetable.written(address, PAGES * PAGE)
    for number in range(count):
        ctypes.memset(address + 2 * number * PAGE, 1, 1)
    told = pagetable.written(address, PAGES * PAGE)
    assert [at for at, size in told for at in range(at, at + size, PAGE)] == [2 * n * PAGE for n in range(count)]
    assert pagetable.written(address, PAGES * PAGE) == []


@pytest.mark.skipif(not memory.MAPPING, reason="files are copied here, not mapped")
def test_pages_that_were_read_are_told_to_the_block(mapped: tuple[int, int]) -> None:
    address, fd = mapped
    assert pagetable.touched(address, PAGES * PAGE) == []
    block = 16 * PAGE
    ctypes.string_at(address + 100 * block, 1)
    ctypes.memset(address + 300 * block, 1, 1)  # one of its own is no page of the file any more
    touched = pagetable.touched(address, PAGES * PAGE)
    assert {at // block for at, size in touched for at in range(at, at + size, PAGE)} <= {
        address % block and 99,
        100,
        101,
        300,
    }
    assert not pagetable.brings_more(fd, 0, PAGES * PAGE, 2 * block)
