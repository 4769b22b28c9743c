"""A document on its way into a context: where it is read from, and what of it can be wrong."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

PIECE_BYTES = 1 << 20
"""The most bytes of a document that are read at once."""

MAX_NAME = 500
"""Characters of a document's name; the protocol's limit."""

MAX_BYTES = 2 << 30
"""Of one document: no more fits into the address space of the code that reads it; the server's limit."""

_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")

Text = str | bytes
"""A text in memory; bytes are UTF-8."""


class SourceRefused(ValueError):
    """A source cannot be uploaded as it is. The message names it, the place in it, and the limit where there is one."""


class SourceChanged(ValueError):
    """A source changed between its measuring and the end of its upload; nothing was stored."""


@dataclass(frozen=True, slots=True)
class Document:
    """One document, read as often as asked.

    `origin` says in errors where it is. `pieces` gives its bytes anew with each call; of an archive's documents, only
    until the next one is asked for. `stamp` changes when the file it is read from does; it is 0 in memory.

    Raises:
        SourceRefused: the name is too long, has control characters, or is not Unicode.
    """

    name: str
    origin: str
    pieces: Callable[[], Iterator[bytes]]
    stamp: int = 0

    def __post_init__(self) -> None:
        if len(self.name) > MAX_NAME:
            start = f"{self.name[:40]!r}…"
            raise SourceRefused(f"{self.origin}: a document's name may have {MAX_NAME} characters; {start} has more")
        if self.name.isprintable():
            return
        if _CONTROLS.search(self.name):
            raise SourceRefused(
                f"{self.origin}: a document's name must be one line without control characters, unlike {self.name!r}"
            )
        try:
            self.name.encode("utf-8")
        except UnicodeEncodeError:
            raise SourceRefused(f"{self.origin}: the document's name is not UTF-8: {self.name!r}") from None


def in_memory(name: str, text: Text, origin: str | None = None) -> Document:
    """Make a document of a text.

    Raises:
        TypeError: it is no text.
    """
    origin = f"document {name[:MAX_NAME]!r}" if origin is None else origin
    if not isinstance(text, str | bytes):
        raise TypeError(f"{origin}: a text is a str or bytes, not {type(text).__name__}")
    return Document(name, origin, partial(_pieces_in_memory, text, origin))


def in_file(name: str, path: str) -> Document:
    """Make a document of a file's whole content.

    Raises:
        OSError: it is not there.
        SourceRefused: it is a pipe or a device, which gives its content only once.
    """
    return Document(name, path, partial(_pieces_in_file, path), stamp_of(path))


def stamp_of(path: str) -> int:
    """Give a number that a change of the file changes, as far as its times and size tell. Raises as `in_file` does."""
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise SourceRefused(f"{path} is not a regular file, and an upload reads it twice: pass its content instead")
    return hash((status.st_mtime_ns, status.st_size, status.st_ino))


def encoded(text: str, origin: str) -> bytes:
    """Give a text as UTF-8.

    Raises:
        SourceRefused: it has half a surrogate pair, which no UTF-8 has.
    """
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise SourceRefused(f"{origin} has half a surrogate pair at character {error.start:,}") from None


def _pieces_in_memory(text: Text, origin: str) -> Iterator[bytes]:
    data = encoded(text, origin) if isinstance(text, str) else text
    if len(data) <= PIECE_BYTES:
        yield data
        return
    for start in range(0, len(data), PIECE_BYTES):
        yield data[start : start + PIECE_BYTES]


def _pieces_in_file(path: str) -> Iterator[bytes]:
    with open(path, "rb", buffering=0) as file:
        while data := file.read(PIECE_BYTES):
            yield data
