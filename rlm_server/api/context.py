"""ContextService."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Any

from rlm.v1 import context_pb2, context_pb2_grpc

from rlm_server.api import requests, responses
from rlm_server.api.edge import tenant
from rlm_server.api.errors import InvalidField, NotFound
from rlm_server.store.contexts import Contexts, Upload

MOST_NAME = 200
MOST_BYTES = 2 << 30
"""Of one text: more does not fit into a guest's address space beside its own memory."""

_SHA256 = re.compile(r"[0-9a-f]{64}")


class ContextServicer(context_pb2_grpc.ContextServiceServicer):
    """Takes texts in and describes them."""

    def __init__(self, contexts: Contexts) -> None:
        self._contexts = contexts

    async def UploadContext(
        self, request_iterator: AsyncIterator[context_pb2.UploadContextRequest], context: Any
    ) -> context_pb2.UploadContextResponse:
        """Store a text as it streams in; nothing of a refused or broken upload stays."""
        upload: Upload | None = None
        try:
            async for request in request_iterator:
                part = request.WhichOneof("part")
                if upload is None:
                    if part != "header":
                        raise InvalidField("header", "must come first")
                    upload = self._begin(request.header)
                elif part != "chunk":
                    raise InvalidField("chunk", "only chunks may follow the header")
                else:
                    upload.add(request.chunk.offset, request.chunk.data)
            if upload is None:
                raise InvalidField("header", "must come first")
            return context_pb2.UploadContextResponse(context=responses.context(await self._contexts.finish(upload)))
        finally:
            if upload:
                upload.close()

    def _begin(self, header: context_pb2.UploadHeader) -> Upload:
        if not 0 < header.size_bytes <= MOST_BYTES:
            raise InvalidField("header.size_bytes", f"must be from 1 to {MOST_BYTES}, not {header.size_bytes}")
        if not _SHA256.fullmatch(header.sha256):
            raise InvalidField("header.sha256", "must be 64 lower-case hex digits")
        if len(header.name) > MOST_NAME:
            raise InvalidField("header.name", f"may have {MOST_NAME} characters, not {len(header.name)}")
        return self._contexts.begin(tenant(), header.name, header.size_bytes, header.sha256)

    async def GetContext(self, request: context_pb2.GetContextRequest, context: Any) -> context_pb2.GetContextResponse:
        """Describe a context."""
        found = await requests.context(self._contexts, tenant(), request.context_id)
        if found is None:
            raise NotFound("context", request.context_id)
        return context_pb2.GetContextResponse(context=responses.context(found))
