"""How stored sessions are sealed: each is bound to its owner, image and name, and any change of it is noticed.

A file has a header and, after it, records. A record is cut into chunks, and the last chunk of a record says so. Each
chunk has two tags: one of its length and one of all of it. Both also cover every chunk before it. Their key comes from
a secret of the server, and from the owner, the image, the name and the header. So a file is refused before any of it is
used if it was altered, put together from several, or belongs to another. What a process wrote last may be cut, because
the process was killed: a record that stops in its middle does not count. Nothing else may be cut.

Layout, little-endian: `RLMS`, version (2 bytes), owner's mark (16), image's mark (16), nonce (16); then chunks: length
(4; its top bit marks the last of a record), tag of the length (8), bytes, tag (16).
"""

from __future__ import annotations

import hmac
import io
import secrets
import struct
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, BinaryIO

from sandbox.vm.instance import Image

VERSION = 4

HEADER = struct.Struct("<4sH16s16s16s")
LENGTH = struct.Struct("<I")
_MARK = b"RLMS"
_LAST = 1 << 31
_CHUNK, _TAG, _LENGTH_TAG = 1 << 18, 16, 8
_HEAD = LENGTH.size + _LENGTH_TAG


class SnapshotRefused(Exception):
    """A stored session cannot be used here; the message says why."""


class Sealer:
    """Makes the keys of stored sessions from a secret, which has at least 32 bytes."""

    def __init__(self, secret: bytes) -> None:
        if len(secret) < 32:
            raise ValueError(f"the secret of stored sessions must have 32 bytes, not {len(secret)}")
        self._secret = blake2b(secret).digest()

    def _keyed(self, purpose: bytes, *parts: bytes) -> bytes:
        made = blake2b(key=self._secret, person=purpose, digest_size=32)
        for part in parts:
            made.update(LENGTH.pack(len(part)) + part)
        return made.digest()

    def header(self, owner: str, image: Image) -> bytes:
        """Return a header for a session of this owner and image. No two headers are the same."""
        return HEADER.pack(_MARK, VERSION, *self._marks(owner, image), secrets.token_bytes(16))

    def _marks(self, owner: str, image: Image) -> tuple[bytes, bytes]:
        return self._keyed(b"owner", owner.encode())[:16], self._keyed(b"image", image.key.encode())[:16]

    def chain(self, header: bytes, owner: str, image: Image, name: str) -> Chain:
        """Return what the chunks that follow a header are sealed with.

        Raises:
            SnapshotRefused: the header is of another version, owner or image.
        """
        if len(header) != HEADER.size or header[:4] != _MARK:
            raise SnapshotRefused("this is no stored session")
        _, version, of_owner, of_image, _ = HEADER.unpack(header)
        if version != VERSION:
            raise SnapshotRefused(f"the stored session has version {version} of the format, and this is {VERSION}")
        mark, image_mark = self._marks(owner, image)
        if not hmac.compare_digest(of_owner, mark):
            raise _altered()
        if not hmac.compare_digest(of_image, image_mark):
            raise SnapshotRefused(f"the stored session was made from another image than {image.name!r} is now")
        return Chain(self._keyed(b"tags", owner.encode(), image.key.encode(), name.encode(), header))

    def chain_of(self, purpose: bytes, *parts: bytes) -> Chain:
        """Return what is sealed for another purpose, bound to these parts. A purpose has at most 16 bytes."""
        return Chain(self._keyed(purpose, *parts))


@dataclass(slots=True)
class Chain:
    """Seals chunks, or opens them, each bound to all before it."""

    key: bytes
    last: bytes = b""
    """The tag of the last chunk."""

    def copy(self) -> Chain:
        """Return one that goes on by itself from here."""
        return Chain(self.key, self.last)

    def seal(self, chunk: bytes, *, ends: bool) -> bytes:
        """Return the next chunk as it is stored. `ends` marks the last of a record."""
        length = LENGTH.pack(len(chunk) | (_LAST if ends else 0))
        head = length + self._length_tag(length)
        self.last = self._tag(length, chunk)
        return b"".join((head, chunk, self.last))

    def open(self, source: BinaryIO) -> tuple[bytes, bool] | None:
        """Read the next chunk, and whether it ends its record. None where the file stops before the chunk does.

        Raises:
            SnapshotRefused: the chunk was altered, or is none of these.
        """
        head = source.read(_HEAD)
        if len(head) < _HEAD:
            return None
        length = head[: LENGTH.size]
        (number,) = LENGTH.unpack(length)
        size = number & ~_LAST
        if size > _CHUNK or not hmac.compare_digest(head[LENGTH.size :], self._length_tag(length)):
            raise _altered()
        chunk, tag = source.read(size), source.read(_TAG)
        if len(tag) < _TAG:
            return None
        if not hmac.compare_digest(tag, self._tag(length, chunk)):
            raise _altered()
        self.last = tag
        return chunk, bool(number & _LAST)

    def _length_tag(self, length: bytes) -> bytes:
        return blake2b(self.last + length, key=self.key, digest_size=_LENGTH_TAG, person=b"length").digest()

    def _tag(self, length: bytes, chunk: bytes) -> bytes:
        made = blake2b(self.last + length, key=self.key, digest_size=_TAG, person=b"chunk")
        made.update(chunk)
        return made.digest()


@dataclass(frozen=True, slots=True)
class Checked:
    """What was found in a file: where its last whole record ends, how many there are, and how their chain goes on."""

    size: int
    records: int
    chain: Chain


def check(source: BinaryIO, chain: Chain) -> Checked:
    """Read all records that follow a header, and find how many are whole.

    Raises:
        SnapshotRefused: one was altered, or there is none.
    """
    chain = chain.copy()
    found = Checked(0, 0, chain)
    while (opened := chain.open(source)) is not None:
        if opened[1]:
            found = Checked(source.tell(), found.records + 1, chain.copy())
    if not found.records:
        raise SnapshotRefused("the stored session is cut short")
    return found


class Sealed(io.RawIOBase):
    """Cuts what is written of a record into chunks."""

    def __init__(self, out: Any, chain: Chain) -> None:
        self._out, self._chain, self._waiting = out, chain, bytearray()

    def writable(self) -> bool:  # noqa: D102
        return True

    def write(self, data: Any, /) -> int:  # noqa: D102
        self._waiting += data
        while len(self._waiting) > _CHUNK:
            self._out.write(self._chain.seal(bytes(self._waiting[:_CHUNK]), ends=False))
            del self._waiting[:_CHUNK]
        return len(data)

    def finish(self) -> None:
        """End the record."""
        self._out.write(self._chain.seal(bytes(self._waiting), ends=True))
        self._waiting.clear()


class Opened(io.RawIOBase):
    """Reads one record of a file, and returns no byte of a chunk whose tags are wrong."""

    def __init__(self, source: BinaryIO, chain: Chain) -> None:
        self._source, self._chain, self._ended = source, chain, False
        self._left = b""

    def readable(self) -> bool:  # noqa: D102
        return True

    def readinto(self, buffer: Any, /) -> int:  # noqa: D102
        while not self._left and not self._ended:
            opened = self._chain.open(self._source)
            if opened is None:
                raise SnapshotRefused("the stored session is cut short")
            self._left, self._ended = opened
        given = self._left[: len(buffer)]
        self._left = self._left[len(given) :]
        buffer[: len(given)] = given
        return len(given)


def _altered() -> SnapshotRefused:
    return SnapshotRefused("the stored session was altered, or belongs to somebody else or to another server")
