"""Pages of guest memory in a file: what a checkpoint keeps.

The file has slots of a page each. A table says in which slot each page is. Changed pages are written to free slots and
count only once the change is taken, so a process that dies in between leaves the pages as they were. A worker writes
the file. The server has the same file, and takes the change when it hears that the turn has ended.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from sandbox.memory.memory import MAPPING, PAGE, Runs, give_back, in_memory, share, unmap

MAX_BUFFERS = 1024
"""Of one call of the kernel: IOV_MAX."""
ADDRESSABLE = (1 << 32) // PAGE
WINDOW = 2048
"""Slots from the first on that are mapped where pages are written: copying into them needs no call of the kernel."""


EXTENT_BYTES = 12
"""Of an extent as it is written for another process."""
GRAIN = 256
"""Bytes by which pages are compared: most turns change little of each page that they change."""
_GRAINS = range(0, PAGE, GRAIN)
COMPARED_AT_ONCE = 512
"""Pages that are compared while all of them are mapped: a turn may have written hundreds of megabytes."""


class Extent(NamedTuple):
    """`length` pages of memory from `page` on, in as many slots from `slot` on."""

    page: int
    slot: int
    length: int


@dataclass(frozen=True, slots=True)
class Change:
    """Pages that were written, in ascending order. A `whole` change has all pages there are: others are gone."""

    written: tuple[Extent, ...] = ()
    whole: bool = False
    _encoded: list[bytes] = field(default_factory=list, compare=False, repr=False)

    def encode(self) -> bytes:
        """Write the extents for another process."""
        if not self._encoded:
            self._encoded.append(array("I", [number for extent in self.written for number in extent]).tobytes())
        return self._encoded[0]

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
        for page, slot, length in written:
            if page < end or not 0 < length <= ADDRESSABLE - page or slot + length > 2 * ADDRESSABLE:
                raise ValueError(f"an extent of {length} pages from {page} in slot {slot}")
            end = page + length
        return cls(written, whole)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where runs of pages go: the change this makes, what to copy within memory as (to, from), and what to write."""

    change: Change
    moves: tuple[tuple[memoryview, memoryview], ...]
    beyond: tuple[Extent, ...]


