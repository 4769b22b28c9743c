"""Receives the stream of an upload.

A thread takes the messages that have arrived while the next ones come. Few wait at any time, so that a fast sender
does not fill the memory.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from rlm.v1 import context_pb2

from rlm_server.api import requests
from rlm_server.api.errors import InvalidField
from rlm_server.api.field_checks import FieldChecks
from rlm_server.contexts.context_table import Context
from rlm_server.contexts.spool import MAX_DOCUMENT, MAX_DOCUMENTS, Header, UploadRefused
from rlm_server.contexts.uploads import Upload, Uploads, UploadStalled
from rlm_server.shares.held import Held
from rlm_server.shares.shares import Shares
from rlm_server.shares.threads import Purpose
from sandbox.cancellation import cancel_and_wait, until_ended

MAX_WAITING = 3
"""Messages that have arrived and wait while others are taken."""
READ_AHEAD_ROOM = 16 << 20
"""Bytes that must be left of what may be held for a tenant, so that messages come while others are taken."""

Messages = AsyncIterator[context_pb2.UploadContextRequest]


@dataclass(frozen=True, slots=True)
class Pace:
    """How slow a stream may be: for `idle_seconds` it may bring less than `bytes_per_second`, or nothing."""

    idle_seconds: float
    bytes_per_second: int


class _Patience:
    """What is left of the time for which a stream may be too slow. What arrives gives some of it back."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self.seconds = pace.idle_seconds

    def waited(self, seconds: float) -> None:
        self.seconds = max(0.0, self.seconds - seconds)

    def arrived(self, size: int) -> None:
        most, rate = self._pace.idle_seconds, self._pace.bytes_per_second
        self.seconds = min(most, self.seconds + size / rate) if rate else most

    def lost(self, received: int) -> UploadStalled:
        pace = self._pace
        least = f" (or less than {pace.bytes_per_second} bytes a second)" if pace.bytes_per_second else ""
        return UploadStalled(f"nothing came for {pace.idle_seconds:g} s{least}; the upload has {received} bytes")


async def receive(
    uploads: Uploads, shares: Shares, tenant: str, messages: Messages, *, most_bytes: int, pace: Pace
) -> Context:
    """Receive an upload to its end and return what it became. What waits in memory is counted as `held`.

    Raises:
        UploadStalled: the stream is slower than `pace`.
        Exception: whatever `Uploads`, `Upload` and `Spool` raise.
    """
    try:
        async with asyncio.timeout(pace.idle_seconds):
            first = await anext(messages, None)
    except TimeoutError:
        raise UploadStalled(f"nothing came for {pace.idle_seconds:g} s") from None
    if first is None or first.WhichOneof("part") != "header":
        raise InvalidField("header", "must come first")
    upload = await uploads.begin(_header(tenant, first.header, most_bytes))
    if isinstance(upload, Context):  # it had ended well before
        return upload
    async with upload:
        arrived = _Arrived(shares.held, tenant)

        async def take() -> None:
            messages = arrived.take()
            await shares.threads.run(Purpose.UPLOADS, tenant, lambda _: _take(upload, messages))
            arrived.taken()

        try:
            await _take_all(messages, upload, arrived, take, _Patience(pace))
        finally:
            arrived.clear()
        return await upload.finish()


class _Arrived:
    """The messages that have arrived and wait, or are being taken, counted as held for their tenant."""

    def __init__(self, held: Held, tenant: str) -> None:
        self._held, self._tenant = held, tenant
        self.waiting: list[context_pb2.UploadContextRequest] = []
        self._waiting_bytes = self._taken_bytes = 0

    @property
    def may_be_more(self) -> bool:
        """Whether another message may come while these wait. One always may where none does."""
        if not self.waiting:
            return True
        return len(self.waiting) < MAX_WAITING and self._held.room(self._tenant) >= READ_AHEAD_ROOM

    def add(self, message: context_pb2.UploadContextRequest, size: int) -> None:
        self._held.take(self._tenant, size, "an upload's messages")
        self._waiting_bytes += size
        self.waiting.append(message)

    def take(self) -> list[context_pb2.UploadContextRequest]:
        """Return those that wait. They stay counted until `taken`."""
        messages, self.waiting = self.waiting, []
        self._taken_bytes, self._waiting_bytes = self._waiting_bytes, 0
        return messages

    def taken(self) -> None:
        self._held.give_back(self._tenant, self._taken_bytes)
        self._taken_bytes = 0

    def clear(self) -> None:
        self.taken()
        self._held.give_back(self._tenant, self._waiting_bytes)
        self._waiting_bytes = 0


async def _take_all(
    messages: Messages,
    upload: Upload,
    arrived: _Arrived,
    take: Callable[[], Coroutine[Any, Any, None]],
    patience: _Patience,
) -> None:
    """Have the spool take every message. A message that it refuses ends this at once, whether or not another comes.

    Raises:
        UploadStalled: there is no patience left.
        UploadRefused: the spool refuses a message.
        TooMuchHeld: the tenant has no room in memory for another message.
    """
    taking: asyncio.Task[None] | None = None
    coming = asyncio.ensure_future(anext(messages, None))
    ended = False
    try:
        while True:
            if taking is not None and taking.done():
                taking.result()
                taking = None
            if taking is None and arrived.waiting:
                taking = asyncio.create_task(take())
            if taking is None and ended:
                return
            awaited: list[asyncio.Future[Any]] = [taking] if taking is not None else []
            if not ended and arrived.may_be_more:
                awaited.append(coming)
            limit, began = (patience.seconds if taking is None else None), time.monotonic()
            done, _ = await asyncio.wait(awaited, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
            if taking is None:
                patience.waited(time.monotonic() - began)
            if not done:
                raise patience.lost(upload.spool.received)
            if coming in done and not ended:
                message = coming.result()
                ended = message is None
                if message is not None:
                    size = message.ByteSize()
                    patience.arrived(size)
                    arrived.add(message, size)
                    coming = asyncio.ensure_future(anext(messages, None))
    finally:
        if taking is not None:
            await until_ended(taking)
        await cancel_and_wait(coming)


def _take(upload: Upload, messages: list[context_pb2.UploadContextRequest]) -> None:
    upload.check_room()
    spool = upload.spool
    for message in messages:
        match message.WhichOneof("part"):
            case "chunk":
                spool.add(message.chunk.offset, message.chunk.data)
            case "documents":
                documents = message.documents
                spool.announce(documents.first_document, ((one.name, one.size_bytes) for one in documents.documents))
            case _:
                raise UploadRefused("chunk", "only chunks and documents may follow the header")


def _header(tenant: str, header: context_pb2.UploadHeader, most_bytes: int) -> Header:
    """Return what a header announces, checked."""
    least, most = (0, most_bytes) if header.document_count else (1, min(most_bytes, MAX_DOCUMENT))
    with FieldChecks() as check:
        request_id = check(requests.request_id, header.request_id, "header.request_id")
        if not 0 <= header.document_count <= MAX_DOCUMENTS:
            check.wrong("header.document_count", f"must be from 0 to {MAX_DOCUMENTS}, not {header.document_count}")
        if not least <= header.size_bytes <= most:
            check.wrong("header.size_bytes", f"must be from {least} to {most}, not {header.size_bytes}")
        check(requests.sha256, "header.sha256", header.sha256)
        name = check(requests.context_name, header.name, "header.name")
        labels = check(requests.labels, header.labels, "header.labels")
    return Header(tenant, request_id, name, header.size_bytes, header.sha256, header.document_count, labels)
