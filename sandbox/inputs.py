"""What a turn was told by chance, so that the turn can run again on the same path.

That is the seed of its random bytes, the clocks it read, which replies each of its waits brought, and which of its
requests were refused for want of room. All else that a guest sees follows from its state, its code and its replies.

The log has an entry for each thing told, in order. Numbers are of 7 bits a byte, the lowest first, and all but the last
with their highest bit set; those with a sign are doubled, and less 1 where negative. An entry begins with a number
whose lowest two bits are its tag. The others count the clock readings just before it that told nothing new: each gave
what its clock had told last.

| tag | it says |
|---|---|
| 0, 1, 2 | a clock (time of day, monotonic, running) has gone on: by how many ticks. The first may be negative |
| 3, 0 | nothing |
| 3, 1 | the turn began: its number, and 1 where it drew new entropy first, else 0. This entry is the first |
| 3, 2 | a wait brought replies: by how much each one's number differs from the one told before it, then 0 |
| 3, 3 | nothing is noted from here on |
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Callable
from typing import Self

SEED_BYTES = 32
MAX_LOG = 1 << 16
"""Bytes of a turn's log. What comes after is not noted."""
MAX_REFUSED = 1 << 16
"""Bytes of the refusals that are noted of a turn."""

SAME, BEGUN, WAITED, FULL = range(4)
"""What an entry with the tag `OTHER` says, in its second byte."""
OTHER = 3

InputListener = Callable[[bytes], None]
"""Called with each piece of what a turn is told by chance, before any request is answered that was made after it."""

_VERSION = 1
_PIECE = struct.Struct("<BII")
_LENGTH = struct.Struct("<I")
_LOG, _REFUSED = 0, 1
"""What a piece says: more of the log, or that a request was refused."""


def number(value: int) -> bytes:
    """Write a number that is not negative."""
    if value < 128:
        return value.to_bytes()
    written = bytearray()
    while value > 127:
        written.append(value & 127 | 128)
        value >>= 7
    written.append(value)
    return bytes(written)


def signed(value: int) -> bytes:
    """Write a number that may be negative."""
    return number(2 * value if value >= 0 else -2 * value - 1)


def read_number(log: bytes | bytearray, at: int) -> tuple[int, int]:
    """Read a number, and return it with where it ends."""
    value = shift = 0
    while (byte := log[at]) > 127:
        value |= (byte & 127) << shift
        shift += 7
        at += 1
    return value | byte << shift, at + 1


def read_signed(log: bytes | bytearray, at: int) -> tuple[int, int]:
    """Read a number that may be negative, and return it with where it ends."""
    doubled, at = read_number(log, at)
    return doubled >> 1 ^ -(doubled & 1), at


def _entries() -> tuple[re.Pattern[bytes], re.Pattern[bytes]]:
    """Return what a whole log looks like, and what may follow one. No number has more than 49 bits."""

    def head(tags: range) -> bytes:
        last, more = (
            b"".join(b"\\x%02x" % byte for byte in some if byte & 3 in tags) for some in (range(128), range(128, 256))
        )
        return b"(?:[%b]|[%b]%b)" % (last, more, rest)

    rest = rb"[\x80-\xff]{0,5}[\x00-\x7f]"
    any_number = rb"[\x80-\xff]{0,6}[\x00-\x7f]"
    no_zero = rb"(?:[\x01-\x7f]|[\x80-\xff]{1,6}[\x00-\x7f])"
    clock, other = head(range(OTHER)), head(range(OTHER, 4))
    entry = rb"(?:%b%b|%b(?:\x00|\x02%b*+\x00))" % (clock, any_number, other, no_zero)
    more = rb"%b*+(?P<full>%b\x03)?" % (entry, other)
    return re.compile(rb"\x03\x01%b[\x00\x01]%b" % (any_number, more)), re.compile(more)


_WHOLE, _MORE = _entries()


