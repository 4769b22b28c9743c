"""A session's pages in their file: what was taken is there, whatever was written after it and not taken."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from sandbox.memory import pages as pagefiles
from sandbox.memory.memory import PAGE, Runs, in_memory
from sandbox.memory.pages import GRAIN, WINDOW, Change, Extent, PageFile, Patches
from tests.sandbox.repl import Repls, memory_of

COUNT = 24
"""Pages of the memories here."""

WRITTEN = st.lists(st.integers(0, COUNT - 1), unique=True, max_size=COUNT).map(sorted)


def runs(numbers: list[int]) -> Runs:
    """Join page numbers to runs where they touch, but not always."""
    found: Runs = []
    for number in numbers:
        if found and sum(found[-1]) == number * PAGE and number % 5:
            found[-1] = (found[-1][0], found[-1][1] + PAGE)
        else:
            found.append((number * PAGE, PAGE))
    return found


def address(memory: bytearray) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


class AnyHistory(RuleBasedStateMachine):
    """Pages are written, and the change is taken, or never heard of as when a worker dies; a dict is the model."""

    def __init__(self) -> None:
        super().__init__()
        self.file = self.made()
        self.stored = PageFile()
        """What the differences that each change makes come to, elsewhere."""
        self.memory = bytearray(COUNT * PAGE)
        self.model: dict[int, bytes] = {}
        self.stamp = 0
        self.numbers: list[int] = []
        self.runs: Runs = []

    def made(self) -> PageFile:
        return PageFile(in_memory("shared", WINDOW * PAGE))

    def _write(self, numbers: list[int]) -> None:
        for number in numbers:
            self.stamp += 1
            at, size = number * PAGE, PAGE // 4
            if self.stamp % 3:  # most turns change a page in few places
                at, size = at + self.stamp * 260 % PAGE // 4 * 4, 1
            self.memory[at : at + 4 * size] = self.stamp.to_bytes(4, "little") * size
        if numbers != self.numbers:  # the very same list again says that it is the same pages
            self.numbers, self.runs = numbers, runs(numbers)

    @rule(numbers=WRITTEN, whole=st.booleans())
    def take(self, numbers: list[int], whole: bool) -> None:
        self._write(numbers)
        change = self.file.write(address(self.memory), self.runs, whole=whole)
        change = Change.decode(change.encode(), whole=whole)
        self.store(change)
        self.file.take(change)
        if whole:
            self.model.clear()
        for number in numbers:
            self.model[number] = bytes(self.memory[number * PAGE : (number + 1) * PAGE])

    def store(self, change: Change) -> None:
        patches = Patches(self.stored)
        for offset, contents in self.file.differences(change):
            assert (offset % GRAIN, len(contents) % GRAIN) == (0, 0)
            patches.write(offset, contents)
        patches.finish()

    @rule(numbers=WRITTEN, whole=st.booleans())
    def die_before_it_is_taken(self, numbers: list[int], whole: bool) -> None:
        self._write(numbers)
        self.file.write(address(self.memory), self.runs, whole=whole)
        self.file = PageFile(self.file.fd, self.file.table)

    @rule(times=st.integers(1, 4))
    def take_the_same_again(self, times: int) -> None:
        for _ in range(times):
            self.take(self.numbers, whole=True)

    @rule()
    def trim(self) -> None:
        self.file.trim()

    @rule()
    def copy(self) -> None:
        copied = self.file.copy()
        self.file.close()
        self.file = PageFile(copied.fd, copied.table) if self.file._shared else copied

    @invariant()
    def all_that_was_taken_is_there(self) -> None:
        back = bytearray(COUNT * PAGE)
        self.file.read_into(memoryview(back))
        expected = bytearray(COUNT * PAGE)
        for number, content in self.model.items():
            expected[number * PAGE : (number + 1) * PAGE] = content
        assert back == expected
        assert b"".join(self.file.contents()) == b"".join(self.model[number] for number in sorted(self.model))
        assert len(self.file) == len(self.model)
        assert sum(size for _, size in self.file.runs) == len(self.model) * PAGE

    @invariant()
    def what_was_stored_of_it_elsewhere_is_the_same(self) -> None:
        assert b"".join(self.stored.contents()) == b"".join(self.model[number] for number in sorted(self.model))
        assert self.stored.slots().keys() == self.model.keys()

    @invariant()
    def no_slot_is_used_twice(self) -> None:
        slots = [slot + i for _, slot, length in self.file.table for i in range(length)]
        assert len(slots) == len(set(slots))

    @invariant()
    def the_file_does_not_grow_for_ever(self) -> None:
        assert max((slot + length for _, slot, length in self.file.table), default=0) <= 3 * COUNT

    def teardown(self) -> None:
        self.file.close()
        self.stored.close()


class AnyHistoryAlone(AnyHistory):
    """The same in a file that is nobody else's: there it is this process that takes the change, or nobody lives."""

    def made(self) -> PageFile:
        return PageFile()

    die_before_it_is_taken = None  # type: ignore[assignment]
    what_was_stored_of_it_elsewhere_is_the_same = None  # type: ignore[assignment]

    def store(self, change: Change) -> None:
        """Its pages may lie where they were, so that nothing tells what was there before."""