class PageFile:
    """A file of pages, with its table. It owns its descriptor.

    A file whose descriptor is given is another process's as well. A change must not touch the slots that count there.
    """

    def __init__(self, fd: int | None = None, table: Sequence[Extent] = ()) -> None:
        self._shared = fd is not None
        self.fd = in_memory("pages", WINDOW * PAGE) if fd is None else fd
        self.table: Sequence[Extent] = table
        self._end = max((slot + length for _, slot, length in table), default=0)
        self._free: list[tuple[int, int]] | None = None  # (slot, length); None where it is to be found out
        self._window = 0
        self._runs: Runs | None = None
        self._places: list[_Place] = []  # where these runs can be written: one place, or two in turn

    def __len__(self) -> int:
        return sum(extent.length for extent in self.table)

    def write(self, memory: int, runs: Runs, *, whole: bool) -> Change:
        """Write runs of pages of the memory at an address to free slots. `whole` says that all other pages are gone.

        A list of pages that was written before goes to the same slots again. In a shared file it goes to the slots it
        had the time before the last, as those of the last time count for the other process.
        """
        place = self._known_place(runs) if whole else None
        if place is None:
            place = self._new_place(memory, runs, whole=whole)
        for to, source in place.moves:
            to[:] = source
        if place.beyond:
            _transfer(os.pwritev, self.fd, _view(memory, runs), place.beyond)
        return place.change

    def _known_place(self, runs: Runs) -> _Place | None:
        if runs is not self._runs:
            self._runs, self._places = runs, []
        if not self._shared:
            return self._places[0] if self._places else None
        if len(self._places) < 2:
            return None
        return self._places[self.table == self._places[0].change.written]

    def _new_place(self, memory: int, runs: Runs, *, whole: bool) -> _Place:
        first = not self._end  # a session may end after a turn: then a window would not have been worth it
        if not first and not self._window and MAPPING:
            self._window = share(self.fd, WINDOW * PAGE)
        within = WINDOW if self._window else 0
        written = tuple(self._placed(runs))
        source, window = _view(memory, runs), _view(self._window, [(0, within * PAGE)])
        moves = tuple(
            (window[slot * PAGE : (slot + length) * PAGE], source[page * PAGE : (page + length) * PAGE])
            for page, slot, length in written
            if slot + length <= within
        )
        beyond = tuple(extent for extent in written if extent.slot + extent.length > within)
        place = _Place(Change(written, whole), moves, beyond)
        if whole and not first:
            self._places.append(place)
        elif not whole:
            self._runs, self._places = None, []
        return place

    def _placed(self, runs: Runs) -> Iterator[Extent]:
        """Yield the runs in free slots, the lowest first, each run cut where its slots are not together."""
        free = self._holes(self._end) if self._free is None else self._free
        self._free = free
        slot, room = 0, 0
        for at, size in runs:
            page, left = at // PAGE, size // PAGE
            while left:
                if not room:
                    slot, room = free.pop(0) if free else (self._end, 0)
                    if not room:
                        room = left
                        self._end += left
                length = min(left, room)
                yield Extent(page, slot, length)
                page, slot, left, room = page + length, slot + length, left - length, room - length
        if room:
            free.insert(0, (slot, room))

    def trim(self) -> None:
        """Free the memory of slots that nothing counts on. Nobody may be writing the file."""
        for slot, length in self._holes(os.fstat(self.fd).st_size // PAGE):
            give_back(self.fd, slot * PAGE, length * PAGE)

    def _holes(self, end: int) -> list[tuple[int, int]]:
        found, at = [], 0
        for _, slot, length in sorted(self.table, key=_slot):
            if slot > at:
                found.append((at, slot - at))
            at = slot + length
        if at < end:
            found.append((at, end - at))
        return found

    def holds(self, change: Change) -> bool:
        """Whether the file is long enough to have the pages of a change."""
        end = max((slot + length for _, slot, length in change.written), default=0)
        return end * PAGE <= os.fstat(self.fd).st_size

    def take(self, change: Change) -> None:
        """Have a change count: from now on its pages are in the slots it names."""
        if change.whole:
            self.table, self._free = change.written, None
        else:
            freed: list[tuple[int, int]] = []
            self.table = _overlaid(self.table, change.written, freed)
            if self._free is not None:
                self._free = _joined([*self._free, *freed])

    def read_into(self, memory: memoryview) -> None:
        """Put every page into its place in a memory.

        Raises:
            EOFError: the file is shorter than its table says.
        """
        _transfer(os.preadv, self.fd, memory, sorted(self.table, key=_slot))

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

    def slots(self) -> dict[int, int]:
        """Return the slot of each page."""
        return {page + at: slot + at for page, slot, length in self.table for at in range(length)}

    def _slots_of(self, change: Change) -> dict[int, int]:
        """Return the slots of those pages that a change has: they may be few of all."""
        table, slots = self.table, dict[int, int]()
        for page, _, count in change.written:
            at = max(bisect_right(table, page, key=_page) - 1, 0)
            while at < len(table) and table[at].page < page + count:
                first, slot, length = table[at]
                for number in range(max(first, page), min(first + length, page + count)):
                    slots[number] = slot + number - first
                at += 1
        return slots

    def differences(self, change: Change) -> Iterator[tuple[int, bytes]]:
        """Yield what would be other with a change that has not been taken: offsets in memory, and the bytes there.

        Both are multiples of `GRAIN`. A page that is not there yet comes as a whole. One that would be there no more
        comes without bytes, after all others.

        Raises:
            EOFError: the file is too short for the change.
        """
        if not self.holds(change):
            raise EOFError(_CUT)
        slots = self.slots() if change.whole else self._slots_of(change)
        if change.written:
            compared = 0
            with mmap.mmap(self.fd, 0, access=mmap.ACCESS_READ) as file:
                for page, slot, count in change.written:
                    for number in range(page, page + count):
                        compared += 1
                        if compared % COMPARED_AT_ONCE == 0:
                            file.madvise(mmap.MADV_DONTNEED)  # the file keeps them
                        at, was = (slot + number - page) * PAGE, slots.pop(number, None)
                        new = file[at : at + PAGE]
                        if was is None:
                            yield number * PAGE, new
                        elif new != (old := file[was * PAGE : (was + 1) * PAGE]):
                            for start, end in _unequal(old, new):
                                yield number * PAGE + start, new[start:end]
        if change.whole:
            yield from ((number * PAGE, b"") for number in slots)

    def fill(self, runs: Runs, contents: Iterable[bytes]) -> None:
        """Take runs of pages from their contents, in order and one after another. The file must be empty."""
        at = 0
        for piece in contents:
            view = memoryview(piece)
            while view:
                done = os.pwrite(self.fd, view, at)
                view, at = view[done:], at + done
        self.table = list(self._placed(runs))

    def keep(self, table: Sequence[Extent], end: int) -> None:
        """Have the slots of a table count, all of which are before `end`."""
        self.table, self._end, self._free = table, end, None

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
        if self._window:
            unmap(self._window, WINDOW * PAGE)
            self._window = 0
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class Patches:
    """Writes differences into a file of pages that nobody else has."""

    def __init__(self, pages: PageFile) -> None:
        self._pages, self._slots = pages, pages.slots()
        self._end = max(self._slots.values(), default=-1) + 1

    def __len__(self) -> int:
        return len(self._slots)

    def write(self, offset: int, contents: bytes) -> None:
        """Apply a difference.

        Raises:
            ValueError: it is in part of a page that is not there.
            KeyError: it takes away a page that is not there.
        """
        if not contents:
            del self._slots[offset // PAGE]
            return
        view, end = memoryview(contents), offset + len(contents)
        first, last = offset // PAGE, -(-end // PAGE)
        for page, slot, length in _stretches(first, last - first, self._slots):
            start, stop = max(offset, page * PAGE), min(end, (page + length) * PAGE)
            if slot is None:
                if stop - start != length * PAGE:
                    raise ValueError(f"part of page {page}, which is not there")
                slot = self._end
                self._slots.update((page + at, slot + at) for at in range(length))
                self._end += length
            piece, at = view[start - offset : stop - offset], slot * PAGE + start - page * PAGE
            while piece:
                done = os.pwrite(self._pages.fd, piece, at)
                piece, at = piece[done:], at + done

    def finish(self) -> None:
        """Have the file count as it is now."""
        table: list[Extent] = []
        for page, slot in sorted(self._slots.items()):
            last = table[-1] if table else Extent(-1, -1, 0)
            if (last.page + last.length, last.slot + last.length) == (page, slot):
                table[-1] = Extent(last.page, last.slot, last.length + 1)
            else:
                table.append(Extent(page, slot, 1))
        self._pages.keep(table, self._end)


def _stretches(page: int, count: int, slots: Mapping[int, int]) -> Iterator[tuple[int, int | None, int]]:
    """Cut pages into stretches (page, slot, length) that lie together in the file. The slot of missing ones is None."""
    at = 0
    while at < count:
        slot, length = slots.get(page + at), 1
        while at + length < count and slots.get(page + at + length) == (None if slot is None else slot + length):
            length += 1
        yield page + at, slot, length
        at += length


def _unequal(old: bytes, new: bytes) -> Iterator[tuple[int, int]]:
    """Yield the stretches (start, end) in which two pages differ, in multiples of `GRAIN`."""
    start = end = 0
    for at in _GRAINS:
        if old[at : at + GRAIN] != new[at : at + GRAIN]:
            if at != end:
                if end:
                    yield start, end
                start = at
            end = at + GRAIN
    if end:
        yield start, end


def _view(address: int, runs: Runs) -> memoryview:
    """Return memory from an address to the end of the last run."""
    size = sum(runs[-1]) if runs else 0
    return memoryview((ctypes.c_char * size).from_address(address)).cast("B")


def _page(extent: Extent) -> int:
    return extent.page


def _slot(extent: Extent) -> int:
    return extent.slot


def _overlaid(old: Sequence[Extent], new: tuple[Extent, ...], freed: list[tuple[int, int]]) -> list[Extent]:
    """Return the new extents, and the old ones where these leave room; add the slots of the rest to `freed`."""
    extents: list[Extent] = []
    waiting = iter(old)
    extent = next(waiting, None)
    for page, slot, count in new:
        end = page + count
        while extent and extent.page < end:
            start, was, length = extent
            if start + length <= page:
                extents.append(extent)
            else:
                if start < page:
                    extents.append(Extent(start, was, page - start))
                first, last = max(start, page), min(start + length, end)
                freed.append((was + first - start, last - first))
                if start + length > end:
                    extent = Extent(end, was + end - start, start + length - end)
                    break
            extent = next(waiting, None)
        extents.append(Extent(page, slot, count))
    if extent:
        extents.append(extent)
    return [*extents, *waiting]


def _joined(pieces: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return pieces (start, count) in ascending order, those that touch joined."""
    if not pieces:
        return pieces
    pieces.sort()
    joined = [pieces[0]]
    for start, count in pieces[1:]:
        last, length = joined[-1]
        if last + length == start:
            joined[-1] = (last, length + count)
        else:
            joined.append((start, count))
    return joined


_CUT = "the file of a session's pages is cut short"


def _transfer(
    call: Callable[[int, list[memoryview], int], int], fd: int, memory: memoryview, extents: Iterable[Extent]
) -> None:
    """Move pages between a memory and a file: with each call of the kernel as many as lie together in the file."""
    buffers: list[memoryview] = []
    start = end = size = 0
    for page, slot, count in extents:
        if buffers and (slot != end or len(buffers) == MAX_BUFFERS):
            if call(fd, buffers, start * PAGE) != size:
                raise EOFError(_CUT)
            buffers = []
        if not buffers:
            start, size = slot, 0
        buffers.append(memory[page * PAGE : (page + count) * PAGE])
        end, size = slot + count, size + count * PAGE
    if buffers and call(fd, buffers, start * PAGE) != size:
        raise EOFError(_CUT)
