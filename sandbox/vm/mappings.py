"""Documents of corpora mapped over a guest's memory, each as a real `str` there, without a copy.

A document is mapped when the guest first asks for it. A document that the guest no longer holds makes room for others,
so a corpus may be larger than a guest's address space. The page table shows which blocks of a document the guest has
looked at. With each page of a file that is touched, the kernel brings up to 64 KiB around it (`fault_around_bytes`). So
64 KiB is the granularity, and every document starts at a multiple of it.
"""

from __future__ import annotations

import ctypes
import struct
from dataclasses import dataclass
from typing import Protocol

from sandbox.corpora import text
from sandbox.corpora.corpus import BLOCK, Corpus, Kind
from sandbox.corpora.text import Form, Text
from sandbox.door import DoorRefusal, HostCall, Json, Reply, granted
from sandbox.memory import memory, pagetable
from sandbox.memory.memory import PAGE
from sandbox.vm.guest_memory import ADDRESSES

MAX_MAPPED_BYTES = 1 << 30
"""From so much on, documents the guest holds no more make room for others."""
MAX_MAPPED = 1024
"""Documents of one guest mapped at once: a process has some 65,000 mappings in all."""
MAX_COPIED = 1 << 20
"""Bytes of small documents given at once, unless the first alone has more."""
REGION = 1 << 26
"""Bytes of addresses that are taken from the guest's allocator at once, to lay documents over."""

PROBED_FROM = 2 * BLOCK
"""Bytes from which on it is worth finding out how much of a file is brought at once."""

_COUNT, _LENGTH, _STATE, _ITEMS = 0, 8, 16, 12
"""Offsets of a string's reference count, its length and its state, and of a list's items."""
_INTERNED, _KIND = 0x03, 0x7C
"""Bits of a string's state: whether the interpreter keeps it as the one of its value; its form."""
_ALIGNED = 4
"""Where a string's header may begin: the interpreter uses the lowest bits of addresses."""
_HELD_BY_HOST = 1
_NEEDLE = 256
_MAX_TRIES = 64

memory.libc.memmem.restype = ctypes.c_void_p
memory.libc.memmem.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_size_t]
memory.libc.memcmp.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]


@dataclass(frozen=True, slots=True)
class Mapped:
    """A document mapped over guest memory. Its first page is at `address`, a multiple of `BLOCK`."""

    address: int
    corpus: int
    document: int


@dataclass(frozen=True, slots=True)
class Layout:
    """The corpora that a guest can read, and where their documents are mapped. It is part of the guest's state."""

    corpora: tuple[Corpus, ...] = ()
    regions: tuple[tuple[int, int], ...] = ()
    """Addresses that are the mappings', each run as (address, bytes)."""
    mapped: tuple[Mapped, ...] = ()

    @property
    def reserved(self) -> int:
        """Bytes of all those runs."""
        return sum(size for _, size in self.regions)


class Memory(Protocol):
    """The memory of a guest."""

    base: int

    def read(self, address: int, size: int) -> bytes:
        """Copy out of its memory."""
        ...

    def write(self, address: int, data: bytes) -> None:
        """Copy into its memory."""
        ...

    def reserve(self, size: int, reserved: int) -> int | None:
        """Return the address of `size` bytes from the guest's allocator, or None where it has none.

        They are counted apart from the guest's limit, as `reserved` bytes are already.
        """
        ...

    def mappings_changed(self) -> None:
        """Note that mappings over memory changed."""
        ...


