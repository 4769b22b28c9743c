"""What the tests of contexts send, and ask: uploads of documents, and the calls of ContextService."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.field_mask_pb2 import FieldMask
from rlm.v1 import context_pb2

from tests.system.books import rows
from tests.system.stage import CHUNK, Caller

Message = context_pb2.UploadContextRequest
Documents = Sequence[tuple[str, str | bytes]]


def encoded(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text


def header(data: bytes, documents: int = 0, **other: Any) -> Message:
    """A header that tells the truth, but for what is given."""
    told = {
        "name": "text",
        "size_bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "document_count": documents,
        **other,
    }
    return Message(header=context_pb2.UploadHeader(**told))


def announcement(documents: Documents, first: int = 0) -> Message:
    named = [context_pb2.UploadDocument(name=name, size_bytes=len(encoded(text))) for name, text in documents]
    return Message(documents=context_pb2.UploadDocuments(first_document=first, documents=named))


def chunks(data: bytes, start: int = 0, chunk: int = CHUNK) -> list[Message]:
    return [
        Message(chunk=context_pb2.UploadChunk(offset=at, data=data[at : at + chunk]))
        for at in range(start, len(data), chunk)
    ]


def of_documents(documents: Documents, *, chunk: int = CHUNK, **other: Any) -> list[Message]:
    """An upload of documents: all announced at first."""
    data = b"".join(encoded(text) for _, text in documents)
    return [header(data, len(documents), **other), announcement(documents), *chunks(data, chunk=chunk)]


def of_text(text: str | bytes, *, chunk: int = CHUNK, **other: Any) -> list[Message]:
    """An upload of one text."""
    data = encoded(text)
    return [header(data, **other), *chunks(data, chunk=chunk)]


class ContextCalls:
    """The calls of ContextService, by one caller."""

    def __init__(self, caller: Caller) -> None:
        self._contexts, self._metadata = caller.contexts, caller.metadata
        self.send = caller.send_parts

    def stream(self) -> Any:
        """A stream that the test writes to, and to which the server says nothing meanwhile (see `send_parts`)."""
        return self._contexts.UploadContext(metadata=self._metadata)

    async def send_part(self, messages: Sequence[Message]) -> None:
        """Send the beginning of an upload, and break off when the server has it all."""
        call = self.stream()
        for message in messages:
            await call.write(message)
        request_id = messages[0].header.request_id
        sent = sum(len(message.chunk.data) for message in messages)
        announced = sum(len(message.documents.documents) for message in messages)
        await self.arrived(request_id, sent, announced)
        call.cancel()

    async def arrived(self, request_id: str, received: int, documents: int = 0) -> None:
        """Wait until so much of an upload has arrived."""
        async with asyncio.timeout(60):
            while True:
                known = await self.known(request_id)
                if known and (known.received_bytes, known.received_document_count) == (received, documents):
                    return
                await asyncio.sleep(0.01)

    async def known(self, request_id: str) -> context_pb2.GetUploadStatusResponse | None:
        """The status of an upload; None where there is no such upload."""
        try:
            return await self.status(request_id)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.NOT_FOUND:
                raise
            return None

    async def go_on_open(self, messages: Sequence[Message]) -> context_pb2.Context:
        """Send more of an upload as `go_on` does, and leave the stream open until it is answered."""
        answered = threading.Event()

        def left_open() -> Iterator[Message]:
            yield from messages
            answered.wait()

        try:
            return await self._go_on(left_open)
        finally:
            answered.set()

    async def go_on(self, messages: Sequence[Message]) -> context_pb2.Context:
        """Send the rest of an upload, as soon as the server has noticed that the stream before broke off."""
        return await self._go_on(lambda: iter(messages))

    async def _go_on(self, messages: Callable[[], Iterator[Message]]) -> context_pb2.Context:
        async with asyncio.timeout(60):
            while True:
                try:
                    return await self.send(messages())
                except grpc.RpcError as error:
                    if error.code() is not grpc.StatusCode.ABORTED:
                        raise
                await asyncio.sleep(0.01)

    async def get(self, context_id: str) -> context_pb2.Context:
        context: context_pb2.Context = (await self._ask("GetContext", context_id=context_id)).context
        return context

    async def status(self, request_id: str) -> context_pb2.GetUploadStatusResponse:
        status: context_pb2.GetUploadStatusResponse = await self._ask("GetUploadStatus", request_id=request_id)
        return status

    async def list(self, **asked: Any) -> context_pb2.ListContextsResponse:
        page: context_pb2.ListContextsResponse = await self._ask("ListContexts", **asked)
        return page

    async def documents(self, context_id: str, **asked: Any) -> context_pb2.ListDocumentsResponse:
        page: context_pb2.ListDocumentsResponse = await self._ask("ListDocuments", context_id=context_id, **asked)
        return page

    async def read(
        self, context_id: str, document: int = 0, start: int = 0, end: int = 1 << 18
    ) -> context_pb2.ReadContextResponse:
        read: context_pb2.ReadContextResponse = await self._ask(
            "ReadContext", context_id=context_id, document=document, start=start, end=end
        )
        return read

    async def search(self, context_id: str, pattern: str, **asked: Any) -> context_pb2.SearchContextResponse:
        found: context_pb2.SearchContextResponse = await self._ask(
            "SearchContext", context_id=context_id, pattern=pattern, **asked
        )
        return found

    async def update(self, context_id: str, *paths: str, request_id: str = "", **new: Any) -> context_pb2.Context:
        changed: context_pb2.Context = (
            await self._ask(
                "UpdateContext",
                context=context_pb2.Context(context_id=context_id, **new),
                update_mask=FieldMask(paths=paths),
                request_id=request_id,
            )
        ).context
        return changed

    async def delete(self, context_id: str, request_id: str = "") -> None:
        await self._ask("DeleteContext", context_id=context_id, request_id=request_id)

    async def _ask(self, call: str, **asked: Any) -> Any:
        request = getattr(context_pb2, f"{call}Request")(**asked)
        return await getattr(self._contexts, call)(request, metadata=self._metadata)


def stored(data_dir: Path) -> set[str]:
    """What is in the folder of contexts: a content has the id of the first context that had it."""
    return {path.name for path in (data_dir / "contexts").iterdir()}


def spooled(data_dir: Path) -> set[str]:
    """What is in the folder of uploads."""
    return {path.name for path in (data_dir / "uploads").iterdir()}


def nothing_of_uploads(data_dir: Path) -> bool:
    return not spooled(data_dir) and not rows(data_dir, "SELECT 1 FROM upload WHERE context IS NULL")


def in_order(data_dir: Path) -> bool:
    """Whether there is a folder for each content and a content for each folder, and nothing beside."""
    contents = {str(row["id"]) for row in rows(data_dir, "SELECT id FROM content")}
    unfinished = {str(row["id"]) for row in rows(data_dir, "SELECT id FROM upload WHERE context IS NULL")}
    return stored(data_dir) == contents and spooled(data_dir) <= unfinished
