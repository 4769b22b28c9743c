"""The stored form of a session: it is written when the session hibernates, and read when it wakes.

A header names the version, the owner and the image. The state follows, compressed (zstd), in chunks that each carry a
tag. The key of the tags is derived from a secret of the server, the owner and the image. So a stored session is refused
before any of it is used if it was altered, cut, put together from several, or belongs to another owner or image.

Layout, little-endian: `RLMS`, version (2 bytes), owner's mark (16), image's mark (16), nonce (16); then chunks: length
(4; its top bit marks the last), bytes, tag (16). Within, as one zstd frame: length (4) of a JSON object, the object,
the pages, the contents of files.
"""

from __future__ import annotations

import hmac
import io
import json
import secrets
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO, cast

import zstandard

from sandbox.corpora.corpus import Corpus
from sandbox.limits import PoolLimits
from sandbox.memory.memory import PAGE, Runs
from sandbox.memory.pages import ADDRESSABLE, PageFile
from sandbox.vm.checkpoint import Checkpoint
from sandbox.vm.instance import Image
from sandbox.wire.files import read_files, write_files
from sandbox.wire.sessions import read_layout, write_layout

VERSION = 3
LEVEL = 1
"""Of compression: higher ones take several times as long for a tenth less."""

_HEADER = struct.Struct("<4sH16s16s16s")
_LENGTH = struct.Struct("<I")
_LAST = 1 << 31
_CHUNK, _TAG = 1 << 18, 16
_PIECE = 1 << 20
"""Bytes that are compressed at once."""
_MAX_JSON = 16 << 20
_MARK = b"RLMS"


class SnapshotRefused(Exception):
    """A stored session cannot be used here; the message says why."""


class StoreFull(Exception):
    """The owner's stored sessions have no room for another; the message names the limit."""


def _always() -> None:
    pass


class Sealer:
    """Binds each stored session to its owner and image, and detects any change. `secret` has at least 32 bytes."""

    def __init__(self, secret: bytes) -> None:
        if len(secret) < 32:
            raise ValueError(f"the secret of stored sessions must have 32 bytes, not {len(secret)}")
        self._secret = blake2b(secret).digest()

    def _keyed(self, purpose: bytes, *parts: bytes) -> bytes:
        made = blake2b(key=self._secret, person=purpose, digest_size=32)
        for part in parts:
            made.update(_LENGTH.pack(len(part)) + part)
        return made.digest()

    def header(self, owner: str, image: Image) -> bytes:
        """Return a header for a session of this owner and image. No two headers are the same."""
        return _HEADER.pack(_MARK, VERSION, *self._marks(owner, image), secrets.token_bytes(16))

    def _marks(self, owner: str, image: Image) -> tuple[bytes, bytes]:
        return self._keyed(b"owner", owner.encode())[:16], self._keyed(b"image", image.key.encode())[:16]

    def key(self, header: bytes, owner: str, image: Image) -> bytes:
        """Return the key of the tags that follow a header.

        Raises:
            SnapshotRefused: the header is of another version, owner or image.
        """
        if len(header) != _HEADER.size or header[:4] != _MARK:
            raise SnapshotRefused("this is no stored session")
        _, version, of_owner, of_image, _ = _HEADER.unpack(header)
        if version != VERSION:
            raise SnapshotRefused(f"the stored session has version {version} of the format, and this is {VERSION}")
        mark, image_mark = self._marks(owner, image)
        if not hmac.compare_digest(of_owner, mark):
            raise SnapshotRefused("the stored session belongs to somebody else, or to another server")
        if not hmac.compare_digest(of_image, image_mark):
            raise SnapshotRefused(f"the stored session was made from another image than {image.name!r} is now")
        return self._keyed(b"tags", owner.encode(), image.key.encode(), header)

    def write(
        self, checkpoint: Checkpoint, owner: str, out: BinaryIO, go_on: Callable[[], None] = _always
    ) -> None:  # fmt: skip
        """Write a session's state. What `go_on`, which is called before each piece, raises ends that."""
        header = self.header(owner, checkpoint.image)
        out.write(header)
        sealed = _Sealed(out, self.key(header, owner, checkpoint.image))
        with zstandard.ZstdCompressor(level=LEVEL).stream_writer(cast("BinaryIO", sealed), closefd=False) as packed:
            for piece in _pieces(checkpoint):
                for at in range(0, len(piece), _PIECE):
                    go_on()
                    packed.write(piece[at : at + _PIECE])
        sealed.finish()

    def read(
        self,
        source: BinaryIO,
        owner: str,
        image: Image,
        corpora: Sequence[Corpus] = (),
        go_on: Callable[[], None] = _always,
    ) -> Checkpoint:
        """Read what `write` wrote. `corpora` are the attached ones, in their order. `go_on` is as for `write`.

        Raises:
            SnapshotRefused: it is altered, cut, or of another version, owner or image; or other corpora were attached.
        """
        header = source.read(_HEADER.size)
        opened = io.BufferedReader(_Opened(source, self.key(header, owner, image)), _CHUNK)
        try:
            with zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(opened, closefd=False) as unpacked:
                checkpoint = _read(unpacked.read, image, corpora, go_on)
                try:
                    rest = unpacked.read(1) or opened.read(1)
                except BaseException:
                    checkpoint.close()
                    raise
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, zstandard.ZstdError, EOFError) as error:
            raise SnapshotRefused("the stored session cannot be read") from error
        if rest:
            checkpoint.close()
            raise SnapshotRefused("the stored session was added to")
        return checkpoint