TestAnyHistory = AnyHistory.TestCase
TestAnyHistoryAlone = AnyHistoryAlone.TestCase


def test_more_parts_than_the_kernel_takes_at_once_are_written_and_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pagefiles, "MAX_BUFFERS", 3)
    memory = bytearray(b"".join(bytes([i]) * PAGE for i in range(40)))
    file = PageFile()
    file.take(file.write(address(memory), [(i * PAGE, PAGE) for i in range(0, 40, 2)], whole=True))
    back = bytearray(len(memory))
    file.read_into(memoryview(back))
    assert all(back[i * PAGE] == (i if i % 2 == 0 else 0) for i in range(40))
    file.close()


def test_a_file_that_is_cut_short_is_an_error() -> None:
    file = PageFile(in_memory("short", PAGE), [Extent(0, 0, 2)])
    with pytest.raises(EOFError, match="cut short"):
        file.read_into(memoryview(bytearray(2 * PAGE)))
    with pytest.raises(EOFError, match="cut short"):
        file.copy()
    file.close()


@given(st.binary(max_size=60))
def test_any_bytes_are_a_change_or_an_error(data: bytes) -> None:
    try:
        change = Change.decode(data, whole=False)
    except ValueError:
        return
    assert change.encode() == data


def test_pages_written_for_a_change_that_is_not_taken_spoil_nothing_however_often_the_same_were_before() -> None:
    memory = bytearray(b"".join(bytes([i]) * PAGE for i in range(4)))
    file = PageFile(in_memory("shared", WINDOW * PAGE))
    same = runs([0, 1, 2, 3])
    for turn in range(9):
        memory[:] = bytes([turn]) * len(memory)
        change = file.write(address(memory), same, whole=True)
        before = b"".join(file.contents())
        assert before == (bytes([turn - 1]) * len(memory) if turn else b"")
        file.take(Change.decode(change.encode(), whole=True))
        assert b"".join(file.contents()) == bytes(memory)
    file.close()


# ---- small sessions copy all their pages, large ones those that were written -----------------------------------------


def test_a_large_sessions_turn_that_changed_little_writes_little(start: Repls) -> None:
    repl = start(memory_bytes=256 << 20)
    repl.show("block = bytearray(b'x' * (32 << 20))\nlen(block)")
    assert len(repl.session.checkpoint.pages) > 8000
    repl.show("block[5_000_000] = 7; block[20_000_000] = 8")
    change = repl.session.take_checkpoint()
    assert not change.whole
    assert sum(extent.length for extent in change.written) < 1000
    before = memory_of(repl)
    assert repl.run("block[1_000_000] = 9\nimport os; os._exit(0)").error is not None
    assert memory_of(repl) == before
    fork = start.fork(repl)
    assert memory_of(fork) == before
    assert fork.show("block[5_000_000], block[20_000_000], block[1_000_000], block.count(b'x')") == repr(
        (7, 8, ord("x"), (32 << 20) - 2)
    )


def test_a_difference_of_a_page_that_is_not_there_is_an_error() -> None:
    file = PageFile()
    patches = Patches(file)
    patches.write(PAGE, b"a" * PAGE)
    with pytest.raises(ValueError, match="part of page 2"):
        patches.write(2 * PAGE - GRAIN, b"b" * 2 * GRAIN)
    with pytest.raises(KeyError):
        patches.write(3 * PAGE, b"")
    file.close()


def test_differences_with_pages_that_were_not_written_are_an_error() -> None:
    file = PageFile(in_memory("short", PAGE))
    with pytest.raises(EOFError, match="cut short"):
        list(file.differences(Change((Extent(0, 0, 2),), whole=True)))
    file.close()


def test_few_pages_are_in_memory_while_many_are_compared() -> None:
    file, memory = PageFile(), bytearray(b"x") * (64 << 20)
    for content in b"xy":
        memory[::PAGE] = bytes([content]) * (len(memory) // PAGE)
        change = file.write(address(memory), [(0, len(memory))], whole=True)
        before, most, found = mapped(), 0, 0
        for number, (_, difference) in enumerate(file.differences(change)):
            found += len(difference)
            if number % 64 == 0:
                most = max(most, mapped() - before)
        file.take(change)
        assert found in (len(memory), len(memory) // PAGE * GRAIN)
        assert most < len(memory) // 4
    file.close()


def mapped() -> int:
    """Return how many bytes of files in memory this process has mapped and looked at."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssShmem:"))
