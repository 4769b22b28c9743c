"""Texts on their way to the server: hashed first, then streamed in chunks, never whole in memory."""

from __future__ import annotations

import codecs
import hashlib
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from os import PathLike, fspath
from os.path import isfile
from pathlib import Path
from typing import BinaryIO

from rlm.v1 import context_pb2

CHUNK_BYTES = 1024 * 1024
"""The most bytes of text in one message."""

Progress = Callable[[int, int], None]
"""Told the bytes sent and the bytes in all. It is called from another thread, and must not raise."""


@dataclass(frozen=True, slots=True)
class Text:
    """One text to upload, measured: its size in bytes of UTF-8 and its SHA-256 in hex."""

    source: Path | bytes
    name: str
    size_bytes: int
    sha256: str

    def parts(self, progress: Progress | None = None) -> Iterator[context_pb2.UploadContextRequest]:
        """Give the messages of one upload: the header, then the chunks in order."""
        header = context_pb2.UploadHeader(name=self.name, size_bytes=self.size_bytes, sha256=self.sha256)
        yield context_pb2.UploadContextRequest(header=header)
        offset = 0
        for data in _chunks(self.source):
            yield context_pb2.UploadContextRequest(chunk=context_pb2.UploadChunk(offset=offset, data=data))
            offset += len(data)
            if progress is not None:
                progress(offset, self.size_bytes)


def measure(source: str | bytes | PathLike[str], name: str | None = None) -> Text:
    """Read a text once, for its size and hash. A `str` or bytes is the text itself, a path names its file.

    Raises:
        OSError: the file cannot be read.
        ValueError: the text is not UTF-8, or a `str` is the name of a file that exists: which of the two was meant?
    """
    held: Path | bytes
    if isinstance(source, str):
        if _names_a_file(source):
            raise ValueError(
                f"{source!r} names a file: pass pathlib.Path({source!r}) for its text, or bytes for this one"
            )
        held, shown = source.encode("utf-8"), name or ""
    elif isinstance(source, bytes):
        held, shown = source, name or ""
    else:
        held = Path(fspath(source))
        shown = held.name if name is None else name
    digest, size = hashlib.sha256(), 0
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for data in _chunks(held):
            decoder.decode(data)
            digest.update(data)
            size += len(data)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{shown or 'the text'} is not UTF-8 ({error.reason} near byte {size + error.start:,}); convert it first"
        ) from None
    return Text(held, shown, size, digest.hexdigest())


def _names_a_file(text: str) -> bool:
    return len(text) < 1024 and "\n" not in text and "\0" not in text and isfile(text)


def _chunks(source: Path | bytes) -> Iterator[bytes]:
    stream: BinaryIO = io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")
    with stream:
        while data := stream.read(CHUNK_BYTES):
            yield data
