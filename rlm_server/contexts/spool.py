"""The spool: an upload as it came. Its bytes are in one file, and the list of its documents in another.

A folder holds `texts`, exactly the bytes received, and `documents`, with a line `<bytes> <name>` for each document
announced. An upload continues after a restart once both files are read again.
"""

from __future__ import annotations

import codecs
import hashlib
import os
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from sandbox.corpora.corpus import BLOCK, Kind
from sandbox.corpora.text import Form
from sandbox.memory import memory

CHUNK = 1 << 20
"""Bytes of an upload that may come at once."""
PIECE = BLOCK
"""Bytes written to a file of texts at once: the page cache then keeps it in folios no larger, and no more is mapped
where a guest touches a page."""
FLUSHED = 8 << 20
"""Bytes that are flushed to the disk together while more are received, so that little is left to flush at the end."""
MAX_DOCUMENT = 2 << 30
"""Bytes of one document: more does not fit into a guest's address space beside its own memory."""
MAX_DOCUMENTS = 1_000_000
"""Documents of one context."""
MAX_DOCUMENT_NAME = 500
"""Characters of a document's name."""
MAX_NAMES = 128 << 20
"""Bytes of all documents' names and sizes, written out: a guest has the names in memory."""

_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_FORMS = list(Form)
_SMALL = 256
"""Bytes up to which Python's own `max` is the quicker one."""


_WRITERS = ThreadPoolExecutor(8, thread_name_prefix="upload-writer")
"""One of these threads writes what has arrived, while another hashes and checks it."""


