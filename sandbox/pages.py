"""Pages of guest memory in a file: what a checkpoint keeps.

The file has slots of a page each, and a table says in which slots the pages are. Pages that changed are written to free
slots, and count only once the change is taken: whoever dies in between leaves the pages as they were. So a worker
process writes the file, and the server, which has it too, takes the change when it hears that the turn has ended.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from sandbox.memory import PAGE, Runs, in_memory

MOST_BUFFERS = 1024
"""Of one call of the kernel: IOV_MAX."""
ADDRESSABLE = (1 << 32) // PAGE


class Extent(NamedTuple):
    """`length` pages of memory from `page` on, in as many slots from `slot` on."""

    page: int
    slot: int
    length: int


@dataclass(frozen=True, slots=True)
class Change:
    """Pages that were written, in ascending order. Where it is `whole`, all other pages are gone."""

    written: tuple[Extent, ...] = ()
    whole: bool = False

    def encode(self) -> bytes:
        """Write the extents for another process."""
        return array("I", [number for extent in self.written for number in extent]).tobytes()

    @classmethod
    def decode(cls, data: bytes, *, whole: bool) -> Change:
        """Read what `encode` wrote.

        Raises:
            ValueError: it is no change of a guest's memory.
        """
        values = array("I", data)
        if len(values) % 3:
            raise ValueError("part of an extent")
        written = tuple(map(Extent, values[::3], values[1::3], values[2::3]))
        end = 0
        for page, slot, count in written:
            if page < end or not 0 < count <= ADDRESSABLE - page or slot + count > 2 * ADDRESSABLE:
                raise ValueError(f"an extent of {count} pages from {page} in slot {slot}")
            end = page + count
        return cls(written, whole)


class PageFile:
    """A file of pages, with its table. It owns its descriptor."""

    def __init__(self, fd: int | None = None, table: Iterable[Extent] = ()) -> None:
        self.fd = in_memory("pages") if fd is None else fd
        self.table = list(table)
        self._end = max((slot + count for _, slot, count in self.table), default=0)
        used = sorted((slot, count) for _, slot, count in self.table)
        self._free: list[tuple[int, int]] = []
        at = 0
        for slot, count in used:
            if slot > at:
                self._free.append((at, slot - at))
            at = slot + count

    def __len__(self) -> int:
        return sum(extent.length for extent in self.table)

    def write(self, memory: memoryview, runs: Runs, *, whole: bool) -> Change:
        """Write runs of pages of a memory to free slots. `whole` says that all other pages are gone."""
        written = tuple(self._placed(runs))
        _transfer(os.pwritev, self.fd, memory, written)
        return Change(written, whole)

    def _placed(self, runs: Runs) -> Iterator[Extent]:
        """Yield the runs in free slots, the lowest first, each run cut where its slots are not together."""
        slot, room = 0, 0
        for at, size in runs:
            page, left = at // PAGE, size // PAGE
            while left:
                if not room:
                    slot, room = self._free.pop(0) if self._free else (self._end, 0)
                    if not room:
                        room = left
                        self._end += left
                count = min(left, room)
                yield Extent(page, slot, count)
                page, slot, left, room = page + count, slot + count, left - count, room - count
        if room:
            self._free.insert(0, (slot, room))

    def take(self, change: Change) -> None:
        """Have a change count: from now on its pages are in the slots it names."""
        old, freed = self.table, self._free
        if change.whole:
            freed += [(slot, count) for _, slot, count in old]
            self.table = list(change.written)
        else:
            self.table = _overlaid(old, change.written, freed)
        if len(freed) > 1:
            self._free = _joined(freed)

    def read_into(self, memory: memoryview) -> None:
        """Put every page into its place in a memory.

        Raises:
            EOFError: the file is shorter than its table says.
        """
        _transfer(os.preadv, self.fd, memory, sorted(self.table, key=lambda extent: extent.slot))

    def contents(self) -> Iterator[bytes]:
        """Yield the pages in ascending order, up to a MiB at once.

        Raises:
            EOFError: the file is shorter than its table says.
        """
        for _, slot, count in self.table:
            for at in range(slot * PAGE, (slot + count) * PAGE, 1 << 20):
                size = min(1 << 20, (slot + count) * PAGE - at)
                piece = os.pread(self.fd, size, at)
                if len(piece) != size:
                    raise EOFError(_CUT)
                yield piece

    def fill(self, runs: Runs, contents: Iterable[bytes]) -> None:
        """Take runs of pages from their contents, in order and one after another. The file must be empty."""
        at = 0
        for piece in contents:
            view = memoryview(piece)
            while view:
                done = os.pwrite(self.fd, view, at)
                view, at = view[done:], at + done
        self.table = list(self._placed(runs))

    @property
    def runs(self) -> Runs:
        """The pages as (offset, bytes)."""
        return [(page * PAGE, count * PAGE) for page, _, count in self.table]

    def copy(self) -> PageFile:
        """Return an independent copy."""
        made = PageFile()
        try:
            made.fill(self.runs, self.contents())
        except BaseException:
            made.close()
            raise
        return made

    def close(self) -> None:
        """Give up the file."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _overlaid(old: list[Extent], new: tuple[Extent, ...], freed: list[tuple[int, int]]) -> list[Extent]:
    """Return the new extents, and the old ones where these leave room; add the slots of the rest to `freed`."""
    made: list[Extent] = []
    waiting = iter(old)
    extent = next(waiting, None)
    for page, slot, count in new:
        end = page + count
        while extent and extent.page < end:
            start, was, length = extent
            if start + length <= page:
                made.append(extent)
            else:
                if start < page:
                    made.append(Extent(start, was, page - start))
                first, last = max(start, page), min(start + length, end)
                freed.append((was + first - start, last - first))
                if start + length > end:
                    extent = Extent(end, was + end - start, start + length - end)
                    break
            extent = next(waiting, None)
        made.append(Extent(page, slot, count))
    if extent:
        made.append(extent)
    return [*made, *waiting]


def _joined(pieces: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return pieces (start, count) in ascending order, those that touch joined."""
    pieces.sort()
    made = [pieces[0]]
    for start, count in pieces[1:]:
        last, length = made[-1]
        if last + length == start:
            made[-1] = (last, length + count)
        else:
            made.append((start, count))
    return made


_CUT = "the file of a session's pages is cut short"


def _transfer(
    call: Callable[[int, list[memoryview], int], int], fd: int, memory: memoryview, extents: Iterable[Extent]
) -> None:
    """Move pages between a memory and a file: with each call of the kernel as many as lie together in the file."""
    buffers: list[memoryview] = []
    start = end = size = 0
    for page, slot, count in extents:
        if buffers and (slot != end or len(buffers) == MOST_BUFFERS):
            if call(fd, buffers, start * PAGE) != size:
                raise EOFError(_CUT)
            buffers = []
        if not buffers:
            start, size = slot, 0
        buffers.append(memory[page * PAGE : (page + count) * PAGE])
        end, size = slot + count, size + count * PAGE
    if buffers and call(fd, buffers, start * PAGE) != size:
        raise EOFError(_CUT)
