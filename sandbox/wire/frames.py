"""Frames between the server and a worker process, over a pair of sockets: one for frames, one for descriptors.

A frame is a prefix, a JSON object, and bytes. Frames carry turns, requests through the door, and which pages changed.
Descriptors go only to the worker, each under a number that a frame then names. The server trusts nothing that a worker
sends: a frame that is malformed, too large or out of place ends the worker.
"""

from __future__ import annotations

import json
import select
import socket
import struct
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, NoReturn

_HEADER = struct.Struct("<BIIIIQ")
_DESCRIPTOR = struct.Struct("<I")

MAX_JSON = 16 << 20
MAX_BYTES = 1 << 30
"""Of one frame: the contents of a session's files, and some."""


_PIECE = 1 << 16
"""Bytes received at once: less than what malloc makes a mapping of its own for, which costs more than it brings."""
_TOGETHER = 1 << 16
"""Frames smaller than this are sent at once."""


class Kind(IntEnum):
    """What a frame is about. Frames of the first group go to the worker; those of the second come from it."""

    LOAD = 1
    OPEN = 2
    ATTACH = 3
    EXECUTE = 4
    REPLY = 5
    INTERRUPT = 6
    CLOSE = 7
    PING = 8

    READY = 32
    DONE = 33
    FAILED = 34
    OUTPUT = 35
    CALL = 36


class WireError(Exception):
    """The other side sent something that is not a valid frame."""


@dataclass(frozen=True, slots=True)
class Frame:
    """A message between server and worker.

    `session` is the number of its session. `turn` is the number of its turn: outside that turn it is ignored. `number`
    is the request a reply belongs to, or the stream that output was printed to.
    """

    kind: Kind
    session: int = 0
    number: int = 0
    header: dict[str, Any] = field(default_factory=dict)
    data: bytes = b""
    turn: int = 0

    def encode(self) -> list[bytes]:
        """Return the frame as bytes, in parts to be sent one after another."""
        header = json.dumps(self.header, separators=(",", ":")).encode() if self.header else b""
        prefix = _HEADER.pack(self.kind, self.session, self.turn, self.number, len(header), len(self.data))
        return [prefix + header, self.data] if self.data else [prefix + header]


class Parser:
    """Assembles frames from the pieces in which they arrive."""

    def __init__(self, most_bytes: int = MAX_BYTES) -> None:
        self._most_bytes = most_bytes
        self._buffer = bytearray()

    def feed(self, piece: bytes) -> list[Frame]:
        """Take a piece and return the frames it completes.

        Raises:
            WireError: the piece cannot belong to a frame.
        """
        buffer = self._buffer
        buffer += piece
        frames = []
        at = 0
        while len(buffer) - at >= _HEADER.size:
            kind, session, turn, number, header_bytes, data_bytes = _HEADER.unpack_from(buffer, at)
            if header_bytes > MAX_JSON or data_bytes > self._most_bytes:
                raise WireError(f"a frame of {header_bytes} + {data_bytes} bytes")
            start = at + _HEADER.size
            end = start + header_bytes + data_bytes
            if end > len(buffer):
                break
            header = _header(bytes(buffer[start : start + header_bytes]))
            data = bytes(buffer[start + header_bytes : end])
            frames.append(Frame(_kind(kind), session, number, header, data, turn))
            at = end
        del buffer[:at]
        return frames


def _kind(value: int) -> Kind:
    try:
        return Kind(value)
    except ValueError:
        raise WireError(f"a frame of kind {value}") from None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _header(text: bytes) -> dict[str, Any]:
    if not text:
        return {}
    try:
        header = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise WireError("a frame whose JSON cannot be read") from None
    if not isinstance(header, dict):
        raise WireError("a frame whose JSON is no object")
    return header


class Channel:
    """The worker's end of the frames. Calls block. Any thread may send; one at a time may receive."""

    def __init__(self, frames: socket.socket, descriptors: socket.socket) -> None:
        self._frames = frames
        self._descriptors = descriptors
        self._sending = threading.Lock()
        self._parser = Parser()
        self._arrived: deque[Frame] = deque()
        self._poll = select.poll()
        self._poll.register(frames, select.POLLIN)
        self._kept: dict[int, int] = {}

    def send(self, *frames: Frame) -> None:
        """Send frames, one after another."""
        parts = [part for frame in frames for part in frame.encode()]
        if len(parts) > 1 and sum(map(len, parts)) < _TOGETHER:
            parts = [b"".join(parts)]
        with self._sending:
            for part in parts:
                self._frames.sendall(part)

    def receive(self, seconds: float | None = None) -> Frame | None:
        """Return the next frame, or None where none came in so many seconds.

        Raises:
            EOFError, ConnectionResetError: the other side is gone.
        """
        end = None if seconds is None else time.monotonic() + seconds
        while not self._arrived:
            if end is not None and not self._poll.poll(max(0.0, (end - time.monotonic()) * 1000)):
                return None
            piece = self._frames.recv(_PIECE)
            if not piece:
                raise EOFError
            self._arrived.extend(self._parser.feed(piece))
        return self._arrived.popleft()

    def descriptor(self, number: int) -> int:
        """Return the descriptor that was sent under a number."""
        while number not in self._kept:
            message, descriptors, _, _ = socket.recv_fds(self._descriptors, _DESCRIPTOR.size, 1)
            if len(message) != _DESCRIPTOR.size or len(descriptors) != 1:
                raise WireError("a descriptor is missing")
            self._kept[_DESCRIPTOR.unpack(message)[0]] = descriptors[0]
        return self._kept.pop(number)


def send_descriptor(descriptors: socket.socket, number: int, fd: int) -> None:
    """Send a descriptor under a number, from the server's end."""
    socket.send_fds(descriptors, [_DESCRIPTOR.pack(number)], [fd])
