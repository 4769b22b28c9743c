"""The servicer of `ContextService`."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

from rlm.v1 import context_pb2, context_pb2_grpc

from rlm_server.api import requests, responses
from rlm_server.api.auth import tenant
from rlm_server.api.errors import InvalidField, NotFound
from rlm_server.api.field_checks import FieldChecks
from rlm_server.api.upload_stream import Messages, Pace, receive
from rlm_server.contexts.context_table import Context, ContextFilter
from rlm_server.contexts.contexts import ContextDamaged, Contexts
from rlm_server.contexts.search import (
    LONGEST_PATTERN,
    SEARCH_SECONDS,
    Found,
    PatternRefused,
    SearchTooLong,
    compiled,
    search,
)
from rlm_server.contexts.uploads import Uploads
from rlm_server.shares.gate import WaitedTooLong
from rlm_server.shares.shares import Shares
from rlm_server.shares.threads import Purpose
from sandbox.corpora.corpus import Corpus, CorpusDamaged, Kind

MAX_READ = 1 << 18
"""Characters that one read asks for."""
MAX_DOCUMENTS = 10_000
"""Documents that one search may name."""
MAX_ANSWER = 900_000
"""Bytes of a list's answer, after which it ends: below the 1 MiB that no message has more than."""


class ContextServicer(context_pb2_grpc.ContextServiceServicer):
    """Takes texts in, describes them, and shows what is in them."""

    def __init__(self, contexts: Contexts, uploads: Uploads, shares: Shares, *, most_bytes: int, pace: Pace) -> None:
        """A context may have `most_bytes` of UTF-8. An upload that is slower than its `pace` is ended."""
        self._contexts, self._uploads, self._shares = contexts, uploads, shares
        self._threads = shares.threads
        self._most_bytes, self._pace = most_bytes, pace

    async def UploadContext(self, request_iterator: Messages, context: Any) -> context_pb2.UploadContextResponse:
        """Store a text or documents as they stream in."""
        stored = await receive(
            self._uploads,
            self._shares,
            tenant(),
            aiter(request_iterator),
            most_bytes=self._most_bytes,
            pace=self._pace,
        )
        return context_pb2.UploadContextResponse(context=responses.context(stored))

    async def GetUploadStatus(
        self, request: context_pb2.GetUploadStatusRequest, context: Any
    ) -> context_pb2.GetUploadStatusResponse:
        """Tell how far an upload is."""
        request_id = requests.required("request_id", request.request_id, requests.MAX_REQUEST_ID)
        progress = await self._uploads.status(tenant(), request_id)
        if progress is None:
            raise NotFound("upload", request_id)
        return context_pb2.GetUploadStatusResponse(
            received_bytes=progress.received_bytes,
            received_document_count=progress.received_documents,
            context=responses.context(progress.context) if progress.context else None,
        )

    async def GetContext(self, request: context_pb2.GetContextRequest, context: Any) -> context_pb2.GetContextResponse:
        """Describe a context."""
        return context_pb2.GetContextResponse(context=responses.context(await self._stored(request.context_id)))

    async def ListContexts(
        self, request: context_pb2.ListContextsRequest, context: Any
    ) -> context_pb2.ListContextsResponse:
        """List the tenant's contexts."""
        with FieldChecks() as check:
            size = check(requests.page_size, request.page_size, 100, 1_000)
            since, until = (check(requests.time_if_set, request, name, name) for name in ("since", "until"))
            named = check(requests.context_name, request.name, "name")
            asked = ContextFilter(tenant(), named, check(requests.labels, request.labels), since, until)
            list_name = requests.list_name("contexts", asked)
            before = check(requests.page_token, request.page_token, list_name, 1)
        contexts = await self._contexts.page(asked, before[0] if before is not None else None, size + 1)
        written = [responses.context(one) for one in contexts[:size]]
        page, token = responses.page(list_name, written, len(contexts), lambda shown: contexts[shown - 1].number)
        return context_pb2.ListContextsResponse(contexts=page, next_page_token=token)

    async def ListDocuments(
        self, request: context_pb2.ListDocumentsRequest, context: Any
    ) -> context_pb2.ListDocumentsResponse:
        """List a context's documents."""
        with FieldChecks() as check:
            size = check(requests.page_size, request.page_size, 1_000, 10_000)
            token = check(requests.page_token, request.page_token, request.context_id, 2)
        first, at = token if token is not None else (0, 0)
        async with self._reading(request.context_id) as (stored, corpus):
            if not (0 <= first < len(corpus) and 0 <= at <= corpus.names.characters):
                raise InvalidField("page_token", "is not one of this list")
            return await self._threads.run(
                Purpose.READING, tenant(), lambda _: _documents(stored, corpus, first, at, size)
            )

    async def ReadContext(
        self, request: context_pb2.ReadContextRequest, context: Any
    ) -> context_pb2.ReadContextResponse:
        """Show a part of a document."""
        start, end = request.start, request.end
        with FieldChecks() as check:
            check(requests.check_not_negative, "start", start)
            if end < max(start, 0) or (start >= 0 and end > start + MAX_READ):
                check.wrong("end", f"must be from start to {MAX_READ} after it, not {end}")
            async with self._reading(request.context_id) as (_, corpus):
                check(_check_document, "document", request.document, corpus)
                check.end()
                text = corpus[request.document]
                part = await self._threads.run(Purpose.READING, tenant(), lambda _: text.read(start, end))
                return context_pb2.ReadContextResponse(text=part, character_count=text.characters)

    async def SearchContext(
        self, request: context_pb2.SearchContextRequest, context: Any
    ) -> context_pb2.SearchContextResponse:
        """Find a pattern; a caller who goes away stops the search."""
        list_name = requests.list_name("matches", (request.context_id, request.pattern, list(request.documents)))
        with FieldChecks() as check:
            if not request.pattern:
                check.wrong("pattern", "must not be empty")
            if len(request.pattern) > LONGEST_PATTERN:
                check.wrong("pattern", f"may have {LONGEST_PATTERN} characters, not {len(request.pattern)}")
            size = check(requests.page_size, request.page_size, 100, 1_000)
            place = check(requests.page_token, request.page_token, list_name, 2)
            if len(request.documents) > MAX_DOCUMENTS:
                check.wrong("documents", f"may name {MAX_DOCUMENTS} documents, not {len(request.documents)}")
            async with self._reading(request.context_id) as (_, corpus):
                for index, number in enumerate(request.documents[:MAX_DOCUMENTS]):
                    check(_check_document, f"documents[{index}]", number, corpus)
                if not check.passed:
                    await self._check_pattern(check, request.pattern)
                check.end()
                after = (place[0], place[1]) if place is not None else None
                result = await self._found(corpus, request, size, after)
                return _search_response(result, list_name)

    async def _check_pattern(self, check: FieldChecks, pattern: str) -> None:
        """Note what is wrong with a pattern where it is not searched for. That it is empty or too long is known."""
        if 0 < len(pattern) <= LONGEST_PATTERN:
            try:
                await self._threads.run(Purpose.SEARCH, tenant(), lambda _: compiled(pattern))
            except PatternRefused as error:
                check.wrong("pattern", str(error))

    async def _found(
        self, corpus: Corpus, request: context_pb2.SearchContextRequest, size: int, after: tuple[int, int] | None
    ) -> Found:
        documents = list(request.documents) or None
        try:
            result = await self._threads.run(
                Purpose.SEARCH,
                tenant(),
                lambda cancelled: search(
                    corpus,
                    request.pattern,
                    documents,
                    size,
                    after=after,
                    cancelled=cancelled,
                ),
                deadline=time.monotonic() + SEARCH_SECONDS,
            )
        except PatternRefused as error:
            raise InvalidField("pattern", str(error)) from None
        except WaitedTooLong:
            raise SearchTooLong from None
        if result.stopped:
            raise SearchTooLong
        return result

    async def UpdateContext(
        self, request: context_pb2.UpdateContextRequest, context: Any
    ) -> context_pb2.UpdateContextResponse:
        """Change what a context is called."""
        asked = request.context
        with FieldChecks() as check:
            said = {
                "name": check(requests.context_name, asked.name, "context.name"),
                "labels": check(requests.labels, asked.labels, "context.labels"),
            }
            paths = check(requests.changed_fields, request.update_mask, asked, said)
            repeatable = check(requests.repeatable, tenant(), request)
        change = {path: said[path] for path in paths}
        changed = await self._contexts.update(tenant(), asked.context_id, change, repeatable)
        return context_pb2.UpdateContextResponse(context=responses.context(changed))

    async def DeleteContext(
        self, request: context_pb2.DeleteContextRequest, context: Any
    ) -> context_pb2.DeleteContextResponse:
        """Take a context away from everybody."""
        await self._contexts.delete(tenant(), request.context_id, requests.repeatable(tenant(), request))
        return context_pb2.DeleteContextResponse()

    async def _stored(self, context_id: str) -> Context:
        stored = await requests.context(self._contexts, tenant(), context_id)
        if stored is None:
            raise NotFound("context", context_id)
        return stored

    @asynccontextmanager
    async def _reading(self, context_id: str) -> AsyncIterator[tuple[Context, Corpus]]:
        """Pin a context while it is read, and yield it with its corpus.

        Raises:
            NotFound: the tenant has no such context.
            ContextDamaged: a file of it cannot be read, or is not what was written.
        """
        stored = await self._stored(context_id)
        async with self._contexts.pinned(stored) as corpus:
            try:
                yield stored, corpus
            except (OSError, EOFError, CorpusDamaged) as error:
                raise ContextDamaged(stored.id, getattr(error, "strerror", None) or str(error)) from error


