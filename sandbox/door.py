"""The door: the one way a guest can ask for anything. Whatever a guest sends is a claim to check.

A request is a JSON object, the head. Its `op` names what is wanted; the rest are its arguments. Long texts stand behind
the head: after a NUL byte, one after another, in UTF-8. Where `{"": n}` stands in the head, the next n bytes are meant.
Each text is used once, and none is left over. A head without a NUL byte behind it has all its texts in itself.

A reply is `{"ok": value}` or `{"error": {"type": name, "message": text}}`, which the guest's side raises as an
exception. An error may have a `kind` besides: in one word, what kind of its type it is.

A request with `"later": true` is answered at once with a number. `sandbox.wait` later returns the replies that have
come, each with its number. So a guest can have many requests under way, although it has no threads.
"""

from __future__ import annotations

import codecs
import ctypes
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any

from sandbox.bounded_json import NODE_BYTES, WIDEST, Decoder, Pairs, an_object, decoded, nodes_of
from sandbox.bounded_json import Json as Json

MAX_HEAD = 1 << 20
"""Bytes of a request's head."""
MAX_NODES = 50_000
"""Values and keys of a request, unless told."""
MAX_OP = 200
"""Characters of the name of what is wanted."""
MAX_MESSAGE = 2_000
"""Characters of why a request is refused."""
PIECE = 1 << 18
"""Bytes, or characters, that are decoded or encoded at a stretch."""

Step = Callable[[int], None]
"""Called between two pieces of work, with how many bytes will be held more, or fewer. What it raises ends the work."""


class DoorRefusal(Exception):
    """The guest's request is refused; `type` and the message become an exception inside, with its `kind`."""

    def __init__(self, type: str, message: str, kind: str = "") -> None:
        super().__init__(message)
        self.type = type
        self.kind = kind

    def reply(self) -> bytes:
        """Write the reply that says so."""
        return refused(self.type, str(self), self.kind)


class ByChance(DoorRefusal):
    """A refusal for want of room, which the same request might not meet another time."""


class Reply(bytes):
    """A reply that is written already, by `granted` or `refused` in another process."""


# ---- arguments -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Kind:
    """What an argument may be. A value of another kind is refused with an exception of the type `error`."""

    wanted: str
    fits: Callable[[Json], bool]
    error: str = "TypeError"


TEXT = Kind("a str", lambda value: isinstance(value, str))
TEXTS = Kind("a list of str", lambda value: isinstance(value, list) and all(isinstance(item, str) for item in value))
ITEMS = Kind("a list", lambda value: isinstance(value, list))
FLAG = Kind("a bool", lambda value: isinstance(value, bool))
INTEGER = Kind("an int of 32 bits", lambda value: type(value) is int and 0 <= value < 1 << 32)
NUMBER = Kind("a number", lambda value: isinstance(value, int | float) and not isinstance(value, bool))
SECONDS = Kind(
    "a number of seconds from 0 to 1e9",
    lambda value: isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1e9,
    "ValueError",
)

Arguments = Mapping[str, Kind]
"""What arguments an op takes, by name."""


def optional(kind: Kind) -> Kind:
    """Return the kind of an argument that may be left out, or be None."""
    return replace(kind, fits=lambda value: value is None or kind.fits(value))


@dataclass(frozen=True, slots=True)
class HostCall:
    """A checked request: well-formed, of strings that can be encoded; its arguments are still the guest's word."""

    op: str
    arguments: dict[str, Any]
    later: bool = False
    """The guest wants a number now, and the reply when it waits for it."""
    frame: bytes = field(default=b"", compare=False, repr=False)
    """The request as the guest wrote it, for another process; empty unless it was to be kept."""
    digest: bytes = field(default=b"", compare=False, repr=False)
    """Of the request as the guest wrote it, by which it is known when it is made again; empty unless told."""

    def check(self, taken: Arguments) -> None:
        """Refuse arguments that are not taken, are missing, or are of another kind."""
        unknown = next((name for name in self.arguments if name not in taken), None)
        if unknown is not None:
            raise DoorRefusal("TypeError", f"{self.op}: there is no argument called {unknown[:60]!r}")
        for name, kind in taken.items():
            self._value(name, kind)

    def text(self, name: str) -> str:
        """Return a string argument; refuses a missing one, or another type."""
        value: str = self._value(name, TEXT)
        return value

    def texts(self, name: str) -> list[str]:
        """Return an argument that is a list of strings."""
        value: list[str] = self._value(name, TEXTS)
        return value

    def items(self, name: str) -> list[Json]:
        """Return an argument that is a list."""
        value: list[Json] = self._value(name, ITEMS)
        return value

    def seconds(self, name: str) -> float | None:
        """Return an argument that is a time from 0 on, or None where there is none."""
        value: float | None = self._value(name, _OPTIONAL_SECONDS)
        return value

    def integer(self, name: str) -> int:
        """Return an unsigned 32-bit integer argument."""
        value: int = self._value(name, INTEGER)
        return value

    def _value(self, name: str, kind: Kind) -> Any:
        value = self.arguments.get(name)
        if kind.fits(value):
            return value
        raise DoorRefusal(kind.error, f"{self.op}: {name} must be {kind.wanted}, not {type(value).__name__}")