class SessionStore:
    """Stored sessions, a file each in a folder. They last as long as the server; older ones are removed.

    Those of one owner have at most `owner_bytes` bytes. Its methods may be called from any thread.
    """

    def __init__(self, folder: Path, secret: bytes, owner_bytes: int = PoolLimits().stored_bytes) -> None:
        self._folder = folder
        self._sealer = Sealer(secret)
        self._owner_bytes = owner_bytes
        self._lock = threading.Lock()  # of the two below
        self._stored: Counter[str] = Counter()  # bytes, by owner
        self._sizes: dict[Path, int] = {}
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for left in folder.glob("*.session*"):
            left.unlink()

    def put(self, checkpoint: Checkpoint, owner: str, go_on: Callable[[], None] = _always) -> Path:
        """Write a session's state and return the file. `go_on` is as for `Sealer.write`.

        Raises:
            StoreFull: it does not fit beside the owner's others; no part of it stays.
            OSError: it cannot be written; no part of it stays.
        """
        path = self._folder / f"{secrets.token_hex(16)}.session"
        try:
            with path.open("xb", buffering=0) as out:
                self._sealer.write(checkpoint, owner, cast("BinaryIO", _Counted(self, out, path, owner)), go_on)
        except BaseException:
            self.remove(path, owner)
            raise
        return path

    def remove(self, path: Path, owner: str) -> None:
        """Remove what `put` wrote for this owner. Does nothing where it was removed already."""
        path.unlink(missing_ok=True)
        with self._lock:
            self._stored[owner] -= self._sizes.pop(path, 0)
            if not self._stored[owner]:
                del self._stored[owner]

    def count(self, path: Path, owner: str, size: int) -> None:
        """Count bytes of an owner's file before they are written.

        Raises:
            StoreFull: they do not fit.
        """
        with self._lock:
            stored = self._stored[owner] + size
            if stored > self._owner_bytes:
                raise StoreFull(
                    f"sessions that hibernate may have {self._owner_bytes} bytes in all (stored_bytes), "
                    "and this one does not fit beside the others"
                )
            self._stored[owner] = stored
            self._sizes[path] = self._sizes.get(path, 0) + size

    def stored_bytes(self, owner: str) -> int:
        """Return how many bytes an owner's stored sessions have."""
        with self._lock:
            return self._stored[owner]

    def get(
        self, path: Path, owner: str, image: Image, corpora: Sequence[Corpus], go_on: Callable[[], None] = _always
    ) -> Checkpoint:
        """Read what `put` wrote. `go_on` is as for `Sealer.read`.

        Raises:
            SnapshotRefused: it is not as it was written, or belongs to another owner.
            OSError: it cannot be read.
        """
        with path.open("rb") as source:
            return self._sealer.read(source, owner, image, corpora, go_on)


class _Counted:
    """A file of a store. What is written to it is counted first."""

    def __init__(self, store: SessionStore, out: io.FileIO, path: Path, owner: str) -> None:
        self._store, self._out, self._path, self._owner = store, out, path, owner

    def write(self, data: bytes) -> int:
        """Write all of it."""
        self._store.count(self._path, self._owner, len(data))
        left = memoryview(data)
        while left:
            left = left[self._out.write(left) :]
        return len(data)


def _tag(key: bytes, number: int, length: int, chunk: bytes) -> bytes:
    return blake2b(struct.pack("<QI", number, length) + chunk, key=key, digest_size=_TAG).digest()


