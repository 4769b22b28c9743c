"""HTTP/1.1 as the fake provider speaks it: requests read, answers put in bytes, and broken where a fault says so."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from tests.fake_provider.faults import Fault

FILLER = b"x" * 65_536


@dataclass(frozen=True)
class Received:
    """One request, as it came in."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def key(self) -> str:
        return self.headers.get("x-api-key") or self.headers.get("authorization", "").removeprefix("Bearer ")

    @property
    def messages(self) -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = self.body["messages"]
        return messages


@dataclass(frozen=True)
class Answer:
    """What goes back. A body of `events` is sent in chunks, one of them each; any other is one part with a length."""

    status: int
    parts: list[bytes]
    headers: list[tuple[str, str]] = field(default_factory=list)
    content_type: str = "application/json"
    events: bool = False

    def head(self) -> bytes:
        length = sum(map(len, self.parts))
        framing = ("transfer-encoding", "chunked") if self.events else ("content-length", str(length))
        fields = [("content-type", self.content_type), framing, *self.headers]
        lines = [f"HTTP/1.1 {self.status} Fake", *(f"{name}: {value}" for name, value in fields)]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")

    def body(self) -> bytes:
        """The parts, in chunks where they are events, but not the end of the body."""
        return b"".join(map(chunk, filter(None, self.parts))) if self.events else b"".join(self.parts)

    def whole(self) -> bytes:
        return self.head() + self.body() + (b"0\r\n\r\n" if self.events else b"")


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def read(reader: asyncio.StreamReader) -> Received:
    """The next request.

    Raises:
        IncompleteReadError: the connection ended.
    """
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    _, path, _ = head[0].split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Received(path.partition("?")[0], headers, json.loads(body or b"{}"))


def spelled(answer: Answer, fault: Fault | None) -> bytes:
    """An answer in bytes, in the odd spellings of HTTP that some faults are."""
    match fault:
        case Fault.WRONG_TYPE | Fault.HTML:
            kind = "text/html" if fault is Fault.HTML else "text/plain"
            return replace(answer, content_type=kind).whole()
        case Fault.INFORMED:
            return b"HTTP/1.1 103 Early Hints\r\nlink: </>\r\n\r\n" + answer.whole()
        case Fault.TWICE:
            return replace(answer, headers=answer.headers * 2 + [("content-type", answer.content_type)]).whole()
        case Fault.TWO_LENGTHS:
            return replace(answer, headers=[*answer.headers, ("content-length", "3"), ("content-length", "4")]).whole()
        case Fault.CHUNK_EXTENSIONS:
            chunks = b"".join(chunk(part).replace(b"\r\n", b";of=interest\r\n", 1) for part in answer.parts)
            return replace(answer, events=True).head() + chunks + b"0\r\nx-checksum: 7\r\n\r\n"
        case Fault.BAD_CHUNK:
            return replace(answer, events=True).head() + b"seven\r\n" + b"".join(answer.parts)
        case Fault.GZIP | Fault.GZIP_CUT:
            small = gzip.compress(b"".join(answer.parts))
            parts = [small if fault is Fault.GZIP else small[: len(small) // 2]]
            return replace(answer, parts=parts, headers=[*answer.headers, ("content-encoding", "gzip")]).whole()
        case Fault.ENDS_EARLY | Fault.ENDS_BEFORE_USAGE:
            return replace(answer, parts=upto(answer.parts, stage(answer, fault))).whole()
    return answer.whole()


def cut(answer: Answer, fault: Fault) -> bytes:
    """The beginning of an answer, as far as it comes."""
    if fault is Fault.CUT_HEAD:
        return answer.head()[:20]
    return answer.head() + replace(answer, parts=upto(answer.parts, stage(answer, fault))).body()


def stage(answer: Answer, fault: Fault) -> int:
    """How many bytes of the body come before the stage that a fault is about."""
    body = b"".join(answer.parts)
    usage = body.rfind(b'"usage"')
    match fault:
        case Fault.CUT_EVENT:
            return len(b"".join(answer.parts[: len(answer.parts) // 2])) + len(answer.parts[-1]) // 2 + 7
        case Fault.CUT_BEFORE_USAGE | Fault.ENDS_BEFORE_USAGE:
            return body.rfind(b"\n\n", 0, usage) + 2 if answer.events else usage
        case Fault.CUT_AFTER_USAGE:
            return body.find(b"\n\n", usage) + 2 if answer.events else len(body) - 1
    return len(b"".join(answer.parts[: len(answer.parts) // 2])) if answer.events else len(body) // 2


def upto(parts: list[bytes], length: int) -> list[bytes]:
    """The parts of the first bytes of a body."""
    kept: list[bytes] = []
    for part in parts:
        if length <= 0:
            break
        kept.append(part[:length])
        length -= len(part)
    return kept


def without_end(answer: Answer, fault: Fault) -> Iterator[bytes]:
    """An answer that goes on for as long as somebody takes it."""
    match fault:
        case Fault.ENDLESS_HEAD:
            yield b"HTTP/1.1 200 Fake\r\n"
            yield from _again(b"x-more: " + FILLER[:1_000] + b"\r\n")
        case Fault.ENDLESS if answer.events:
            yield answer.head() + chunk(answer.parts[0])
            yield from _again(b"".join(map(chunk, answer.parts[1 : len(answer.parts) // 2])))
        case Fault.ENDLESS_EVENT if answer.events:
            yield answer.head() + chunk(answer.parts[0]) + chunk(b'event: message_delta\ndata: {"')
            yield from _again(chunk(FILLER))
        case _:
            yield replace(answer, parts=[], events=True).head() + chunk(b'{"id": "')
            yield from _again(chunk(FILLER))


def _again(data: bytes) -> Iterator[bytes]:
    while True:
        yield data


def reset(writer: asyncio.StreamWriter) -> None:
    """End a connection with a reset."""
    connection: socket.socket = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
