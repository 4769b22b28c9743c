"""Uploads of texts and documents. They are measured first, then sent in chunks, and never whole in memory."""

from __future__ import annotations

import codecs
import hashlib
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from rlm.v1 import context_pb2

from rlm_client.documents import MAX_BYTES, Document, SourceChanged, SourceRefused
from rlm_client.source import FileOptions, Material

CHUNK_BYTES = 1 << 20
"""The most bytes of text in one message; the protocol's limit."""

ANNOUNCED_BYTES = 1 << 19
"""Bytes of names and sizes after which one message of them ends."""

_ANNOUNCEMENT_BYTES = 16  # of one document beside its name, at most

Message = context_pb2.UploadContextRequest


@dataclass(frozen=True, slots=True)
class Upload:
    """A measured text or sequence of documents. The header states its size. Made by `measure`.

    `sizes` and `stamps` are those of the documents. `left_out` counts documents that are not uploaded.
    """

    material: Material
    header: context_pb2.UploadHeader
    sizes: array[int]
    stamps: array[int]
    left_out: frozenset[int]

    def messages(self, received_bytes: int = 0, received_documents: int = 0) -> Iterator[Message]:
        """Give the messages of a stream: the header, then what the server does not have yet.

        Raises:
            OSError: a source can no longer be read.
            SourceChanged: a source is not what was measured.
        """
        try:
            yield from self._messages(received_bytes, received_documents)
        except FileNotFoundError as error:
            raise SourceChanged(f"{error.filename} is no longer there; nothing was stored") from None

    def _messages(self, received_bytes: int, received_documents: int) -> Iterator[Message]:
        yield Message(header=self.header)
        packing = _Packing(received_bytes, received_documents)
        start = 0
        for number, document in enumerate(self._documents()):
            end = start + self.sizes[number]
            if not self.material.is_text and number >= received_documents:
                yield from packing.announce(document.name, end - start)
            if end > received_bytes:
                yield from packing.pack(_from(max(received_bytes - start, 0), self._pieces(number, document)))
            start = end
        yield from packing.rest()

    def _documents(self) -> Iterator[Document]:
        """Give the documents to upload, as they were measured."""
        number = 0
        for place, document in enumerate(self.material.documents()):
            if place in self.left_out:
                continue
            if number == len(self.sizes) or document.stamp != self.stamps[number]:
                raise _changed(document.origin)
            yield document
            number += 1
        if number < len(self.sizes):
            raise SourceChanged(f"of {len(self.sizes):,} documents only {number:,} are still there; nothing was stored")

    def _pieces(self, number: int, document: Document) -> Iterator[bytes]:
        left = self.sizes[number]
        for piece in document.pieces():
            left -= len(piece)
            if left < 0:
                raise _changed(document.origin)
            yield piece
        if left:
            raise _changed(document.origin)


def measure(
    material: Material,
    request_id: str = "",
    reading: FileOptions | None = None,
    labels: Mapping[str, str] | None = None,
) -> Upload:
    """Read everything once, for sizes and hash.

    Raises:
        OSError: a file cannot be read.
        SourceRefused: something is not UTF-8 (the file and the byte are named), or there are no documents.
    """
    reading = reading or FileOptions()
    skip_binary = reading.skip_binary and not material.is_text
    digest, sizes, stamps, left_out = hashlib.sha256(), array("q"), array("q"), set[int]()
    for place, document in enumerate(material.documents()):
        before = digest.copy() if skip_binary else digest
        try:
            sizes.append(_measured(document, digest))
        except _NotUtf8 as error:
            if not skip_binary:
                advice = "convert it first" if material.is_text else "convert it, or use skip_binary (--skip-binary)"
                raise SourceRefused(f"{document.origin} is not UTF-8 ({error}); {advice}") from None
            digest = before
            left_out.add(place)
            if reading.on_skip is not None:
                reading.on_skip(document.origin)
        else:
            stamps.append(document.stamp)
    if not material.is_text and not sizes:
        skipped = f" ({len(left_out):,} that are not UTF-8 were left out)" if left_out else ""
        raise SourceRefused(f"there are no documents in {material.name or 'what was given'}{skipped}")
    header = context_pb2.UploadHeader(
        name=material.name,
        size_bytes=sum(sizes),
        sha256=digest.hexdigest(),
        request_id=request_id,
        document_count=0 if material.is_text else len(sizes),
        labels=labels,
    )
    return Upload(material, header, sizes, stamps, frozenset(left_out))


class _NotUtf8(Exception):
    """Says what is wrong, and at which byte."""


def _measured(document: Document, digest: hashlib._Hash) -> int:
    """Add a document to the hash; return its size in bytes."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    size = held = 0
    try:
        for piece in document.pieces():
            if held or not piece.isascii():
                decoder.decode(piece)
                held = len(decoder.getstate()[0])
            digest.update(piece)
            size += len(piece)
            if size > MAX_BYTES:
                raise SourceRefused(f"{document.origin}: one document may have {MAX_BYTES:,} bytes; this one has more")
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise _NotUtf8(f"{error.reason} at byte {size - held + error.start:,}") from None
    return size


def _from(start: int, pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Give the bytes from an offset on."""
    for piece in pieces:
        if start < len(piece):
            yield piece[start:] if start else piece
        start = max(start - len(piece), 0)


def _changed(origin: str) -> SourceChanged:
    return SourceChanged(f"{origin} changed while it was uploaded; nothing was stored")


class _Packing:
    """Gathers announcements and cuts chunks. No chunk comes before its documents are announced."""

    def __init__(self, offset: int, first: int) -> None:
        self._offset = offset
        self._first = first
        self._announced: list[context_pb2.UploadDocument] = []
        self._announced_bytes = 0
        self._chunk = bytearray()

    def announce(self, name: str, size: int) -> Iterator[Message]:
        """Take the next document."""
        document = context_pb2.UploadDocument(name=name, size_bytes=size)
        self._announced.append(document)
        self._announced_bytes += document.ByteSize() + _ANNOUNCEMENT_BYTES
        if self._announced_bytes >= ANNOUNCED_BYTES:
            yield self._announcement()

    def pack(self, pieces: Iterator[bytes]) -> Iterator[Message]:
        """Take the next bytes."""
        for piece in pieces:
            if not self._chunk and len(piece) == CHUNK_BYTES:
                yield from self._send(piece)
                continue
            view = memoryview(piece)
            while view:
                room = CHUNK_BYTES - len(self._chunk)
                self._chunk += view[:room]
                view = view[room:]
                if len(self._chunk) == CHUNK_BYTES:
                    yield from self._send(self._cut())

    def rest(self) -> Iterator[Message]:
        """Give what is left."""
        if self._chunk:
            yield from self._send(self._cut())
        if self._announced:
            yield self._announcement()

    def _cut(self) -> bytes:
        data = bytes(self._chunk)
        self._chunk.clear()
        return data

    def _send(self, data: bytes) -> Iterator[Message]:
        if self._announced:
            yield self._announcement()
        yield Message(chunk=context_pb2.UploadChunk(offset=self._offset, data=data))
        self._offset += len(data)

    def _announcement(self) -> Message:
        message = Message(documents=context_pb2.UploadDocuments(first_document=self._first, documents=self._announced))
        self._first += len(self._announced)
        self._announced.clear()
        self._announced_bytes = 0
        return message
