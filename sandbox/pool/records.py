"""What is stored of a session: first a record of all of it, then one of what each turn changed. Each is compressed.

A record is a zstd frame of: length (4 bytes) of a JSON object; the object; a note; differences of memory; the contents
of files that differ. A difference is an offset and a length in grains (4 bytes each) and the bytes. One of no length
takes a page away, and one at no offset is the last. The note is what whoever uses the session wants kept with the turn.
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, BinaryIO, cast

import zstandard

from sandbox.corpora.corpus import Corpus
from sandbox.limits import Limits
from sandbox.memory.memory import PAGE
from sandbox.memory.pages import ADDRESSABLE, GRAIN, PageFile, Patches
from sandbox.pool.sealing import LENGTH, Chain, Opened, Sealed, SnapshotRefused
from sandbox.vm import clocks
from sandbox.vm.checkpoint import Checkpoint
from sandbox.vm.files import Files
from sandbox.vm.instance import Image
from sandbox.vm.mappings import Layout
from sandbox.wire.files import read_files, write_files
from sandbox.wire.sessions import Ended, read_layout, read_seen, write_layout, write_seen

LEVEL = 1
"""Of compression: higher ones take several times as long for a tenth less."""
MAX_NOTE = 4 << 20
"""Bytes of a note."""

_DIFFERENCE = struct.Struct("<II")
_END = _DIFFERENCE.pack(0xFFFFFFFF, 0)
_PIECE = 1 << 20
"""Bytes that are compressed or read at once."""
_MAX_JSON = 16 << 20
_LONGEST = 1 << 20
"""Bytes of one difference: those that `PageFile.contents` yields at once."""


def always() -> None:
    """Go on with whatever it is."""


@dataclass(frozen=True, slots=True)
class Beside:
    """What is stored beside a session's state: for each corpus the blocks that code has looked at, and a note."""

    seen: Sequence[int] = ()
    note: bytes = b""


# ---- writing ---------------------------------------------------------------------------------------------------------


def whole(checkpoint: Checkpoint, beside: Beside) -> Iterator[bytes]:
    """Yield the record of all of a session."""
    files, layout = checkpoint.files, checkpoint.layout
    yield from _record(checkpoint, checkpoint.size, layout, files, {}, _all_pages(checkpoint.pages), beside)


def changed(checkpoint: Checkpoint, ended: Ended, beside: Beside) -> Iterator[bytes]:
    """Yield the record of what a turn would change of a checkpoint that it has not been applied to."""
    pages, layout = checkpoint.pages, ended.layout if ended.layout is not checkpoint.layout else None
    differences = pages.differences(ended.change)
    before = _contents_of(checkpoint.files) if ended.files is not None else {}
    yield from _record(checkpoint, ended.size, layout, ended.files, before, differences, beside)


def unchanged(checkpoint: Checkpoint, beside: Beside) -> Iterator[bytes]:
    """Yield the record of what changed beside a session's state."""
    yield from _record(checkpoint, checkpoint.size, None, None, {}, (), beside)


def _all_pages(pages: PageFile) -> Iterator[tuple[int, bytes]]:
    runs = iter(pages.runs)
    at, end = 0, 0
    for contents in pages.contents():
        if at == end:
            at, size = next(runs)
            end = at + size
        yield at, contents
        at += len(contents)


