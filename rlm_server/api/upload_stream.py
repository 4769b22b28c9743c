"""Receives the stream of an upload.

A thread takes the messages that have arrived while the next ones come. Few wait at any time, so that a fast sender
does not fill the memory.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

from rlm.v1 import context_pb2

from rlm_server.api import requests
from rlm_server.api.errors import InvalidField
from rlm_server.contexts.context_table import Context
from rlm_server.contexts.spool import MAX_DOCUMENT, MAX_DOCUMENTS, Header, Spool, UploadRefused
from rlm_server.contexts.uploads import Uploads, UploadStalled
from rlm_server.shares.threads import Purpose, Threads
from sandbox.cancellation import cancel_and_wait, run_to_completion

MAX_NAME = 200
"""Characters of a context's name."""
MAX_WAITING = 3
"""Messages that have arrived and wait while others are taken."""
_SHA256 = re.compile(r"[0-9a-f]{64}")

Messages = AsyncIterator[context_pb2.UploadContextRequest]


async def receive(
    uploads: Uploads, threads: Threads, tenant: str, messages: Messages, *, most_bytes: int, idle_seconds: float
) -> Context:
    """Receive an upload to its end and return what it became.

    Raises:
        UploadStalled: nothing came for `idle_seconds`.
        Exception: whatever `Uploads`, `Upload` and `Spool` raise.
    """
    try:
        async with asyncio.timeout(idle_seconds):
            first = await anext(messages, None)
    except TimeoutError:
        raise UploadStalled(f"nothing came for {idle_seconds:g} s") from None
    if first is None or first.WhichOneof("part") != "header":
        raise InvalidField("header", "must come first")
    upload = await uploads.begin(_header(tenant, first.header, most_bytes))
    if isinstance(upload, Context):  # it had ended well before
        return upload
    async with upload:

        async def take(waiting: list[context_pb2.UploadContextRequest]) -> None:
            await threads.run(Purpose.UPLOADS, tenant, lambda _: _take(upload.spool, waiting))

        await _take_all(messages, upload.spool, take, idle_seconds)
        return await upload.finish()


async def _take_all(
    messages: Messages,
    spool: Spool,
    take: Callable[[list[context_pb2.UploadContextRequest]], Coroutine[Any, Any, None]],
    idle_seconds: float,
) -> None:
    """Have the spool take every message. A message that it refuses ends this at once, whether or not another comes.

    Raises:
        UploadStalled: nothing came for `idle_seconds`.
        UploadRefused: the spool refuses a message.
    """
    taking: asyncio.Task[None] | None = None
    waiting: list[context_pb2.UploadContextRequest] = []
    coming = asyncio.ensure_future(anext(messages, None))
    ended = False
    try:
        while True:
            if taking is not None and taking.done():
                taking.result()
                taking = None
            if taking is None and waiting:
                taking, waiting = asyncio.create_task(take(waiting)), []
            if taking is None and ended:
                return
            awaited: list[asyncio.Future[Any]] = [taking] if taking is not None else []
            if not ended and len(waiting) < MAX_WAITING:
                awaited.append(coming)
            limit = idle_seconds if taking is None else None
            done, _ = await asyncio.wait(awaited, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                raise UploadStalled(f"nothing came for {idle_seconds:g} s; the upload has {spool.received} bytes")
            if coming in done and not ended:
                message = coming.result()
                ended = message is None
                if message is not None:
                    waiting.append(message)
                    coming = asyncio.ensure_future(anext(messages, None))
    finally:
        if taking is not None:
            await run_to_completion(asyncio.wait((taking,)))
        await cancel_and_wait(coming)
        if not coming.cancelled():
            coming.exception()


def _take(spool: Spool, messages: list[context_pb2.UploadContextRequest]) -> None:
    for message in messages:
        match message.WhichOneof("part"):
            case "chunk":
                spool.add(message.chunk.offset, message.chunk.data)
            case "documents":
                documents = message.documents
                spool.announce(documents.first, ((one.name, one.size_bytes) for one in documents.documents))
            case _:
                raise UploadRefused("chunk", "only chunks and documents may follow the header")


def _header(tenant: str, header: context_pb2.UploadHeader, most_bytes: int) -> Header:
    """Return what a header announces, checked."""
    request_id = requests.request_id(header.request_id, "header.request_id")
    if not 0 <= header.documents <= MAX_DOCUMENTS:
        raise InvalidField("header.documents", f"must be from 0 to {MAX_DOCUMENTS}, not {header.documents}")
    least, most = (0, most_bytes) if header.documents else (1, min(most_bytes, MAX_DOCUMENT))
    if not least <= header.size_bytes <= most:
        raise InvalidField("header.size_bytes", f"must be from {least} to {most}, not {header.size_bytes}")
    if not _SHA256.fullmatch(header.sha256):
        raise InvalidField("header.sha256", "must be 64 lower-case hex digits")
    if len(header.name) > MAX_NAME:
        raise InvalidField("header.name", f"may have {MAX_NAME} characters, not {len(header.name)}")
    return Header(tenant, request_id, header.name, header.size_bytes, header.sha256, header.documents)