class Inputs:
    """What one turn was told by chance, so far. `seed` has `SEED_BYTES` bytes.

    A turn that is given inputs is told these first, for as long as it asks for the same, and adds to them what it is
    told then. They belong to that turn alone: whatever runs with the same seed draws the same random bytes.
    """

    def __init__(self, seed: bytes) -> None:
        """Make those of a turn that has not begun. Raises `ValueError` for a seed of another length."""
        if len(seed) != SEED_BYTES:
            raise ValueError(f"a seed of {len(seed)} bytes, not {SEED_BYTES}")
        self.seed = seed
        self.log = b""
        self._full = self._unheard = False
        self._refused: dict[int, bytes] = {}
        self._refused_bytes = 0

    @classmethod
    def new(cls) -> Self:
        """Make those of a new turn."""
        return cls(os.urandom(SEED_BYTES))

    @property
    def complete(self) -> bool:
        """Whether there was room for all. Otherwise a turn that runs again may leave its path."""
        return not (self._full or self._unheard)

    # ---- what the turn is told -----------------------------------------------------------------------------------

    def note(self, at: int, entries: bytes, request: int) -> bytes:
        """Have the log go on from byte `at` with these entries, told before the turn's request of this number.

        Where the log has more than that, the turn has left its former path there, and what it was told on it is
        dropped. Returns the piece that says all this.

        Raises:
            ValueError: the place or the entries cannot be, or there is no room for them.
        """
        former = len(self.log)
        if not 0 <= at <= former or at + len(entries) > MAX_LOG or not (entries or at < former):
            raise ValueError(f"{len(entries)} bytes from byte {at} on of a log of {former} bytes")
        left = at < former
        if _is_full(self.log[:at], 0) if left and at else self._full and not left:
            raise ValueError(f"entries from byte {at} on, behind the last")
        self._full = _is_full(entries, at)
        self.log = self.log[:at] + entries
        if left:
            self._refused = {number: reply for number, reply in self._refused.items() if number < request}
            self._refused_bytes = sum(map(len, self._refused.values()))
        return _PIECE.pack(_LOG, at, request) + entries

    def refuse(self, request: int, reply: bytes) -> bytes:
        """Note with which reply the turn's request of this number was refused. Returns the piece that says so.

        Without room it is not noted, and the piece is empty.
        """
        if request in self._refused or self._refused_bytes + len(reply) > MAX_REFUSED:
            self._unheard = True
            return b""
        self._refused[request] = reply
        self._refused_bytes += len(reply)
        return _PIECE.pack(_REFUSED, 0, request) + reply

    def refusal(self, request: int) -> bytes | None:
        """Return the reply with which the turn's request of this number is to be refused, if it is."""
        return self._refused.get(request)

    # ---- keeping -------------------------------------------------------------------------------------------------

    def add(self, piece: bytes) -> None:
        """Add a piece that `note` or `refuse` returned. Raises `ValueError` where none did."""
        try:
            kind, at, request = _PIECE.unpack_from(piece)
        except struct.error:
            raise ValueError(f"a piece of {len(piece)} bytes") from None
        said = piece[_PIECE.size :]
        if kind == _LOG:
            self.note(at, said, request)
        elif kind != _REFUSED or not self.refuse(request, said):
            raise ValueError(f"a piece of kind {kind} for request {request}, which cannot be")

    def to_bytes(self) -> bytes:
        """Write all of them, to be stored."""
        pieces = [_PIECE.pack(_LOG, 0, 0) + self.log] if self.log else []
        pieces += [_PIECE.pack(_REFUSED, 0, request) + reply for request, reply in self._refused.items()]
        flags = bytes([_VERSION, self._unheard])
        return b"".join([flags, self.seed, *(_LENGTH.pack(len(piece)) + piece for piece in pieces)])

    @classmethod
    def from_bytes(cls, stored: bytes) -> Self:
        """Read what `to_bytes` wrote. Raises `ValueError` where it cannot have."""
        flags, at = stored[:2], 2 + SEED_BYTES
        if len(flags) < 2 or flags[0] != _VERSION or flags[1] > 1:
            raise ValueError("these are no stored inputs")
        inputs = cls(stored[2:at])
        while at < len(stored):
            try:
                (size,) = _LENGTH.unpack_from(stored, at)
            except struct.error:
                raise ValueError("stored inputs that were cut") from None
            at += _LENGTH.size
            if at + size > len(stored) or not size:
                raise ValueError("stored inputs that were cut")
            inputs.add(stored[at : at + size])
            at += size
        inputs._unheard = flags[1] == 1
        return inputs


def _is_full(entries: bytes, at: int) -> bool:
    """Check entries that stand at this place of a log, and return whether they end it for want of room."""
    if not entries and at:
        return False
    match = (_MORE if at else _WHOLE).fullmatch(entries)
    if match is None:
        raise ValueError(f"{len(entries)} bytes that are no entries")
    return match["full"] is not None
