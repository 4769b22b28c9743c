"""Nothing that a client does to a call or a connection makes the server log anything, nor counts for ever."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.api.toy import KINDS, NOT_UTF8, Stage, serving, words
from tests.system.stage import eventually

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """A frame of HTTP/2."""
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def literal(name: str, value: str) -> bytes:
    """A header of HPACK that is not indexed: https://www.rfc-editor.org/rfc/rfc7541#section-6.2.2"""
    parts = [bytes((len(text),)) + text.encode() for text in (name, value)]
    return b"\x00" + b"".join(parts)


def headers(stream: int, key: str, kind: str) -> bytes:
    fields = {":method": "POST", ":scheme": "http", ":path": f"/rlm.test.Toy/{kind}", ":authority": "x"}
    fields |= {"te": "trailers", "content-type": "application/grpc", "authorization": f"Bearer {key}"}
    return frame(1, 4, stream, b"".join(literal(*field) for field in fields.items()))


@pytest.fixture
async def stage(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> AsyncIterator[Stage]:
    """A stage on which nothing may be logged, and nothing may be left under way."""
    caplog.set_level(logging.INFO)
    async with serving(tmp_path) as made:
        yield made
        made.toy.let_go.set()
        await eventually(lambda: not made.admission.requests("ann"))
        await made.send("unary_unary", words("unary_unary", "alive"), (made.bearer,))
        assert made.held.of("ann") == 0
    gc.collect()
    logged = [(one.name, one.getMessage()) for one in caplog.get_records("call") if one.name != "asyncio"]
    logged += [(one.name, one.getMessage()) for one in caplog.get_records("call") if one.levelno >= logging.WARNING]
    assert logged == []


def begin(stage: Stage, channel: grpc.aio.Channel, kind: str, *said: str) -> Any:
    method: Any = getattr(channel, kind)(f"/rlm.test.Toy/{kind}")
    sent = words(kind, *said)
    return method(iter(sent) if kind.startswith("stream") else sent[0], metadata=(stage.bearer,), timeout=30)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_call_cancelled_at_any_moment(kind: str, stage: Stage) -> None:
    async with grpc.aio.insecure_channel(stage.address) as channel:
        for passes in (0, 1, 2, 3, 5, 8, 13, 21, 34):
            call = begin(stage, channel, kind, "one", "wait")
            for _ in range(passes):
                await asyncio.sleep(0)
            call.cancel()


@pytest.mark.parametrize("kind", KINDS)
async def test_a_call_whose_deadline_passes(kind: str, stage: Stage) -> None:
    async with grpc.aio.insecure_channel(stage.address) as channel:
        method: Any = getattr(channel, kind)(f"/rlm.test.Toy/{kind}")
        for seconds in (0.0001, 0.001, 0.01, 0.1):
            (sent,) = words(kind, "wait")
            call = method(
                iter([sent]) if kind.startswith("stream") else sent, metadata=(stage.bearer,), timeout=seconds
            )
            waiting = asyncio.ensure_future(call.read() if kind.endswith("stream") else call)
            await asyncio.wait([waiting])  # the client may call it cancelled instead
            assert waiting.cancelled() or waiting.exception() is not None


@pytest.mark.parametrize("kind", KINDS)
async def test_a_connection_dropped_in_the_middle_of_calls(kind: str, stage: Stage) -> None:
    for _ in range(3):
        channel = grpc.aio.insecure_channel(stage.address)
        calls = [begin(stage, channel, kind, "one", "wait") for _ in range(5)]
        waiting = [asyncio.ensure_future(call.read() if kind.endswith("stream") else call) for call in calls]
        await eventually(lambda: stage.toy.heard)
        await channel.close(None)
        await asyncio.wait(waiting)
        for one in waiting:
            one.cancelled() or one.exception()


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01" + bytes(300),
        PREFACE,
        PREFACE + b"\xff" * 500,
        PREFACE + frame(4, 0, 0, b"") + frame(1, 4, 1, b"\xff" * 100),
        PREFACE + frame(4, 0, 0, b"") + frame(0, 0, 1, b"x"),
        PREFACE + frame(4, 0, 0, b"") + frame(8, 0, 0, bytes(4)),
    ],
    ids=["nothing", "HTTP/1", "TLS", "a preface", "garbage", "bad headers", "data without a call", "a bad window"],
)
async def test_what_is_no_http2(sent: bytes, stage: Stage) -> None:
    host, _, port = stage.address.rpartition(":")
    for _ in range(3):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(sent)
        await writer.drain()
        writer.close()
        await asyncio.wait([asyncio.ensure_future(writer.wait_closed())])
        assert reader is not None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "after",
    [
        b"",
        frame(0, 1, 1, b""),
        frame(0, 0, 1, b"\x00\x00\x00\x00\x05ab"),
        frame(0, 1, 1, b"\x00\x00\x00\x00\x05ab"),
        frame(0, 1, 1, b"\x00\xff\xff\xff\xff"),
        frame(0, 1, 1, b"\x07\x00\x00\x00\x01a"),
        frame(0, 1, 1, b"\x00" + struct.pack(">I", len(NOT_UTF8)) + NOT_UTF8),
        frame(3, 0, 1, bytes(4)),
        frame(0, 0, 1, b"\x00\x00\x00\x00\x06\x0a\x04wait") + frame(3, 0, 1, bytes(4)),
        frame(0, 1, 1, b"\x00\x00\x00\x00\x06\x0a\x04wait"),
    ],
    ids=[
        "nothing",
        "an end",
        "half",
        "half, and an end",
        "too much",
        "bad flags",
        "not UTF-8",
        "reset",
        "late",
        "gone",
    ],
)
async def test_a_call_that_is_left_half_made(kind: str, after: bytes, stage: Stage) -> None:
    host, _, port = stage.address.rpartition(":")
    for is_rude in (False, True):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(PREFACE + frame(4, 0, 0, b"") + headers(1, stage.key, kind) + after)
            await asyncio.sleep(0.05)  # so that the call is under way when the connection goes
            if is_rude:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


async def test_calls_that_are_reset_as_fast_as_they_are_made(stage: Stage) -> None:
    host, _, port = stage.address.rpartition(":")
    made = b"".join(
        headers(number, stage.key, "unary_unary") + frame(3, 0, number, bytes(4)) for number in range(1, 4_001, 2)
    )
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(PREFACE + frame(4, 0, 0, b"") + made)
    reading = asyncio.ensure_future(reader.read())
    async with asyncio.timeout(30):
        await writer.drain()
    writer.close()
    await asyncio.wait([reading])
    reading.cancelled() or reading.exception()
