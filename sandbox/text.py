"""Texts in the exact form a CPython string has in memory, so that a file of one can be mapped as a real `str`.

CPython keeps a string as a header and then its characters, 1, 2 or 4 bytes each by the widest of them, then a zero
character (PEP 393). The header of a pure ASCII string is shorter.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum

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
    """A text in a file, which holds `characters` characters in `form`, then one zero character, from offset 0.

    `source` is its path, or a descriptor that somebody else keeps open as long as the text is used.
    """

    source: str | int
    form: Form
    characters: int

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
        """Bytes of the file, the closing zero character included."""
        return (self.characters + 1) * self.form.width


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


def header(template: bytes, form: Form, characters: int) -> bytes:
    """Make the header of a mapped string from that of any string of the same form.

    Raises:
        ValueError: the template is not as long as this form's header.
    """
    if len(template) != form.header_bytes:
        raise ValueError(f"a {form.name} string's header has {form.header_bytes} bytes, not {len(template)}")
    made = bytearray(template)
    struct.pack_into("<I", made, 0, IMMORTAL)
    struct.pack_into("<Ii", made, 8, characters, -1)  # length; not hashed yet
    if form is not Form.ASCII:
        struct.pack_into("<II", made, 20, 0, 0)  # no cached UTF-8
    return bytes(made)