def _record(
    checkpoint: Checkpoint,
    size: int,
    layout: Layout | None,
    files: Files | None,
    before: Mapping[int, bytes],
    differences: Iterable[tuple[int, bytes]],
    beside: Beside,
) -> Iterator[bytes]:
    header: dict[str, Any] = {"size": size, "clock": clocks.kept(checkpoint.clock_offset)}
    contents = b""
    if layout is not None:
        header["corpora"] = [_described(corpus) for corpus in layout.corpora]
        header["layout"] = write_layout(layout)
    if files is not None:
        header["files"], contents = write_files(files)
        header["same"], contents = _without_same(header["files"], contents, before)
        header["contents"] = len(contents)
    if any(beside.seen):
        header["seen"] = write_seen(beside.seen)
    if beside.note:
        header["note"] = len(beside.note)
    written = json.dumps(header, separators=(",", ":")).encode()
    yield LENGTH.pack(len(written)) + written + beside.note
    for offset, piece in differences:
        yield _DIFFERENCE.pack(offset // GRAIN, len(piece) // GRAIN) + piece
    yield _END
    yield contents


def _contents_of(files: Files) -> dict[int, bytes]:
    """Return the contents of a session's own files by their numbers."""
    return {inode.number: bytes(inode.data) for inode in files.own_inodes()}


def _without_same(header: Mapping[str, Any], contents: bytes, before: Mapping[int, bytes]) -> tuple[list[int], bytes]:
    """Return which of the files that `write_files` wrote have contents as before, and the contents of the others."""
    same: list[int] = []
    others: list[bytes] = []
    at = 0
    for number, _, size, *_ in header["inodes"]:
        data = contents[at : at + size]
        if size and before.get(number) == data:
            same.append(number)
        else:
            others.append(data)
        at += size
    return same, b"".join(others)


def _with_same(header: Mapping[str, Any], same: Container[int], others: bytes, before: Mapping[int, bytes]) -> bytes:
    """Return the contents of all files, as `write_files` wrote them. Raises `KeyError` for one that was not there."""
    found: list[bytes] = []
    at = 0
    for number, _, size, *_ in header["inodes"]:
        if number in same:
            found.append(before[number])
        else:
            found.append(others[at : at + size])
            at += size
    return b"".join([*found, others[at:]])


def _described(corpus: Corpus) -> list[Any]:
    """Return what tells a corpus from others. It does not cover changes to the corpus's files."""
    some = [corpus.text(number) for number in sorted({0, len(corpus) // 2, len(corpus)})]
    return [corpus.kind, len(corpus), corpus.blocks, *([t.form.name, t.characters, t.offset] for t in some)]


def write(record: Iterable[bytes], out: Any, chain: Chain, go_on: Callable[[], None] = always) -> None:
    """Compress and seal a record. What `go_on`, which is called before each piece, raises ends that."""
    sealed = Sealed(out, chain)
    with zstandard.ZstdCompressor(level=LEVEL).stream_writer(cast("BinaryIO", sealed), closefd=False) as packed:
        waiting: list[bytes] = []
        size = 0
        for part in record:
            waiting.append(part)
            size += len(part)
            if size >= _PIECE:
                go_on()
                packed.write(b"".join(waiting))
                waiting, size = [], 0
        go_on()
        packed.write(b"".join(waiting))
    sealed.finish()


# ---- reading ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Rebuilt:
    """A session as its records tell it, one after the other. It owns its pages until `checkpoint` gives them away."""

    image: Image
    corpora: Sequence[Corpus]
    limits: Limits | None = None
    """What the session may have, where it is not known that it keeps to its own limits."""
    seen: list[int] = field(default_factory=list)
    notes: list[bytes] = field(default_factory=list)
    _pages: PageFile = field(default_factory=PageFile)
    _size: int = 0
    _files: Files | None = None
    _layout: Layout | None = None
    _clock: list[int | str] = field(default_factory=list)

    def read(self, source: BinaryIO, chain: Chain, go_on: Callable[[], None]) -> None:
        """Read the next record.

        Raises:
            SnapshotRefused: it cannot be read, or needs other texts.
        """
        opened = io.BufferedReader(Opened(source, chain), 1 << 18)
        with _unpacked(opened) as unpacked:
            self._apply(unpacked.read, go_on)
            if unpacked.read(1) or opened.read(1):
                raise SnapshotRefused("the stored session was added to")

    def checkpoint(self) -> Checkpoint:
        """Return the state after the last record that was read.

        Raises:
            SnapshotRefused: other texts are attached than it was made with.
        """
        if self._files is None or self._layout is None or len(self._layout.corpora) != len(self.corpora):
            raise _other_texts()
        try:
            clock = clocks.taken_up(self._clock)
        except (TypeError, ValueError) as error:
            raise SnapshotRefused("the stored session cannot be read") from error
        return Checkpoint(self.image, self._size, self._pages, self._files, self._layout, clock)

    def close(self) -> None:
        """Free the pages."""
        self._pages.close()

    def _apply(self, read: Callable[[int], bytes], go_on: Callable[[], None]) -> None:
        header, note = _read_head(read)
        if note:
            self.notes.append(note)
        self._size, self._clock = self._read_size(header["size"]), header["clock"]
        if "layout" in header:
            attached = tuple(self.corpora[: len(header["corpora"])])
            if header["corpora"] != [_described(corpus) for corpus in attached]:
                raise _other_texts()
            self._layout = read_layout(header["layout"], attached, self._size)
        self._read_pages(read, go_on)
        if "files" in header:
            others = _exactly(read, self._read_contents(header["contents"]))
            before = _contents_of(self._files) if self._files is not None else {}
            contents = _with_same(header["files"], header["same"], others, before)
            self._files = read_files(header["files"], contents, self.image.files)
            self._check_files(self._files)
        if "seen" in header:
            self.seen = read_seen(header["seen"], self.corpora)

    def _read_size(self, size: int) -> int:
        if not 0 <= size <= ADDRESSABLE * PAGE or size % PAGE:
            raise ValueError(f"{size} bytes of memory")
        return size

    def _read_pages(self, read: Callable[[int], bytes], go_on: Callable[[], None]) -> None:
        patches, since = Patches(self._pages), 0
        most = ADDRESSABLE * PAGE if self.limits is None else max(self.limits.memory_bytes, self.image.size)
        go_on()
        while (found := _exactly(read, _DIFFERENCE.size)) != _END:
            at, size = (number * GRAIN for number in _DIFFERENCE.unpack(found))
            if size > _LONGEST or at + size > self._size:
                raise ValueError(f"{size} bytes of pages at {at}")
            patches.write(at, _exactly(read, size))
            since += size
            if since >= _PIECE:
                go_on()
                since = 0
            if len(patches) * PAGE > most:
                raise SnapshotRefused(f"the stored session has more memory than it may: {most} bytes (memory_bytes)")
        patches.finish()

    def _read_contents(self, size: int) -> int:
        most = 1 << 32 if self.limits is None else max(self.limits.file_bytes, self.image.files.used_bytes)
        if not 0 <= size <= most:
            raise SnapshotRefused(f"the stored session has {size} bytes of files, and may have {most} (file_bytes)")
        return size

    def _check_files(self, files: Files) -> None:
        if self.limits is None:
            return
        had = self.image.files
        for what, value, before, most in (
            ("file_bytes", files.used_bytes, had.used_bytes, self.limits.file_bytes),
            ("files", len(files.writable), len(had.writable), self.limits.files),
            ("open_files", len(files.open), len(had.open), self.limits.open_files),
        ):
            if value > max(before, most):
                raise SnapshotRefused(f"the stored session has {value} of its files, and may have {most} ({what})")


def read_note(source: BinaryIO, chain: Chain) -> bytes:
    """Read the note of the next record, and no more. Raises `SnapshotRefused` as `Rebuilt.read`."""
    with _unpacked(io.BufferedReader(Opened(source, chain), 1 << 18)) as unpacked:
        return _read_head(unpacked.read)[1]


@contextmanager
def _unpacked(opened: io.BufferedReader[Opened]) -> Iterator[zstandard.ZstdDecompressionReader]:
    """Yield what decompresses a record. What shows that it is none becomes `SnapshotRefused`."""
    try:
        with zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(opened, closefd=False) as unpacked:
            yield unpacked
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, zstandard.ZstdError, EOFError) as error:
        raise SnapshotRefused("the stored session cannot be read") from error


def _read_head(read: Callable[[int], bytes]) -> tuple[dict[str, Any], bytes]:
    (length,) = LENGTH.unpack(_exactly(read, LENGTH.size))
    if length > _MAX_JSON:
        raise ValueError(f"{length} bytes of JSON")
    header = json.loads(_exactly(read, length))
    note = header.get("note", 0)
    if not 0 <= note <= MAX_NOTE:
        raise ValueError(f"a note of {note} bytes")
    return header, _exactly(read, note)


def _other_texts() -> SnapshotRefused:
    return SnapshotRefused("the stored session was made with other texts")


def _exactly(read: Callable[[int], bytes], size: int) -> bytes:
    parts = []
    while size:
        part = read(min(size, _PIECE))
        if not part:
            raise EOFError("it ends too early")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
