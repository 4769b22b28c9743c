"""A corpus: documents in one file, each in the form the guest's strings have, and an index that says where each is.

The file holds the documents one after another, each with its closing zero character. A large document begins at a page
boundary, so that it can be mapped as it is. The documents' names follow as one more text, a line each.

Layout of the index, little-endian: `RLMC`, version (2 bytes), kind (2), number of documents n (4), 4 zero bytes; then,
for the n documents and their names, n + 1 offsets in bytes (8 each), n + 1 numbers of characters (4), n + 1 numbers of
the first block (4), n + 1 forms (1; 128 is added where no zero character follows).
"""

from __future__ import annotations

import io
import mmap
import os
import struct
import sys
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from enum import IntEnum
from itertools import accumulate, chain
from typing import BinaryIO, NoReturn

from sandbox.corpora.text import Form, Text, encode, narrowest
from sandbox.memory import memory
from sandbox.memory.memory import sealed

BLOCK = 1 << 16
"""Bytes of a document, as it is in memory, that are known to have been looked at together."""

MAPPED_FROM = BLOCK
"""Bytes from which on a document of several is mapped into a guest and not copied."""

MAX_DOCUMENTS = 1 << 24
_MARK, _VERSION = b"RLMC", 1
_HEADER = struct.Struct("<4sHHI4x")
_OPEN = 128
_READ_UP_TO = 1 << 16
_FORMS = list(Form)


class Kind(IntEnum):
    """What a guest sees."""

    TEXT = 1
    """One `str`."""
    DOCUMENTS = 2
    """A sequence of `str`."""


class CorpusDamaged(Exception):
    """The files of a corpus are not what was written."""


class Corpus:
    """Documents in a file, `source`; a sequence of `Text`. `index` is the file that says where each is.

    Both are paths, or descriptors that somebody else keeps open as long as the corpus is used. A corpus without a
    document is a corpus like any other. It has no truth value, so that none can be taken for the lack of one.
    """

    def __init__(self, source: str | int, index: str | int) -> None:
        """Open the index.

        Raises:
            CorpusDamaged: it is no index, or not whole.
            OSError: it cannot be read.
        """
        self.source = source
        self.index = index
        data = _content(index)
        if len(data) < _HEADER.size:
            raise CorpusDamaged("the index of a corpus is cut short")
        mark, version, kind, count = _HEADER.unpack(data[: _HEADER.size])
        records = count + 1
        if mark != _MARK or version != _VERSION or kind not in list(Kind):
            raise CorpusDamaged("the index of a corpus is none, or of another version")
        if len(data) != _HEADER.size + 17 * records:
            raise CorpusDamaged("the index of a corpus is cut short, or was added to")
        self.kind = Kind(kind)
        self._count = count
        self._every: int | None = None
        ends = [_HEADER.size + size * records for size in (8, 12, 16, 17)]
        self._offsets = data[_HEADER.size : ends[0]].cast("Q")
        self._characters = data[ends[0] : ends[1]].cast("I")
        self._blocks = data[ends[1] : ends[2]].cast("I")
        self._forms = data[ends[2] : ends[3]]

    def __len__(self) -> int:
        return int(self._count)

    def __bool__(self) -> NoReturn:
        raise TypeError("whether there is a corpus is `is not None`, and whether it has documents is its length")

    def __getitem__(self, number: int) -> Text:
        if not 0 <= number < self._count:
            raise IndexError(f"there is no document {number}: there are {self._count}")
        return self.text(number)

    def __iter__(self) -> Iterator[Text]:
        return map(self.text, range(self._count))

    def text(self, number: int) -> Text:
        """Return a document, or, of number `len(self)`, the documents' names, a line each."""
        form = self._forms[number]
        if form & ~_OPEN >= len(_FORMS):
            raise CorpusDamaged(f"the index of a corpus gives document {number} no form")
        characters, offset = self._characters[number], self._offsets[number]
        return Text(self.source, _FORMS[form & ~_OPEN], characters, offset, closed=not form & _OPEN)

    @property
    def names(self) -> Text:
        """The documents' names, a line each."""
        return self.text(self._count)

    @property
    def characters(self) -> int:
        """Unicode characters of all documents together."""
        if self._every is None:  # added up once: there may be millions
            self._every = sum(self._characters[: self._count])
        return self._every

    @property
    def blocks(self) -> int:
        """Blocks of all documents together: a document of several that is not mapped is one."""
        return self.first_block(self._count)

    def first_block(self, number: int) -> int:
        """Return the number of a document's first block; of `len(self)`, that of all blocks."""
        return int(self._blocks[number])

    def document_of(self, block: int) -> int:
        """Return the number of the document a block belongs to."""
        return bisect_right(self._blocks, block, 0, self._count) - 1

    def copied(self, number: int) -> bool:
        """Whether a document is small enough to be given to a guest as a copy."""
        return self.kind is Kind.DOCUMENTS and self.text(number).size <= MAPPED_FROM

    @contextmanager
    def opened(self) -> Iterator[tuple[int, int]]:
        """Yield descriptors of the file of the documents and of the index.

        Raises:
            OSError: one cannot be opened.
        """
        with ExitStack() as opened:
            source, index = (
                file if isinstance(file, int) else opened.enter_context(_open(file))
                for file in (self.source, self.index)
            )
            yield source, index

    def part(self, texts: Iterable[Text], kind: Kind) -> bytes:
        """Write the index of a corpus of some of these documents, or of parts of them, in the same file."""
        return index_of(texts, Text(self.source, Form.ASCII, 0, closed=False), kind)

    def selection(self, numbers: Sequence[int]) -> bytes:
        """Write the index of a corpus of these documents, whole ones in their order, in the same file.

        It is what `part` would write of them, in a tenth of the time.
        """
        firsts = self._blocks
        offsets = array("Q", map(self._offsets.__getitem__, numbers))
        characters = array("I", map(self._characters.__getitem__, numbers))
        blocks = array("I", accumulate((firsts[number + 1] - firsts[number] for number in numbers), initial=0))
        forms = bytearray(map(self._forms.__getitem__, numbers))
        offsets.append(0)
        characters.append(0)
        forms.append(_FORMS.index(Form.ASCII) | _OPEN)  # no names
        return _index(self.kind, offsets, characters, blocks, forms)


