"""Texts in the exact form a CPython string has in memory, so that a file of one can be mapped as a real `str`.

CPython keeps a string as a header, its characters, and a zero character (PEP 393). Each character has 1, 2 or 4 bytes,
by the widest of them. The header of a pure ASCII string is shorter.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum

_PIECE = 1 << 20
"""Characters that are looked at together."""

IMMORTAL = 0x3FFFFFFF
"""A reference count that CPython on 32 bits neither raises nor lowers (PEP 683)."""


class Form(Enum):
    """The four forms: (bytes a character, the codec that writes it, a character that needs it)."""

    ASCII = (1, "ascii", "a")
    LATIN1 = (1, "latin-1", "\xe9")
    UCS2 = (2, "utf-16-le", "\u4e2d")
    UCS4 = (4, "utf-32-le", "\U0001f600")

    @property
    def width(self) -> int:
        """Bytes a character."""
        return self.value[0]

    @property
    def codec(self) -> str:
        """The codec that writes characters in this form."""
        return self.value[1]

    @property
    def sample(self) -> str:
        """A character that makes CPython choose this form."""
        return self.value[2]

    @property
    def header_bytes(self) -> int:
        """Bytes before the characters, in 32-bit CPython."""
        return 20 if self is Form.ASCII else 28

    @classmethod
    def of(cls, widest: int) -> Form:
        """Return the form of a text whose widest character has this code point."""
        if widest < 0x100:
            return cls.ASCII if widest < 0x80 else cls.LATIN1
        return cls.UCS2 if widest < 0x10000 else cls.UCS4


@dataclass(frozen=True, slots=True)
class Text:
    """A text in a file, which holds `characters` characters in `form` from byte `offset` on.

    `source` is its path, or a descriptor that somebody else keeps open as long as the text is used. A zero character
    follows where the text is `closed`; it is not where it is part of a longer one.
    """

    source: str | int
    form: Form
    characters: int
    offset: int = 0
    closed: bool = True

    @contextmanager
    def opened(self) -> Iterator[int]:
        """Yield a descriptor of the file.

        Raises:
            OSError: it cannot be opened.
        """
        if isinstance(self.source, int):
            yield self.source
            return
        fd = os.open(self.source, os.O_RDONLY | os.O_CLOEXEC)
        try:
            yield fd
        finally:
            os.close(fd)

    @property
    def size(self) -> int:
        """Bytes in memory, the closing zero character included."""
        return (self.characters + 1) * self.form.width

    @contextmanager
    def viewed(self) -> Iterator[memoryview]:
        """Yield the bytes of the characters, mapped, not read.

        Raises:
            OSError: the file cannot be opened.
            ValueError: the file is too short.
        """
        length = self.characters * self.form.width
        start = self.offset // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
        skip = self.offset - start
        if not length:
            yield memoryview(b"")
            return
        with self.opened() as fd, mmap.mmap(fd, skip + length, access=mmap.ACCESS_READ, offset=start) as mapped:
            view = memoryview(mapped)
            try:
                with view[skip:] as characters:
                    yield characters
            finally:
                view.release()

    def read(self, start: int, end: int) -> str:
        """Return the characters from `start` up to `end`, or up to the text's end.

        Raises:
            OSError: the file cannot be read.
            EOFError: the file is too short.
        """
        return self.raw(start, end).decode(self.form.codec)

    def raw(self, start: int, end: int) -> bytes:
        """Return the bytes of the characters from `start` up to `end`. Raises as `read` does."""
        width = self.form.width
        start, end = min(start, self.characters), min(end, self.characters)
        size = max(0, end - start) * width
        with self.opened() as fd:
            data = os.pread(fd, size, self.offset + start * width)
        if len(data) < size:
            raise EOFError(f"the file of a text ends {size - len(data)} bytes too early")
        return data

    def pieces(self) -> Iterator[str]:
        """Yield the characters in pieces of bounded size. Raises as `read` does."""
        for start in range(0, self.characters, _PIECE):
            yield self.read(start, start + _PIECE)

    def part(self, start: int, end: int) -> Text:
        """Return the characters from `start` up to `end` as a text in the same file.

        The caller sees to it that one of the characters needs this form: else no string of the guest's may be in it.
        """
        offset = self.offset + start * self.form.width
        return Text(self.source, self.form, end - start, offset, closed=self.closed and end == self.characters)


def narrowest(text: Text) -> Form:
    """Return the form that a string of a text's characters has, which may be narrower than the file's.

    The text is looked at a piece at a time. Raises as `Text.read` does.
    """
    widest, width = 0, text.form.width
    if text.form is Form.ASCII:
        return Form.ASCII
    for start in range(0, text.characters, _PIECE):
        raw = text.raw(start, start + _PIECE)
        # The bytes of each place, from the highest on: the first that is not 0 tells how wide the widest character is.
        for place in range(width - 1, -1, -1):
            column = raw[place::width]
            if place and column.count(0) < len(column):
                widest = max(widest, 1 << (8 * place))
                break
            if not place and not column.isascii():
                widest = max(widest, 0x80)
        if Form.of(widest) is text.form:
            break
    return Form.of(widest)


def encode(text: str) -> tuple[Form, bytes]:
    """Return a text's form and its bytes in it, closing zero character included.

    Raises:
        UnicodeEncodeError: the text holds a lone surrogate.
    """
    for form in (Form.ASCII, Form.LATIN1):
        with suppress(UnicodeEncodeError):
            return form, text.encode(form.codec) + bytes(form.width)
    data = text.encode(Form.UCS2.codec)
    form = Form.UCS2 if len(data) == 2 * len(text) else Form.UCS4
    return form, (data if form is Form.UCS2 else text.encode(form.codec)) + bytes(form.width)


def header(template: bytes, form: Form, characters: int, references: int = IMMORTAL) -> bytes:
    """Make the header of a mapped string from that of any string of the same form.

    Raises:
        ValueError: the template is not as long as this form's header.
    """
    if len(template) != form.header_bytes:
        raise ValueError(f"a {form.name} string's header has {form.header_bytes} bytes, not {len(template)}")
    header_bytes = bytearray(template)
    struct.pack_into("<I", header_bytes, 0, references)
    struct.pack_into("<Ii", header_bytes, 8, characters, -1)  # length; not hashed yet
    if form is not Form.ASCII:
        struct.pack_into("<II", header_bytes, 20, 0, 0)  # no cached UTF-8
    return bytes(header_bytes)
