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
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import groupby
from typing import Any

from sandbox.bounded_json import decoded, nodes_of

_HEADER = struct.Struct("<BIIIIQ")
_DESCRIPTOR = struct.Struct("<I")

MAX_JSON = 16 << 20
MAX_BYTES = 1 << 30
"""Of one frame: the contents of a session's files, and some."""


_PIECE = 1 << 16
"""Bytes received at once: less than what malloc makes a mapping of its own for, which costs more than it brings."""
_TOGETHER = 1 << 16
"""Frames smaller than this are sent at once."""
_PRINTED_TOGETHER = 16
"""Bytes of output that a change of the stream is worth, so that it is told in the order in which it was printed."""


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
    INPUTS = 37


class WireError(Exception):
    """The other side sent something that is not a valid frame."""


@dataclass(frozen=True, slots=True)
class Frame:
    """A message between server and worker.

    `session` is the number of its session. `turn` is the number of its turn: outside that turn it is ignored. `number`
    is the request a reply belongs to, the stream that output was printed to, or the byte of the turn's log of inputs
    from which on there are more.
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


Allow = Callable[[Kind, int, int, int], int]
"""Told of a frame that begins: its kind, its session, and how many bytes of JSON and of data it is to have.

It returns how many values and keys its JSON may have, and raises `WireError` for a frame that may not come.
"""


def anything(kind: Kind, session: int, header_bytes: int, data_bytes: int) -> int:  # noqa: ARG001
    """Allow whatever is not too large for any frame."""
    if header_bytes > MAX_JSON or data_bytes > MAX_BYTES:
        raise WireError(f"a frame of {header_bytes} + {data_bytes} bytes")
    return header_bytes


class Parser:
    """Assembles frames from the pieces in which they arrive. Of a frame that is not allowed, nothing is kept."""

    def __init__(self, allow: Allow = anything) -> None:
        self._allow = allow
        self._buffer = bytearray()

    def feed(self, piece: bytes) -> list[Frame]:
        """Take a piece and return the frames it completes.

        Raises:
            WireError: the piece cannot belong to a frame.
        """
        self._buffer += piece
        frames = []
        at = 0
        with memoryview(self._buffer) as view:
            while len(view) - at >= _HEADER.size:
                number_of_kind, session, turn, number, header_bytes, data_bytes = _HEADER.unpack_from(view, at)
                kind = _kind(number_of_kind)
                most_nodes = self._allow(kind, session, header_bytes, data_bytes)
                start = at + _HEADER.size
                split = start + header_bytes
                if split + data_bytes > len(view):
                    break
                at = split + data_bytes
                header = _header(bytes(view[start:split]), most_nodes)
                frames.append(Frame(kind, session, number, header, bytes(view[split:at]), turn))
        del self._buffer[:at]
        return frames


def _kind(value: int) -> Kind:
    try:
        return Kind(value)
    except ValueError:
        raise WireError(f"a frame of kind {value}") from None


def _header(text: bytes, most_nodes: int) -> dict[str, Any]:
    if not text:
        return {}
    try:
        nodes_of(text, most_nodes)
        header = decoded(text)
    except (ValueError, RecursionError):
        raise WireError("a frame whose JSON cannot be read") from None
    if not isinstance(header, dict):
        raise WireError("a frame whose JSON is no object")
    return header


def _together(frames: Iterable[Frame]) -> Iterator[Frame]:
    """Put together output of one stream that follows each other; and where the streams change often, all of each."""
    for (kind, session, turn), same in groupby(frames, lambda frame: (frame.kind, frame.session, frame.turn)):
        if kind is not Kind.OUTPUT:
            yield from same
            continue
        parts = [
            (stream, b"".join(frame.data for frame in adjacent))
            for stream, adjacent in groupby(same, lambda frame: frame.number)
        ]
        if len(parts) > 2 + sum(len(data) for _, data in parts) // _PRINTED_TOGETHER:
            parts = [(stream, b"".join(data for s, data in parts if s == stream)) for stream in (1, 2)]
        for stream, data in parts:
            yield Frame(kind, session, stream, data=data, turn=turn)


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
        """Send frames, one after another. Output that comes in many small frames is put together."""
        parts = [part for frame in _together(frames) for part in frame.encode()]
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