_OPTIONAL_SECONDS = optional(SECONDS)


# ---- requests --------------------------------------------------------------------------------------------------------


def _unwatched(_: int) -> None:
    pass


def digest_of(frame: bytes, step: Step = _unwatched) -> bytes:
    """Return the 16 bytes by which a request is known. `step` is called between two pieces of it, with 0."""
    hashed = blake2b(frame[:PIECE], digest_size=16)
    for at in range(PIECE, len(frame), PIECE):
        step(0)
        hashed.update(frame[at : at + PIECE])
    return hashed.digest()


def parse(
    frame: bytes, most_nodes: int = MAX_NODES, step: Step = _unwatched, *, keep: bool = False, digest: bytes = b""
) -> HostCall:  # fmt: skip
    """Read a request. `keep` has it keep its frame, and it is given the `digest`.

    `step` is called before anything is built with the bytes that will take, and between two pieces of a long text.

    Raises:
        DoorRefusal: its head is too large, is no JSON object with an `op`, has too many values and keys, is nested too
            deep, or holds a key twice, not-a-number or a lone surrogate; or its texts are not as its head says.
    """
    end = frame.find(b"\0", 0, MAX_HEAD + 1)
    head = frame if end < 0 else frame[:end]
    if len(head) > MAX_HEAD:
        raise DoorRefusal("ValueError", f"the head of the request has more than {MAX_HEAD} bytes, which is the limit")
    try:
        nodes = nodes_of(head, most_nodes)
        step(NODE_BYTES * nodes + WIDEST * len(head))
        if end < 0:
            request = decoded(head)
        else:
            texts = _Texts(frame, end + 1, step)
            request = decoded(head, Decoder(texts.made))
            texts.finish()
    except (ValueError, RecursionError) as error:
        raise DoorRefusal("ValueError", f"the request is malformed: {str(error)[:200]}") from None
    if not isinstance(request, dict) or not isinstance(op := request.pop("op", None), str):
        raise DoorRefusal("ValueError", "the request is not an object with an op")
    if len(op) > MAX_OP:
        raise DoorRefusal("ValueError", f"what is asked for has a name of more than {MAX_OP} characters")
    return HostCall(op, request, request.pop("later", False) is True, frame if keep else b"", digest)


class _Texts:
    """The texts behind a head: each is taken when the head names it."""

    def __init__(self, frame: bytes, start: int, step: Step) -> None:
        self._view, self._at, self._step = memoryview(frame), start, step

    def made(self, pairs: Pairs) -> Json:
        """Make an object of the head: the next text, where it stands for one."""
        return self._next(pairs[0][1]) if len(pairs) == 1 and pairs[0][0] == "" else an_object(pairs)

    def _next(self, size: object) -> str:
        if type(size) is not int or not 0 <= size <= len(self._view) - self._at:
            raise ValueError("a text is not behind the head")
        text = self._view[self._at : self._at + size]
        self._at += size
        decoder = codecs.getincrementaldecoder("utf-8")("strict")
        pieces = []
        for at in range(0, size, PIECE):
            part = bytes(text[at : at + PIECE])
            most = len(part) if part.isascii() else WIDEST * len(part)
            self._step(most)
            pieces.append(decoder.decode(part, at + PIECE >= size))
            self._step(sys.getsizeof(pieces[-1]) - most)
        if len(pieces) < 2:
            return "".join(pieces)
        self._step(sum(map(len, pieces)) * max(map(_width, pieces)))
        joined = _joined(pieces, self._step)
        self._step(-sum(map(sys.getsizeof, pieces)))
        return joined

    def finish(self) -> None:
        """Raise `ValueError` if a text is left over."""
        if self._at != len(self._view):
            raise ValueError(f"{len(self._view) - self._at} bytes behind the head belong to nothing")


