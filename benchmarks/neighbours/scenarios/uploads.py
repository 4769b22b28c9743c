"""Uploads that never end, that are left, and that are many; and a disk that is full."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator

from rlm.v1 import context_pb2

from benchmarks.neighbours.attacker import Attacker, Play
from benchmarks.neighbours.client import chunk, header
from benchmarks.neighbours.scenario import POOR, Table

TABLE = Table()

GB = 1_000_000_000
MIB = 1 << 20
NO_SHA256 = hashlib.sha256(b"").hexdigest()


async def _send(attacker: Attacker, parts: AsyncIterator[context_pb2.UploadContextRequest]) -> None:
    await attacker.tried(attacker.client.contexts.UploadContext(parts, metadata=attacker.client.metadata))


@TABLE.of(POOR)
async def endless_uploads(attacker: Attacker) -> Play:
    """Fifty uploads that send a byte a second."""

    async def parts(number: int) -> AsyncIterator[context_pb2.UploadContextRequest]:
        yield header(5_000_000, NO_SHA256, request_id=f"endless {number}")
        for at in range(60):
            yield chunk(at, b"x")
            await asyncio.sleep(1)

    async def play() -> None:
        await attacker.at_once(50, lambda number: _send(attacker, parts(number)))

    return play


@TABLE.of(POOR)
async def abandoned_uploads(attacker: Attacker) -> Play:
    """Uploads of 60 MB that break off after 8 MiB, one after another."""
    data = os.urandom(MIB // 2).hex().encode()

    async def parts(name: str) -> AsyncIterator[context_pb2.UploadContextRequest]:
        yield header(60_000_000, NO_SHA256, request_id=name)
        for at in range(8):
            yield chunk(at * MIB, data)
        yield chunk(60_000_000, b"")  # which is wrong, so that it ends

    async def play() -> None:
        await attacker.at_once(4, lambda _: _send(attacker, parts(os.urandom(8).hex())))

    return play


@TABLE.of(POOR)
async def empty_documents(attacker: Attacker) -> Play:
    """Uploads of a million empty documents with names of 400 letters."""

    async def parts() -> AsyncIterator[context_pb2.UploadContextRequest]:
        yield header(0, NO_SHA256, documents=1_000_000)
        announced = [context_pb2.UploadDocument(name="n" * 400)] * 2_000
        for first in range(0, 1_000_000, 2_000):
            documents = context_pb2.UploadDocuments(first_document=first, documents=announced)
            yield context_pb2.UploadContextRequest(documents=documents)

    async def play() -> None:
        await attacker.at_once(2, lambda _: _send(attacker, parts()))

    return play


@TABLE.of(POOR)
async def uploads_and_deletions(attacker: Attacker) -> Play:
    """Texts of a mebibyte that are uploaded and deleted, one after another."""

    async def once(_: int) -> None:
        made = await attacker.upload(os.urandom(MIB // 2).hex())
        if made:
            request = context_pb2.DeleteContextRequest(context_id=made)
            await attacker.call(attacker.client.contexts.DeleteContext, request)

    async def play() -> None:
        await attacker.at_once(4, once)

    return play


@TABLE.of(POOR)
async def one_upload_by_many(attacker: Attacker) -> Play:
    """Sixty streams that send the same upload."""

    async def parts() -> AsyncIterator[context_pb2.UploadContextRequest]:
        yield header(200_000_000, NO_SHA256, request_id="the same")
        for at in range(1_000):
            yield chunk(at * 1_000, b"x" * 1_000)

    async def play() -> None:
        await attacker.at_once(60, lambda _: _send(attacker, parts()))

    return play


@TABLE.of(POOR)
async def refused_uploads(attacker: Attacker) -> Play:
    """Sixty streams that send uploads for which there is no quota."""

    async def parts() -> AsyncIterator[context_pb2.UploadContextRequest]:
        yield header(GB, NO_SHA256, request_id="too much")
        for at in range(1_000):
            yield chunk(at * 1_000, b"x" * 1_000)

    async def play() -> None:
        await attacker.at_once(60, lambda _: _send(attacker, parts()))

    return play


@TABLE.of(POOR, disk_mb=128, disk_reserve_bytes=48 * MIB, refusable=("upload: RESOURCE_EXHAUSTED",))
async def full_disk(attacker: Attacker) -> Play:
    """Texts, until there is no room on the disk; uploads may be refused then, and nothing else."""

    async def play() -> None:
        await attacker.at_once(2, lambda _: attacker.upload(os.urandom(8 * MIB).hex()))

    return play