class UploadRefused(Exception):
    """An upload contradicts its header, or is not allowed. `field` names what is wrong. Nothing of it is kept."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


class UploadShort(UploadRefused):
    """A stream ended before all of an upload had arrived. An upload with a request id is kept, to be continued."""


class Stopped(Exception):
    """The server stops. The work it stopped can be done again."""


@dataclass(frozen=True, slots=True)
class Header:
    """An upload as its first message describes it, checked. `documents` is 0 for one text."""

    tenant: str
    request_id: str | None
    name: str
    size_bytes: int
    sha256: str
    documents: int
    labels: Mapping[str, str] = field(default_factory=dict)
    passing: bool = False
    """Whether its context goes with a run."""

    @property
    def kind(self) -> Kind:
        """What the guest will see."""
        return Kind.DOCUMENTS if self.documents else Kind.TEXT


class Spool:
    """The upload in a folder. Its methods do blocking work; one may run at a time."""

    def __init__(self, folder: Path, header: Header) -> None:
        self.header = header
        self.texts = folder / "texts"
        self.received = 0
        """Bytes of the text."""
        self.announced = 0
        """Documents."""
        self.sizes = array("Q")
        """Bytes of each document announced."""
        self.characters = array("I")
        """Of each document that is whole."""
        self.hash = hashlib.sha256()
        self._documents = folder / "documents"
        self._documents_bytes = 0
        self._announced_bytes = 0
        self._forms = bytearray()
        self._left: int | None = None  # bytes of the present document; None between documents
        self._widest = 0  # byte of the present document
        self._counted = 0  # characters of the present document
        self._held = b""  # the beginning of a character
        if header.kind is Kind.TEXT:
            self._enter(header.size_bytes)

    @classmethod
    def open(cls, folder: Path, header: Header, stopped: Callable[[], bool] = lambda: False) -> Spool:
        """Begin an upload in a folder, or continue the one that is there.

        Raises:
            OSError, ValueError, UploadRefused: the folder cannot be read as an upload.
            Stopped: `stopped` said so.
        """
        spool = cls(folder, header)
        folder.mkdir(mode=0o700, exist_ok=True)
        for path in (spool._documents, spool.texts):
            path.touch(mode=0o600)
            path.chmod(0o600)  # one that was nearly finished is read-only
        with spool._documents.open("rb") as lines:
            for line in lines:
                if not line.endswith(b"\n"):
                    break  # a process that died wrote this
                spool._documents_bytes += len(line)
                spool._enter(int(line[: line.index(b" ")]))
        with spool.texts.open("rb", buffering=0) as file:
            while data := file.read(min(CHUNK, spool._announced_bytes - spool.received)):
                if stopped():
                    raise Stopped
                spool._check(data)
        return spool

    @staticmethod
    def measure(folder: Path) -> tuple[int, int]:
        """Return how many bytes and documents an upload in a folder has, without reading its bytes.

        Raises:
            OSError: the folder or a file of it is not there.
        """
        with (folder / "documents").open("rb") as lines:
            documents = sum(data.count(b"\n") for data in iter(lambda: lines.read(CHUNK), b""))
        return (folder / "texts").stat().st_size, documents

    # ---- as it comes ---------------------------------------------------------------------------------------------

    def announce(self, first: int, documents: Iterable[tuple[str, int]]) -> None:
        """Take the names and sizes of the next documents.

        Raises:
            UploadRefused: a gap, a bad name or size, or more than the header says.
        """
        if self.header.kind is Kind.TEXT:
            raise UploadRefused("documents", "header.document_count is 0: the whole is one text")
        if first != self.announced:
            raise UploadRefused("documents.first_document", f"the next document is {self.announced}, not {first}")
        lines = bytearray()
        for number, (name, size) in enumerate(documents):
            self._check_document(f"documents.documents[{number}]", name, size)
            lines += b"%d %s\n" % (size, name.encode())
            self._enter(size)
        _write(self._documents, lines, self._documents_bytes)
        self._documents_bytes += len(lines)

    def _check_document(self, field: str, name: str, size: int) -> None:
        if self.announced >= self.header.documents:
            raise UploadRefused("header.document_count", f"more than the {self.header.documents} announced came")
        if self._documents_bytes > MAX_NAMES:
            raise UploadRefused(f"{field}.name", f"the names of all documents may have {MAX_NAMES} bytes together")
        if len(name) > MAX_DOCUMENT_NAME:
            raise UploadRefused(f"{field}.name", f"may have {MAX_DOCUMENT_NAME} characters, not {len(name)}")
        if control := _CONTROLS.search(name):
            wrong = f"U+{ord(control.group()):04X} at {control.start()}"
            raise UploadRefused(f"{field}.name", f"must be one line without control characters, not with {wrong}")
        if not 0 <= size <= MAX_DOCUMENT:
            raise UploadRefused(f"{field}.size_bytes", f"must be from 0 to {MAX_DOCUMENT}, not {size}")
        together, whole = self._announced_bytes + size, self.header.size_bytes
        if together > whole:
            raise UploadRefused(f"{field}.size_bytes", f"all documents have {whole} bytes together, not {together}")
        if self.announced + 1 == self.header.documents and together < whole:
            raise UploadRefused("header.size_bytes", f"{whole} bytes announced, but the documents have {together}")

    def add(self, offset: int, data: bytes) -> None:
        """Take the next bytes.

        Raises:
            UploadRefused: a gap, a chunk too long, more than announced, or not UTF-8 (the byte is named).
            OSError: it cannot be written; the upload must then be opened anew.
        """
        if offset != self.received:
            raise UploadRefused("chunk.offset", f"the next chunk must start at {self.received}, not {offset}")
        if len(data) > CHUNK:
            raise UploadRefused("chunk.data", f"a chunk may have {CHUNK} bytes, not {len(data)}")
        end = self.received + len(data)
        if end > self.header.size_bytes:
            raise UploadRefused("header.size_bytes", f"more than the {self.header.size_bytes} bytes announced arrived")
        if end > self._announced_bytes:
            raise UploadRefused("chunk.data", f"byte {self._announced_bytes} belongs to no document announced so far")
        writing = _WRITERS.submit(_write, self.texts, data, self.received)  # while it is hashed and checked
        try:
            self._check(data)
        finally:
            wait((writing,))
        writing.result()

    def _enter(self, size: int) -> None:
        self.sizes.append(size)
        self.announced += self.header.kind is Kind.DOCUMENTS
        self._announced_bytes += size
        if self._left is None:
            self._next_document()

    def _next_document(self) -> None:
        """Go on to the next document that has bytes, if one is announced."""
        while self._left is None and len(self.characters) < len(self.sizes):
            self._left, self._widest, self._counted = self.sizes[len(self.characters)], 0, 0
            self._close_full()

    def _close_full(self) -> None:
        if self._left == 0:
            self.characters.append(self._counted)
            self._forms.append(_FORMS.index(_form(self._widest)))
            self._left = None

    def _check(self, data: bytes) -> None:
        """Count and check bytes of announced documents."""
        plain, view, at = data.isascii(), memoryview(data), 0
        while at < len(data):
            left = self._left or 0
            piece = view[at : at + left]
            self._left = left - len(piece)
            if plain and not self._held:
                self._counted += len(piece)
            else:
                self._decode(piece, self.received + at, final=self._left == 0)
            at += len(piece)
            self._close_full()
            self._next_document()
        self.hash.update(data)
        self.received += len(data)

    def _decode(self, piece: memoryview, at: int, *, final: bool) -> None:
        data = self._held + piece
        try:
            text, used = codecs.utf_8_decode(data, "strict", final)
        except UnicodeDecodeError as error:
            raise UploadRefused(
                "chunk.data", self._not_utf8(at - len(self._held) + error.start, error.reason)
            ) from None
        self._counted += len(text)
        self._held = data[used:]
        if self._widest < 0xF0:
            self._widest = max(self._widest, _max(data))

    def _not_utf8(self, at: int, reason: str) -> str:
        if self.header.kind is Kind.TEXT:
            return f"the text is not UTF-8 at byte {at}: {reason}"
        number = len(self.characters)
        inside = at - sum(self.sizes[:number])
        name = next(islice(self.names(), number, None), "")
        return f"document {number} ({name!r}) is not UTF-8 at byte {at}, its byte {inside}: {reason}"

    # ---- as a whole ----------------------------------------------------------------------------------------------

    def check_complete(self) -> None:
        """Refuse an upload that is incomplete.

        Raises:
            UploadShort: bytes or documents are missing.
        """
        header = self.header
        if self.received != header.size_bytes:
            raise UploadShort("header.size_bytes", f"{header.size_bytes} bytes announced, {self.received} arrived")
        if self.announced != header.documents:
            raise UploadShort("header.document_count", f"{header.documents} announced, {self.announced} arrived")

    def check_whole(self) -> None:
        """Refuse an upload that is incomplete, or not what its header said.

        Raises:
            UploadShort, UploadRefused: as `check_complete` does; or it has another hash.
        """
        self.check_complete()
        size, sha256 = self.header.size_bytes, self.header.sha256
        if self.hash.hexdigest() != sha256:
            raise UploadRefused("header.sha256", f"the text's SHA-256 is {self.hash.hexdigest()}, not {sha256}")
        os.truncate(self.texts, size)

    def identity(self) -> str:
        """Return a SHA-256 over the kind, the text, and the documents' names and sizes."""
        identity = hashlib.sha256(f"{self.header.kind} {self.header.sha256}\n".encode())
        with self._documents.open("rb") as file:
            while data := file.read(CHUNK):
                identity.update(data)
        return identity.hexdigest()

    def form(self, number: int) -> Form:
        """Return the form of a complete document."""
        return _FORMS[self._forms[number]]

    def names(self) -> Iterator[str]:
        """Yield the names of all documents announced."""
        with self._documents.open("rb") as lines:
            for line in lines:
                yield line[:-1].partition(b" ")[2].decode()


def _form(widest: int) -> Form:
    """Return the form of a text from the greatest byte of its UTF-8: the first byte of a character tells its width."""
    if widest < 0xC4:
        return Form.ASCII if widest < 0x80 else Form.LATIN1
    return Form.UCS2 if widest < 0xF0 else Form.UCS4


def _max(data: bytes) -> int:
    if len(data) <= _SMALL:
        return max(data, default=0)
    import numpy as np  # here, because a server starts without it, and most uploads have only ASCII

    return int(np.frombuffer(data, np.uint8).max())


def _write(path: Path, data: bytes | bytearray, at: int) -> None:
    """Write at an offset, over what a failed attempt may have left there."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        view = memoryview(data)
        while view:
            written = os.pwrite(fd, view[: PIECE - at % PIECE], at)
            view, at = view[written:], at + written
            if at % FLUSHED == 0:
                memory.begin_to_flush(fd, at - FLUSHED, FLUSHED)
    finally:
        os.close(fd)
