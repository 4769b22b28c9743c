"""A ContextService in memory: a test instrument, and no model of the real server.

It checks every message of an upload as the protocol has it, breaks streams on demand, and keeps or forgets what had
arrived. What the client sends wrongly is refused with INVALID_ARGUMENT and kept in `complaints`.
"""

from __future__ import annotations

import re
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from typing import NoReturn, TypeVar

import grpc
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status
from rlm.v1 import context_pb2, context_pb2_grpc

CHUNK = 1 << 20
MAX_ANNOUNCEMENT = 1 << 20
MAX_READ = 262_144
PAGE = 3
"""Of every list, so that a test sees pages."""

Item = TypeVar("Item")


def refusal(code: grpc.StatusCode, message: str, *details: Message) -> status_pb2.Status:
    """Make a status as the server sends it."""
    status = status_pb2.Status(code=code.value[0], message=message)
    for detail in details:
        status.details.add().Pack(detail)
    return status


def refuse(context: grpc.ServicerContext, status: status_pb2.Status) -> NoReturn:
    context.abort_with_status(rpc_status.to_status(status))
    raise AssertionError("abort_with_status returned")


@dataclass
class Break:
    """Where a stream breaks: once it has brought so many bytes, and so many documents have been announced."""

    after_bytes: int = 0
    after_documents: int = 0
    forgets: bool = False
    """Whether the server then knows nothing of the upload."""
    when_stored: bool = False
    """The upload ends well, and the answer to it is lost."""
    code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE
    message: str = "the server is going away"


@dataclass
class Arrived:
    """What has arrived of an upload."""

    header: context_pb2.UploadHeader
    data: bytearray = field(default_factory=bytearray)
    documents: list[context_pb2.UploadDocument] = field(default_factory=list)
    context: context_pb2.Context | None = None


@dataclass
class Stored:
    context: context_pb2.Context
    documents: list[tuple[str, str]]