def _check_document(field: str, number: int, corpus: Corpus) -> None:
    if not 0 <= number < len(corpus):
        raise InvalidField(field, f"must be from 0 to {len(corpus) - 1}, not {number}")


def _documents(context: Context, corpus: Corpus, first: int, at: int, most: int) -> context_pb2.ListDocumentsResponse:
    """Write up to `most` documents from number `first` on. Its name begins at character `at` of all names."""
    response, size = context_pb2.ListDocumentsResponse(), 0
    names = _lines(corpus, at) if context.content.kind is Kind.DOCUMENTS else iter(("",))
    for number, name in enumerate(names, start=first):
        if number == first + most or size > MAX_ANSWER:
            response.next_page_token = responses.page_token(context.id, number, at)
            break
        if number >= len(corpus):  # the token has a place that is none of this number's
            raise InvalidField("page_token", "is not one of this list")
        characters = corpus[number].characters
        response.documents.append(context_pb2.Document(number=number, name=name, character_count=characters))
        size += len(name.encode()) + 24
        at += len(name) + 1
    return response


def _lines(corpus: Corpus, at: int) -> Iterator[str]:
    """Yield the documents' names, from the one on that begins at character `at` of all names."""
    rest = ""
    while at < corpus.names.characters:
        piece = corpus.names.read(at, at + MAX_READ)
        at += len(piece)
        *lines, rest = (rest + piece).split("\n")
        yield from lines
    yield rest


def _search_response(result: Found, list_name: str) -> context_pb2.SearchContextResponse:
    response, size, more = context_pb2.SearchContextResponse(), 0, result.more
    for match in result.matches:
        size += len(match.text.encode()) + 40
        if size > MAX_ANSWER:
            more = True
            break
        response.matches.add(document=match.document, start=match.start, end=match.end, text=match.text)
    if more and response.matches:
        last = response.matches[-1]
        response.next_page_token = responses.page_token(list_name, last.document, max(last.end, last.start + 1))
    return response
