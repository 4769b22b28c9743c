"""The files in a .zip archive, as documents. Nothing is ever written to disk.

An archive states how much it contains, and a hostile one lies. So bytes and entries are counted while it is unpacked.
"""

from __future__ import annotations

import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from io import BufferedReader, FileIO

from rlm_client.documents import PIECE_BYTES, Document, SourceRefused, stamp_of

_RATIO_COUNTS_FROM = 16 << 20  # bytes unpacked; what is less harms nobody, however small it was packed
_MAX_ENTRY_HEADER = 1 << 10  # bytes of the archive's list of contents, for each entry allowed
_ENTRY_MARK = b"PK\x01\x02"  # begins every entry of that list
# Of the other methods Python's unpackers give a whole block at once, however large.
_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
_ENCRYPTED = 0x1
# What zipfile raises where an archive's parts contradict each other; the last two where they point to nowhere.
_DAMAGED = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError, OSError, ValueError)


@dataclass(frozen=True, slots=True)
class ArchiveLimits:
    """What an archive may unpack to: bytes of all its files together, entries, and bytes for each byte of the archive.

    The ratio counts from 16 MiB unpacked on.
    """

    unpacked_bytes: int = 4 << 30
    entries: int = 200_000
    ratio: int = 200


def documents(path: str, prefix: str, limits: ArchiveLimits) -> Iterator[Document]:
    """Give every file of an archive, sorted by its path, and named by that path after the prefix.

    Hidden files and folders (a leading dot, `__MACOSX`) are left out.

    Raises:
        OSError: the archive cannot be read.
        SourceRefused: it is damaged, encrypted or packed in an unusual way; an entry's name leads out of it or is a
            link; or it unpacks to more than the limits allow.
    """
    stamp = stamp_of(path)
    with _Contents(path, limits.entries) as file, _opened(path, file) as opened:
        unpacking = _Unpacking(path, opened, os.fstat(file.fileno()).st_size, limits)
        for place, entry in sorted(_files(path, opened), key=lambda each: each[0]):
            name = "/".join([prefix, *place] if prefix else place)
            yield Document(name, f"{path}: {entry.filename!r}", partial(unpacking.pieces, entry), stamp)


class _Contents(BufferedReader):
    """An archive's file. It refuses to read a list of contents with too many entries, before it parses any."""

    def __init__(self, path: str, entries: int) -> None:
        super().__init__(FileIO(path))
        self._path = path
        self._entries = entries
        self.is_listing = True

    def read(self, size: int | None = -1, /) -> bytes:
        if not self.is_listing or size is None or size < 0:  # without a size only the archive's end is read
            return super().read(size)
        most = self._entries * _MAX_ENTRY_HEADER + (1 << 17)  # and what an archive's end may have
        if size > most:
            raise SourceRefused(f"{self._path}: its list of contents has {size:,} bytes; {most:,} are allowed")
        data = super().read(size)
        if data.count(_ENTRY_MARK) > self._entries:
            raise SourceRefused(f"{self._path}: an archive may have {self._entries:,} entries; this one has more")
        return data


def _opened(path: str, file: _Contents) -> zipfile.ZipFile:
    try:
        opened = zipfile.ZipFile(file)
    except SourceRefused:
        raise
    except _DAMAGED as error:
        raise SourceRefused(f"{path} is not a zip archive, or is damaged: {error}") from None
    file.is_listing = False
    return opened


def _files(path: str, opened: zipfile.ZipFile) -> Iterator[tuple[list[str], zipfile.ZipInfo]]:
    """Give the archive's files with the parts of their paths. Every entry is checked, also those that are left out."""
    for entry in opened.infolist():
        origin = f"{path}: {entry.orig_filename[:500]!r}"
        # Archives made on Windows may have its separators; zipfile cuts a name at a zero character.
        whole = entry.orig_filename.replace("\\", "/")
        place = [part for part in whole.split("/") if part not in ("", ".")]
        if "\0" in whole:
            raise SourceRefused(f"{origin}: an entry's name must not have a zero character")
        if whole.startswith("/") or (whole[:1].isalpha() and whole[1:2] == ":"):
            raise SourceRefused(f"{origin}: an entry's name must not be absolute")
        if ".." in place:
            raise SourceRefused(f"{origin}: an entry's name must not lead out of the archive")
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise SourceRefused(f"{origin}: an entry must not be a link")
        if whole.endswith("/") or not place or any(part.startswith(".") or part == "__MACOSX" for part in place):
            continue
        if entry.flag_bits & _ENCRYPTED:
            raise SourceRefused(f"{origin}: an entry must not be encrypted")
        if entry.compress_type not in _METHODS:
            raise SourceRefused(
                f"{origin}: an entry must be stored or deflated, not packed by method {entry.compress_type}"
            )
        yield place, entry


class _Unpacking:
    """Unpacks an archive's files, and counts what comes out."""

    def __init__(self, path: str, opened: zipfile.ZipFile, size: int, limits: ArchiveLimits) -> None:
        self._path = path
        self._opened = opened
        self._size = size
        self._limits = limits
        self._unpacked = 0

    def pieces(self, entry: zipfile.ZipInfo) -> Iterator[bytes]:
        """Give a file's bytes."""
        try:
            with self._opened.open(entry) as file:
                while data := file.read(PIECE_BYTES):
                    self._count(len(data))
                    yield data
        except SourceRefused:
            raise
        except _DAMAGED as error:
            raise SourceRefused(f"{self._path}: {entry.filename!r} is damaged: {error}") from None

    def _count(self, size: int) -> None:
        self._unpacked += size
        if self._unpacked > self._limits.unpacked_bytes:
            raise SourceRefused(
                f"{self._path}: an archive may unpack to {self._limits.unpacked_bytes:,} bytes; this one has more"
            )
        if self._unpacked > max(self._size * self._limits.ratio, _RATIO_COUNTS_FROM):
            raise SourceRefused(
                f"{self._path}: an archive may unpack to {self._limits.ratio} times its size of {self._size:,} bytes; "
                "this one has more, as a zip bomb has: if it is none, unpack it and upload the directory"
            )
