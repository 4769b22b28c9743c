"""A client may ask every ten seconds whether the server is still there."""

from __future__ import annotations

import asyncio
from pathlib import Path

from rlm_server.api.transport import PING_SECONDS
from tests.api import toy

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS, PING, GOAWAY = 4, 6, 7
ACKNOWLEDGED = 1


def frame(kind: int, flags: int, data: bytes = b"") -> bytes:
    """A frame of HTTP/2 that belongs to no stream: RFC 9113, 4.1."""
    return len(data).to_bytes(3, "big") + bytes([kind, flags]) + bytes(4) + data


async def answer(reader: asyncio.StreamReader) -> tuple[int, int]:
    """Read frames until one that answers a ping, or says that the connection ends."""
    while True:
        head = await reader.readexactly(9)
        await reader.readexactly(int.from_bytes(head[:3], "big"))
        if head[3] == GOAWAY or (head[3], head[4]) == (PING, ACKNOWLEDGED):
            return head[3], head[4]


async def test_pings_every_ten_seconds_are_answered_without_a_call_too(tmp_path: Path) -> None:
    async with toy.serving(tmp_path) as stage:
        host, _, port = stage.address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(PREFACE + frame(SETTINGS, 0))
        for _ in range(4):  # two more than there are strikes for
            writer.write(frame(PING, 0, b"12345678"))
            async with asyncio.timeout(60):
                assert await answer(reader) == (PING, ACKNOWLEDGED)
            await asyncio.sleep(10)
        writer.close()
        await writer.wait_closed()
    assert PING_SECONDS == 10