def _width(piece: str) -> int:
    """Return how many bytes each character takes: a str has 1, 2 or 4 for all of them, and for a zero at its end."""
    return 1 if piece.isascii() else (sys.getsizeof(piece) - _HEADER) // (len(piece) + 1)


_HEADER = sys.getsizeof("\xe9") - 2

_new = ctypes.pythonapi.PyUnicode_New
_new.restype, _new.argtypes = ctypes.py_object, [ctypes.c_ssize_t, ctypes.c_uint32]
_copy = ctypes.pythonapi.PyUnicode_CopyCharacters
_copy.restype = ctypes.c_ssize_t
_copy.argtypes = [ctypes.c_void_p, ctypes.c_ssize_t, ctypes.py_object, ctypes.c_ssize_t, ctypes.c_ssize_t]


def _joined(pieces: list[str], step: Step) -> str:
    """Return `"".join(pieces)`. That call would stop every other thread until all is copied: up to 0.1 s.

    A new str that only its maker refers to may be written, which is why `_copy` is given its address.
    """
    widest = max(map(_width, pieces))
    most = 127 if all(piece.isascii() for piece in pieces) else (1 << 8 * widest) - 1
    joined: str = _new(sum(map(len, pieces)), min(most, sys.maxunicode))
    at = 0
    for piece in pieces:
        step(0)
        _copy(id(joined), at, piece, 0, len(piece))
        at += len(piece)
    return joined


# ---- replies ---------------------------------------------------------------------------------------------------------

_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def granted(value: Json) -> bytes:
    """Write the reply to a request that was granted.

    Raises:
        ValueError: the value holds a lone surrogate or not-a-number.
        TypeError: it is not JSON.
    """
    return b'{"ok":' + _ENCODER.encode(value).encode() + b"}"


def granted_in_pieces(value: Json, most: int, step: Step = _unwatched) -> bytes:
    """Write what `granted` writes, a piece at a time, and no more than `most` bytes of it.

    `step` is called before each piece with the bytes it takes.

    Raises:
        DoorRefusal: the reply is larger.
        ValueError, TypeError: as `granted`.
    """
    parts, size = [b'{"ok":'], 7
    for piece in _pieces(value):
        part = piece.encode()
        size += len(part)
        check_reply(size, most)
        step(len(part))
        parts.append(part)
    parts.append(b"}")
    step(size)
    reply = b"".join(parts)
    step(-size)
    return reply


def _pieces(value: Json) -> Iterator[str]:
    if is_small(value, PIECE):
        yield _ENCODER.encode(value)
    elif isinstance(value, str):
        yield '"'
        for at in range(0, len(value), PIECE):
            yield _ENCODER.encode(value[at : at + PIECE])[1:-1]
        yield '"'
    elif isinstance(value, list):
        yield from _bracketed("[", ((None, item) for item in value), "]")
    elif isinstance(value, dict):
        yield from _bracketed("{", value.items(), "}")
    else:
        yield _ENCODER.encode(value)


def _bracketed(before: str, items: Any, after: str) -> Iterator[str]:
    for key, item in items:
        yield before if key is None else f"{before}{_ENCODER.encode(key)}:"
        yield from _pieces(item)
        before = ","
    yield after


def is_small(value: Json, most: int) -> bool:
    """Whether a value is written in about `most` bytes or fewer. No more of it is looked at than that takes."""
    left, looked = [value], 0
    while left and looked <= most:
        one = left.pop()
        looked += len(one) + 2 if isinstance(one, str) else 16
        if isinstance(one, list | dict):
            looked += 8 * len(one)
            if looked <= most:
                left += one if isinstance(one, list) else [*one, *one.values()]
    return looked <= most


def check_reply(size: int, most: int, around: int = 0) -> None:
    """Refuse a reply of more than `most` bytes, with so many around it."""
    if size > most - around:
        raise DoorRefusal("LimitExceeded", f"the reply has {size} bytes, the limit is {most}")


def refused(type: str, message: str, kind: str = "") -> bytes:
    """Write the reply to a request that was refused."""
    error = {"type": type, "message": message[:MAX_MESSAGE]}
    return json.dumps({"error": {**error, "kind": kind} if kind else error}).encode()