class Mappings:
    """The documents of one guest."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._corpora: list[Corpus] = []
        self._regions: list[tuple[int, int]] = []
        self._mapped: dict[tuple[int, int], Mapped] = {}
        self._layout: Layout | None = Layout()
        self._free: list[tuple[int, int]] | None = None
        self._found = (0, 0, 0)  # where `locate` last found a string: corpus, document, and the byte after it
        self.seen: list[int] = []
        """Of each corpus, a bit for each of its blocks the guest has looked at."""

    @property
    def layout(self) -> Layout:
        """The present layout."""
        if self._layout is None:
            self._layout = Layout(tuple(self._corpora), tuple(self._regions), tuple(self._mapped.values()))
        return self._layout

    @property
    def reserved(self) -> int:
        """Bytes of guest memory that are reserved for mappings."""
        return sum(size for _, size in self._regions)

    def restore(self, layout: Layout) -> None:
        """Map everything anew, over memory that is as large as it was.

        Raises:
            OSError: a file cannot be opened or mapped.
            CorpusDamaged, IndexError: a corpus has changed.
        """
        self._corpora, self._regions = list(layout.corpora), list(layout.regions)
        self.seen = [0] * len(layout.corpora)
        for mapped in layout.mapped:
            self._lay(mapped.address, self._corpora[mapped.corpus].text(mapped.document))
            self._mapped[mapped.corpus, mapped.document] = mapped
        self._layout, self._free = layout, None

    def add(self, corpus: Corpus) -> int:
        """Let the guest ask for the documents of a corpus, and return the number by which it names the corpus."""
        self._corpora.append(corpus)
        self.seen.append(0)
        self._layout = None
        return len(self._corpora) - 1

    def begin_turn(self) -> None:
        """Forget what only made the last turn faster, so that the answers of this one do not depend on it."""
        self._found = (0, 0, 0)

    # ---- what the guest asks for ---------------------------------------------------------------------------------

    def give(self, call: HostCall) -> Reply:
        """Answer `sandbox.document(corpus, document, count, templates, box)`.

        A large document is mapped and put into the list `box`. Small ones, up to `count` from `document` on, are copied
        into the reply: `[codec, size in bytes]` for each, and after a line break their bytes.
        """
        number, corpus = self._corpus(call)
        document = call.integer("document")
        try:
            if corpus.copied(document):
                return self._copies(number, document, call.integer("count"))
            self._put(number, document, call)
        except (OSError, EOFError, IndexError, ValueError) as error:
            raise DoorRefusal(type(error).__name__, f"document {document} cannot be had: {error}") from None
        return Reply(granted(None))

    def locate(self, call: HostCall) -> Json:
        """Answer `sandbox.locate(at, templates)`: of which mapped document the string at an address is which part.

        The answer is None where it is part of none.
        """
        at = call.integer("at")
        for mapped in self._mapped.values():
            corpus = self._corpora[mapped.corpus]
            if at == self._string(mapped):
                return _part(mapped, 0, corpus.text(mapped.document).characters)
        kind = self._state(at) & _KIND
        form = next((form for form in Form if self._state(self._template(call, form)) & _KIND == kind), None)
        if form is None:
            return None
        size = struct.unpack("<I", self._memory.read(at + _LENGTH, 4))[0] * form.width
        first = self._memory.read(at + form.header_bytes, min(size, _NEEDLE))
        self._memory.read(at + form.header_bytes + size, 1)  # it ends within memory
        for mapped in sorted(self._mapped.values(), key=lambda m: (m.corpus, m.document) != self._found[:2]):
            document = self._corpora[mapped.corpus].text(mapped.document)
            if document.form is form and size:
                start = self._find(mapped, document, at + form.header_bytes, size, first)
                if start is not None:
                    self._found = mapped.corpus, mapped.document, start + size
                    return _part(mapped, start // form.width, (start + size) // form.width)
        return None

    def _find(self, mapped: Mapped, document: Text, at: int, size: int, first: bytes) -> int | None:
        """Return at which byte of a document a string of the guest's begins, or None where it is not in it.

        The file is read through a mapping of the host's own, so that its blocks do not count as looked at.
        """
        libc, string, length = memory.libc, self._memory.base + at, document.size - document.form.width
        hint = self._found[2] if self._found[:2] == (mapped.corpus, mapped.document) else 0
        with document.opened() as fd, memory.reading(fd, length, document.offset) as base:
            tries = 0
            for start, end in ((hint, length), (0, min(length, hint + size))):
                while end - start >= size and tries < _MAX_TRIES:
                    match = libc.memmem(base + start, end - start, first, len(first))
                    if match is None or match - base + size > end:
                        break
                    offset, tries = int(match - base), tries + 1
                    if offset % document.form.width == 0 and libc.memcmp(match, string, size) == 0:
                        return offset
                    start = offset + 1
        return None

    def _corpus(self, call: HostCall) -> tuple[int, Corpus]:
        number = call.integer("corpus")
        if number >= len(self._corpora):
            raise DoorRefusal("ValueError", f"there is no corpus {number}")
        return number, self._corpora[number]

    def _copies(self, number: int, document: int, count: int) -> Reply:
        corpus, described, data = self._corpora[number], [], bytearray()
        for one in range(document, max(document + 1, min(document + count, len(corpus)))):
            if not corpus.copied(one) or (data and len(data) + corpus.text(one).size > MAX_COPIED):
                break
            content = corpus.text(one)
            characters = content.raw(0, content.characters)
            data += characters
            described.append([content.form.codec, len(characters)])
            if one < len(corpus):
                self.seen[number] |= 1 << corpus.first_block(one)
        return Reply(granted(described) + b"\n" + data)

    # ---- mapping -------------------------------------------------------------------------------------------------

    def _put(self, number: int, document: int, call: HostCall) -> None:
        """Put a document into the guest's list, which takes a reference to it."""
        box = call.integer("box")
        items = struct.unpack("<I", self._memory.read(box + _ITEMS, 4))[0]
        mapped = self._mapped.get((number, document))
        if mapped is None:
            mapped = self._mapped[number, document] = self._map(number, document, call)
            self._layout = None
        else:
            string = self._string(mapped)
            count = self._count(string)
            if count < text.IMMORTAL:
                self._memory.write(string + _COUNT, struct.pack("<I", count + 1))
        self._memory.write(items, struct.pack("<I", self._string(mapped)))

    def _map(self, number: int, document: int, call: HostCall) -> Mapped:
        corpus, content = self._corpora[number], self._corpora[number].text(document)
        if content.offset % _ALIGNED:
            raise ValueError(f"it begins at byte {content.offset} of its file, which is no multiple of {_ALIGNED}")
        template = self._memory.read(self._template(call, content.form), content.form.header_bytes)
        held = text.IMMORTAL if corpus.kind is Kind.TEXT else _HELD_BY_HOST + 1
        header = text.header(template, content.form, content.characters, held)
        mapped = Mapped(self._room(_length(content), corpus.kind), number, document)
        self._lay(mapped.address, content)
        string = self._string(mapped)
        self._memory.write(string, header)
        if not content.closed:
            self._memory.write(string + len(header) + content.size - content.form.width, bytes(content.form.width))
        self._memory.mappings_changed()
        return mapped

    def _lay(self, address: int, content: Text) -> None:
        with content.opened() as fd:
            start, length = content.offset // PAGE * PAGE, _length(content)
            memory.lay_over(self._memory.base + address, length, fd, start)
            if length >= PROBED_FROM and pagetable.can_watch() and pagetable.brings_more(fd, start, length, BLOCK):
                pagetable.watch(
                    self._memory.base + address, length
                )  # in a watched range the kernel brings pages one by one

    def _string(self, mapped: Mapped) -> int:
        content = self._corpora[mapped.corpus].text(mapped.document)
        return mapped.address + content.offset % PAGE - content.form.header_bytes

    def _template(self, call: HostCall, form: Form) -> int:
        templates = call.arguments.get("templates")
        if isinstance(templates, list) and len(templates) == len(Form):
            address = templates[list(Form).index(form)]
            if type(address) is int and 0 <= address < ADDRESSES:
                return address
        raise DoorRefusal("ValueError", "templates must be the addresses of a string of each form")

    def _state(self, string: int) -> int:
        return self._memory.read(string + _STATE, 1)[0]

    def _count(self, string: int) -> int:
        return int(struct.unpack("<I", self._memory.read(string + _COUNT, 4))[0])

    def _is_held(self, mapped: Mapped) -> bool:
        """Whether anything in the guest refers to a document."""
        string = self._string(mapped)
        return self._count(string) != _HELD_BY_HOST or self._state(string) & _INTERNED != 0

    def _room(self, length: int, kind: Kind) -> int:
        """Return the address of `length` free bytes that follow a free page for a header.

        Raises:
            DoorRefusal: there is no room, because the guest holds too much.
        """
        place = self._free_place(length)
        if len(self._mapped) >= MAX_MAPPED or (place is None and self.reserved + length > MAX_MAPPED_BYTES):
            self._let_go()
            place = self._free_place(length)
        if len(self._mapped) >= MAX_MAPPED:
            raise DoorRefusal("MemoryError", f"{MAX_MAPPED} large documents are held at once; let go of some (del)")
        return self._new_region(length, kind) if place is None else place

    def _new_region(self, length: int, kind: Kind) -> int:
        least = length + 2 * BLOCK
        for size in (max(REGION, least), least) if kind is Kind.DOCUMENTS else (least,):
            address = self._memory.reserve(size, self.reserved)
            if address is not None:
                self._regions.append((address, size))
                self._free_places().append((address, address + size))
                place = self._free_place(length)
                if place is not None:
                    return place
        raise DoorRefusal("MemoryError", _NO_ROOM.format(length))

    def _let_go(self) -> None:
        """Unmap every document that only the host still holds."""
        for key, mapped in list(self._mapped.items()):
            if not self._is_held(mapped):
                self._look(mapped)
                del self._mapped[key]
                memory.clear(self._memory.base + mapped.address, self._length(mapped))
        self._layout = self._free = None
        self._memory.mappings_changed()

    def _free_place(self, length: int) -> int | None:
        for number, (start, end) in enumerate(self._free_places()):
            place = _aligned(start)
            if end - place >= length + PAGE:
                self._free_places()[number] = (place + length, end)
                return place
        return None

    def _free_places(self) -> list[tuple[int, int]]:
        """Return the free ranges as (first address, end). They are computed anew when a document was unmapped."""
        if self._free is None:
            taken = sorted((m.address - PAGE, m.address + self._length(m)) for m in self._mapped.values())
            self._free = []
            for address, size in self._regions:
                at = address
                for start, end in taken:
                    if address <= start < address + size:
                        self._free.append((at, start))
                        at = end
                self._free.append((at, address + size))
        return self._free

    def _length(self, mapped: Mapped) -> int:
        return _length(self._corpora[mapped.corpus].text(mapped.document))

    # ---- what was looked at --------------------------------------------------------------------------------------

    def look(self) -> None:
        """Note which blocks the guest has looked at so far."""
        for mapped in self._mapped.values():
            self._look(mapped)

    def _look(self, mapped: Mapped) -> None:
        corpus = self._corpora[mapped.corpus]
        if mapped.document == len(corpus):
            return  # the list of names is not a document
        first = corpus.first_block(mapped.document)
        blocks = corpus.first_block(mapped.document + 1) - first
        every = (1 << blocks) - 1
        if self.seen[mapped.corpus] >> first & every == every:
            return
        touched = 0
        for start, size in pagetable.touched(self._memory.base + mapped.address, self._length(mapped)):
            begin, end = start // BLOCK, -(-(start + size) // BLOCK)
            touched |= (1 << end) - (1 << begin)
        self.seen[mapped.corpus] |= (touched & every) << first


_NO_ROOM = "a document of {} bytes does not fit into what is left of the guest's 4 GiB of addresses; let go of others"


def _part(mapped: Mapped, start: int, end: int) -> Json:
    return {"corpus": mapped.corpus, "document": mapped.document, "start": start, "end": end}


def _length(content: Text) -> int:
    """Return the bytes of all pages that hold part of a text."""
    return memory.pages(content.offset % PAGE + content.size - (0 if content.closed else content.form.width)) or PAGE


def _aligned(address: int) -> int:
    """Return the first address, from this one on, where a document may start: a page for its header comes before."""
    return -(-(address + PAGE) // BLOCK) * BLOCK