class Wrong(Exception):
    """The client sent what the protocol does not allow."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(f"{name}: {message}")
        self.name = name


class FakeContexts(context_pb2_grpc.ContextServiceServicer):
    """Stores uploads. `breaks` are those of the next streams, in order."""

    def __init__(self) -> None:
        self.breaks: deque[Break] = deque()
        self.uploads: dict[str, Arrived] = {}
        self.stored: dict[str, Stored] = {}
        self.streams: list[tuple[int, int]] = []
        """Of each stream: the bytes and the documents that were there before it."""
        self.complaints: list[str] = []
        self.understates: deque[int] = deque()
        """How many bytes too few the next statuses tell."""
        self.is_paced = False
        """Whether each chunk waits until the upload's status is asked for after it."""
        self._status_asked = threading.Event()

    def enter(self, call: str, request: Message | None, context: grpc.ServicerContext) -> None:
        """Take note of a call; for the server this is part of."""

    def received(self, request: context_pb2.UploadContextRequest) -> None:
        """Take note of a message of an upload."""

    @property
    def documents(self) -> dict[str, str]:
        """The documents of the one context that is stored."""
        (stored,) = self.stored.values()
        return dict(stored.documents)

    @property
    def text(self) -> str:
        """The one text that is stored."""
        (stored,) = self.stored.values()
        assert stored.context.kind == context_pb2.CONTEXT_KIND_TEXT
        return stored.documents[0][1]

    # ---- uploads -------------------------------------------------------------------------------------------------

    def UploadContext(
        self, request_iterator: Iterator[context_pb2.UploadContextRequest], context: grpc.ServicerContext
    ) -> context_pb2.UploadContextResponse:
        self.enter("UploadContext", None, context)
        broken = self.breaks.popleft() if self.breaks else None
        arrived = None
        try:
            arrived = self._begin(request_iterator)
            before = len(arrived.data)
            self.streams.append((before, len(arrived.documents)))
            if arrived.context is None:
                self._check_break(arrived, before, broken, context)
                for request in request_iterator:
                    self._take(arrived, request)
                    self._check_break(arrived, before, broken, context)
                arrived.context = self._finished(arrived)
        except Wrong as wrong:
            self.complaints.append(str(wrong))
            self.uploads = {key: one for key, one in self.uploads.items() if one is not arrived}
            bad = error_details_pb2.BadRequest()
            bad.field_violations.add(field=wrong.name, description=str(wrong))
            refuse(context, refusal(grpc.StatusCode.INVALID_ARGUMENT, str(wrong), bad))
        if broken and broken.when_stored:
            self._break(arrived, broken, context)
        return context_pb2.UploadContextResponse(context=arrived.context)

    def _begin(self, requests: Iterator[context_pb2.UploadContextRequest]) -> Arrived:
        first = next(requests)
        self.received(first)
        if first.WhichOneof("part") != "header":
            raise Wrong("header", "must come first")
        header = first.header
        arrived = self.uploads.setdefault(header.request_id, Arrived(header)) if header.request_id else Arrived(header)
        if arrived.header != header:
            raise Wrong("header", "is not the one that the upload began with")
        return arrived

    def _take(self, arrived: Arrived, request: context_pb2.UploadContextRequest) -> None:
        self.received(request)
        match request.WhichOneof("part"):
            case "documents":
                if request.ByteSize() >= MAX_ANNOUNCEMENT:
                    raise Wrong("documents", f"{request.ByteSize()} bytes in one message")
                if not arrived.header.document_count:
                    raise Wrong("documents", "the whole is one text")
                if request.documents.first_document != len(arrived.documents):
                    raise Wrong(
                        "documents.first_document", f"{request.documents.first_document} after {len(arrived.documents)}"
                    )
                arrived.documents += request.documents.documents
            case "chunk":
                self._take_chunk(arrived, request.chunk)
            case other:
                raise Wrong("part", f"{other} in the middle")

    def _take_chunk(self, arrived: Arrived, chunk: context_pb2.UploadChunk) -> None:
        if chunk.offset != len(arrived.data):
            raise Wrong("chunk.offset", f"{chunk.offset} after {len(arrived.data)}")
        if not 0 < len(chunk.data) <= CHUNK:
            raise Wrong("chunk.data", f"{len(chunk.data)} bytes")
        announced = sum(document.size_bytes for document in arrived.documents)
        room = announced if arrived.header.document_count else arrived.header.size_bytes
        if len(arrived.data) + len(chunk.data) > room:
            raise Wrong("chunk.data", f"more than the {room} bytes announced")
        arrived.data += chunk.data
        if self.is_paced:
            self._status_asked.clear()
            self._status_asked.wait(60)

    def _check_break(self, arrived: Arrived, before: int, broken: Break | None, context: grpc.ServicerContext) -> None:
        if broken is None or broken.when_stored or len(arrived.documents) < broken.after_documents:
            return
        if len(arrived.data) - before >= broken.after_bytes:
            self._break(arrived, broken, context)

    def _break(self, arrived: Arrived, broken: Break, context: grpc.ServicerContext) -> NoReturn:
        if broken.forgets:
            del self.uploads[arrived.header.request_id]
        refuse(context, refusal(broken.code, broken.message))

    def _finished(self, arrived: Arrived) -> context_pb2.Context:
        header, data = arrived.header, bytes(arrived.data)
        if len(data) != header.size_bytes:
            raise Wrong("header.size_bytes", f"{header.size_bytes} announced, {len(data)} arrived")
        if sha256(data).hexdigest() != header.sha256:
            raise Wrong("header.sha256", f"the SHA-256 is {sha256(data).hexdigest()}")
        if len(arrived.documents) != header.document_count:
            raise Wrong("header.document_count", f"{header.document_count} announced, {len(arrived.documents)} named")
        documents = list(_cut(arrived))
        stored = context_pb2.Context(
            context_id=f"context-{len(self.stored) + 1}",
            name=header.name,
            size_bytes=len(data),
            character_count=sum(len(text) for _, text in documents),
            sha256=header.sha256,
            create_time=Timestamp(seconds=1_700_000_000),
            kind=context_pb2.CONTEXT_KIND_DOCUMENTS if header.document_count else context_pb2.CONTEXT_KIND_TEXT,
            document_count=len(documents),
            labels=header.labels,
        )
        self.stored[stored.context_id] = Stored(stored, documents)
        return stored

    def GetUploadStatus(
        self, request: context_pb2.GetUploadStatusRequest, context: grpc.ServicerContext
    ) -> context_pb2.GetUploadStatusResponse:
        self.enter("GetUploadStatus", request, context)
        arrived = self.uploads.get(request.request_id)
        if arrived is None:
            refuse(context, refusal(grpc.StatusCode.NOT_FOUND, "there is no such upload"))
        self._status_asked.set()
        too_few = self.understates.popleft() if self.understates else 0
        return context_pb2.GetUploadStatusResponse(
            received_bytes=len(arrived.data) - too_few,
            received_document_count=len(arrived.documents),
            context=arrived.context,
        )

    # ---- what is stored ------------------------------------------------------------------------------------------

    def GetContext(
        self, request: context_pb2.GetContextRequest, context: grpc.ServicerContext
    ) -> context_pb2.GetContextResponse:
        self.enter("GetContext", request, context)
        return context_pb2.GetContextResponse(context=self._find(request.context_id, context).context)

    def ListContexts(
        self, request: context_pb2.ListContextsRequest, context: grpc.ServicerContext
    ) -> context_pb2.ListContextsResponse:
        self.enter("ListContexts", request, context)
        found = [
            one.context
            for one in reversed(self.stored.values())
            if request.labels.items() <= one.context.labels.items() and request.name in ("", one.context.name)
        ]
        page, token = _page(found, request.page_token)
        return context_pb2.ListContextsResponse(contexts=page, next_page_token=token)

    def ListDocuments(
        self, request: context_pb2.ListDocumentsRequest, context: grpc.ServicerContext
    ) -> context_pb2.ListDocumentsResponse:
        self.enter("ListDocuments", request, context)
        found = [
            context_pb2.Document(number=number, name=name, character_count=len(text))
            for number, (name, text) in enumerate(self._find(request.context_id, context).documents)
        ]
        page, token = _page(found, request.page_token)
        return context_pb2.ListDocumentsResponse(documents=page, next_page_token=token)

    def ReadContext(
        self, request: context_pb2.ReadContextRequest, context: grpc.ServicerContext
    ) -> context_pb2.ReadContextResponse:
        self.enter("ReadContext", request, context)
        _, text = self._find(request.context_id, context).documents[request.document]
        if not 0 <= request.end - request.start <= MAX_READ:
            said = f"end: at most {MAX_READ} after start, not {request.end - request.start}"
            refuse(context, refusal(grpc.StatusCode.INVALID_ARGUMENT, said))
        return context_pb2.ReadContextResponse(text=text[request.start : request.end], character_count=len(text))

    def SearchContext(
        self, request: context_pb2.SearchContextRequest, context: grpc.ServicerContext
    ) -> context_pb2.SearchContextResponse:
        self.enter("SearchContext", request, context)
        matches = [
            context_pb2.Match(document=number, start=match.start(), end=match.end(), text=match.group())
            for number, (_, text) in enumerate(self._find(request.context_id, context).documents)
            if not request.documents or number in request.documents
            for match in re.finditer(request.pattern, text)
        ]
        more = len(matches) > request.page_size
        return context_pb2.SearchContextResponse(
            matches=matches[: request.page_size], next_page_token="more" if more else ""
        )

    def UpdateContext(
        self, request: context_pb2.UpdateContextRequest, context: grpc.ServicerContext
    ) -> context_pb2.UpdateContextResponse:
        self.enter("UpdateContext", request, context)
        stored = self._find(request.context.context_id, context).context
        for path in request.update_mask.paths:
            stored.ClearField(path)  # type: ignore[arg-type]
        FieldMask(paths=request.update_mask.paths).MergeMessage(request.context, stored)
        return context_pb2.UpdateContextResponse(context=stored)

    def DeleteContext(
        self, request: context_pb2.DeleteContextRequest, context: grpc.ServicerContext
    ) -> context_pb2.DeleteContextResponse:
        self.enter("DeleteContext", request, context)
        self._find(request.context_id, context)
        del self.stored[request.context_id]
        return context_pb2.DeleteContextResponse()

    def _find(self, context_id: str, context: grpc.ServicerContext) -> Stored:
        if context_id not in self.stored:
            refuse(context, refusal(grpc.StatusCode.NOT_FOUND, f"there is no context {context_id!r}"))
        return self.stored[context_id]


def _cut(arrived: Arrived) -> Iterator[tuple[str, str]]:
    """Cut what arrived into its documents, each of them UTF-8."""
    if not arrived.header.document_count:
        yield "", arrived.data.decode("utf-8")
    start = 0
    for document in arrived.documents:
        end = start + document.size_bytes
        yield document.name, arrived.data[start:end].decode("utf-8")
        start = end


def _page(found: list[Item], token: str) -> tuple[list[Item], str]:
    start = int(token or 0)
    return found[start : start + PAGE], str(start + PAGE) if len(found) > start + PAGE else ""