def index_of(texts: Iterable[Text], names: Text, kind: Kind) -> bytes:
    """Write the index of texts in one file."""
    # A pass that keeps nothing but the index itself: there may be millions of texts.
    offsets, characters, blocks, forms, block = array("Q"), array("I"), array("I"), bytearray(), 0
    for text in chain(texts, (names,)):
        offsets.append(text.offset)
        characters.append(text.characters)
        blocks.append(block)
        forms.append(_FORMS.index(text.form) | (0 if text.closed else _OPEN))
        block += blocks_of(text, kind)
    return _index(kind, offsets, characters, blocks, forms)


def _index(kind: Kind, offsets: array[int], characters: array[int], blocks: array[int], forms: bytearray) -> bytes:
    if sys.byteorder == "big":
        for numbers in (offsets, characters, blocks):
            numbers.byteswap()
    return b"".join((_HEADER.pack(_MARK, _VERSION, kind, len(forms) - 1), offsets, characters, blocks, forms))


def blocks_of(text: Text, kind: Kind) -> int:
    """Return in how many blocks a text lies: the units in which reading it is noticed."""
    if kind is Kind.DOCUMENTS and text.size <= MAPPED_FROM:
        return 1
    return -(-(text.offset % mmap.PAGESIZE + text.size) // BLOCK)


class Writer:
    """Writes the file of a corpus from its first byte on, a document at a time."""

    def __init__(self, out: BinaryIO, kind: Kind) -> None:
        self.texts: list[Text] = []
        self._out = out
        self._kind = kind
        self._at = 0

    def write(self, form: Form, characters: int, pieces: Iterable[bytes]) -> None:
        """Write a document: pieces of its characters in `form`, together `characters` of them."""
        text = Text("", form, characters)
        step = 4 if self._kind is Kind.DOCUMENTS and text.size <= MAPPED_FROM else mmap.PAGESIZE
        start = -(-self._at // step) * step
        self._out.write(bytes(start - self._at))
        for piece in pieces:
            self._out.write(piece)
        self._out.write(bytes(form.width))
        self.texts.append(Text("", form, characters, start))
        self._at = start + text.size

    def finish(self, names: Iterable[str]) -> bytes:
        """Write the documents' names after them, and return the index."""
        lines = "\n".join(names)
        form, data = encode(lines)
        self.write(form, len(lines), [data[: -form.width]])
        names_text = self.texts.pop()
        return index_of(self.texts, names_text, self._kind)


@contextmanager
def in_memory(texts: Sequence[str], kind: Kind, names: Sequence[str] = ()) -> Iterator[Corpus]:
    """Yield a corpus of these texts in sealed files in memory."""
    out = io.BytesIO()
    writer = Writer(out, kind)
    for text in texts:
        form, data = encode(text)
        writer.write(form, len(text), [data[: -form.width]])
    index = writer.finish(names)
    with _sealed(out.getvalue(), "texts") as source, _sealed(index, "index") as descriptor:
        yield Corpus(source, descriptor)


@contextmanager
def copy_of(text: Text) -> Iterator[Corpus]:
    """Yield a corpus of one text of another file, in the narrowest form, in sealed files in memory.

    It is copied a piece at a time, so that no more than the copy is in memory.
    """
    form, source = narrowest(text), memory.in_memory("text")
    try:
        with os.fdopen(source, "wb", closefd=False) as out:
            writer = Writer(out, Kind.TEXT)
            writer.write(form, text.characters, (piece.encode(form.codec) for piece in text.pieces()))
            index = writer.finish(())
        memory.seal(source)
        with _sealed(index, "index") as descriptor:
            yield Corpus(source, descriptor)
    finally:
        os.close(source)


@contextmanager
def part_of(corpus: Corpus, texts: Iterable[Text], kind: Kind) -> Iterator[Corpus]:
    """Yield a corpus of some of another's documents, or of parts of them, without a copy."""
    with _sealed(corpus.part(texts, kind), "index") as descriptor:
        yield Corpus(corpus.source, descriptor)


@contextmanager
def selection_of(corpus: Corpus, numbers: Sequence[int]) -> Iterator[Corpus]:
    """Yield a corpus of some of another's documents, whole ones, without a copy."""
    with _sealed(corpus.selection(numbers), "index") as descriptor:
        yield Corpus(corpus.source, descriptor)


@contextmanager
def _open(path: str) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _sealed(data: bytes, name: str) -> Iterator[int]:
    fd = sealed(data, name)
    try:
        yield fd
    finally:
        os.close(fd)


def _content(index: str | int) -> memoryview:
    """Return what a file holds; a large one is mapped, and so shared by all who do."""
    if not isinstance(index, int):
        with _open(index) as fd:
            return _content(fd)
    size = os.lseek(index, 0, os.SEEK_END)  # a confined process may not ask for more about a file
    return memory.view(index, size) if size > _READ_UP_TO else memoryview(os.pread(index, size, 0))