class _Sealed(io.RawIOBase):
    """Cuts what is written into chunks with tags."""

    def __init__(self, out: BinaryIO, key: bytes) -> None:
        self._out, self._key, self._number, self._waiting = out, key, 0, bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        self._waiting += data
        while len(self._waiting) > _CHUNK:
            self._chunk(_CHUNK, _CHUNK)
        return len(data)

    def finish(self) -> None:
        """Write the last chunk."""
        self._chunk(len(self._waiting), len(self._waiting) | _LAST)

    def _chunk(self, size: int, length: int) -> None:
        chunk = bytes(self._waiting[:size])
        del self._waiting[:size]
        self._out.write(_LENGTH.pack(length) + chunk + _tag(self._key, self._number, length, chunk))
        self._number += 1


class _Opened(io.RawIOBase):
    """Reads chunks, and returns no byte of a chunk whose tag is wrong."""

    def __init__(self, source: BinaryIO, key: bytes) -> None:
        self._chunks = _chunks(source, key)
        self._left = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        if not self._left:
            self._left = next(self._chunks, b"")
        given = self._left[: len(buffer)]
        self._left = self._left[len(given) :]
        buffer[: len(given)] = given
        return len(given)


def _chunks(source: BinaryIO, key: bytes) -> Iterator[bytes]:
    for number in range(1 << 32):
        head = source.read(_LENGTH.size)
        if len(head) < _LENGTH.size:
            raise SnapshotRefused("the stored session is cut short")
        (length,) = _LENGTH.unpack(head)
        size = length & ~_LAST
        chunk = source.read(min(size, _CHUNK))
        tag = source.read(_TAG)
        if size > _CHUNK or not hmac.compare_digest(tag, _tag(key, number, length, chunk)):
            raise SnapshotRefused("the stored session was altered or cut")
        yield chunk
        if length & _LAST:
            if source.read(1):
                raise SnapshotRefused("the stored session was added to")
            return


def _pieces(checkpoint: Checkpoint) -> Iterator[bytes]:
    files, contents = write_files(checkpoint.files)
    header = {
        "size": checkpoint.size,
        "clock": checkpoint.clock_offset,
        "runs": checkpoint.pages.runs,
        "corpora": [_described(corpus) for corpus in checkpoint.layout.corpora],
        "layout": write_layout(checkpoint.layout),
        "files": files,
        "contents": len(contents),
    }
    written = json.dumps(header, separators=(",", ":")).encode()
    yield _LENGTH.pack(len(written)) + written
    yield from checkpoint.pages.contents()
    yield contents


def _described(corpus: Corpus) -> list[Any]:
    """Return what tells a corpus from others. It does not cover changes to the corpus's files."""
    some = [corpus.text(number) for number in sorted({0, len(corpus) // 2, len(corpus)})]
    return [corpus.kind, len(corpus), corpus.blocks, *([t.form.name, t.characters, t.offset] for t in some)]


def _read(
    read: Callable[[int], bytes], image: Image, corpora: Sequence[Corpus], go_on: Callable[[], None]
) -> Checkpoint:
    (length,) = _LENGTH.unpack(_exactly(read, _LENGTH.size))
    if length > _MAX_JSON:
        raise ValueError(f"{length} bytes of JSON")
    header = json.loads(_exactly(read, length))
    if header["corpora"] != [_described(corpus) for corpus in corpora]:
        raise SnapshotRefused("the stored session was made with other texts")
    layout = read_layout(header["layout"], tuple(corpora), header["size"])
    runs: Runs = [(at, size) for at, size in header["runs"]]
    pages = PageFile()
    try:
        pages.fill(runs, _in_parts(read, sum(size for _, size in runs), go_on))
        files = read_files(header["files"], _exactly(read, header["contents"]), image.files)
    except BaseException:
        pages.close()
        raise
    return Checkpoint(image, header["size"], pages, files, layout, header["clock"])


def _in_parts(read: Callable[[int], bytes], size: int, go_on: Callable[[], None]) -> Iterable[bytes]:
    if not 0 <= size <= ADDRESSABLE * PAGE:
        raise ValueError(f"{size} bytes of pages")
    for at in range(0, size, _PIECE):
        go_on()
        yield _exactly(read, min(_PIECE, size - at))


def _exactly(read: Callable[[int], bytes], size: int) -> bytes:
    parts = []
    while size:
        part = read(size)
        if not part:
            raise EOFError("it ends too early")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
