"""The calls of `SessionService` about forks and snapshots."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from rlm.v1 import session_pb2, session_pb2_grpc

from rlm_server.api import key_account, requests, responses
from rlm_server.api.auth import tenant
from rlm_server.api.errors import InvalidField, NotFound
from rlm_server.api.field_checks import FieldChecks
from rlm_server.contexts.uploads import UploadStalled
from rlm_server.sessions.snapshot_table import SnapshotFilter, SnapshotRow
from rlm_server.sessions.snapshots import NewSnapshot, Snapshots
from rlm_server.shares.shares import Shares

MAX_SNAPSHOT_BYTES = 1 << 40
"""Bytes of the file of a snapshot that may be announced; how many there may be, the tenant's `stored_bytes` says."""
_Import = AsyncIterator[session_pb2.ImportSnapshotRequest]


class SnapshotServicer(session_pb2_grpc.SessionServiceServicer):
    """Serves snapshots. `SessionServicer` is the rest.

    They are the whole tenant's: a key that is bound to a customer's account has nothing to do with them.
    """

    def __init__(self, snapshots: Snapshots, shares: Shares, idle_seconds: float) -> None:
        """A file that comes may bring nothing for `idle_seconds`."""
        self._snapshots, self._shares, self._idle_seconds = snapshots, shares, idle_seconds

    async def ListSnapshots(
        self, request: session_pb2.ListSnapshotsRequest, context: Any
    ) -> session_pb2.ListSnapshotsResponse:
        """List the tenant's snapshots."""
        key_account.check("")
        with FieldChecks() as check:
            size = check(requests.page_size, request.page_size, 100, 1_000)
            since, until = (check(requests.time_if_set, request, name, name) for name in ("since", "until"))
            labels = check(requests.labels, request.labels)
            asked = SnapshotFilter(tenant(), request.session_id, labels, since, until)
            list_name = requests.list_name("snapshots", asked)
            place = check(requests.page_place, request.page_token, list_name)
        found = await self._snapshots.page(asked, place, size + 1)
        if request.session_id and not (found or await self._snapshots.knows(tenant(), request.session_id)):
            raise NotFound("session", request.session_id)
        written = [snapshot(row) for row in found[:size]]
        page, token = responses.page(list_name, written, len(found), lambda shown: found[shown - 1].place)
        return session_pb2.ListSnapshotsResponse(snapshots=page, next_page_token=token)

    async def DeleteSnapshot(
        self, request: session_pb2.DeleteSnapshotRequest, context: Any
    ) -> session_pb2.DeleteSnapshotResponse:
        """Delete a snapshot."""
        key_account.check("")
        repeatable = requests.repeatable(tenant(), request)
        if not await self._snapshots.delete(tenant(), request.snapshot_id, repeatable):
            raise NotFound("snapshot", request.snapshot_id)
        return session_pb2.DeleteSnapshotResponse()

    async def ExportSnapshot(
        self, request: session_pb2.ExportSnapshotRequest, context: Any
    ) -> AsyncIterator[session_pb2.ExportSnapshotResponse]:
        """Stream the file of a snapshot."""
        key_account.check("")
        requests.check_not_negative("offset", request.offset)
        row = await self._snapshots.get(tenant(), request.snapshot_id)
        if row is None:
            raise NotFound("snapshot", request.snapshot_id)
        if not request.offset <= row.size_bytes:
            raise InvalidField("offset", f"must be from 0 to {row.size_bytes}, not {request.offset}")
        file = await self._snapshots.export(row, request.offset)
        async with aclosing(file.chunks) as chunks:
            header = session_pb2.SnapshotFile(snapshot=snapshot(row), size_bytes=file.size, sha256=file.sha256)
            yield session_pb2.ExportSnapshotResponse(header=header)
            async for offset, data in chunks:
                chunk = session_pb2.SnapshotChunk(offset=offset, data=data)
                yield session_pb2.ExportSnapshotResponse(chunk=chunk)

    async def ImportSnapshot(self, request_iterator: _Import, context: Any) -> session_pb2.ImportSnapshotResponse:
        """Take a snapshot's file."""
        key_account.check("")
        first = await self._next(request_iterator, 0)
        if first is None or first.WhichOneof("part") != "header":
            raise InvalidField("header", "must come first")
        header, new = first.header, _new(first.header)
        row = await self._snapshots.asked_before(new.request)
        if row is None:
            async with self._snapshots.importing(new) as incoming:
                while (message := await self._next(request_iterator, incoming.received)) is not None:
                    await incoming.write(_data(message, incoming.received, header.size_bytes))
                row = await incoming.finish(header.size_bytes, header.sha256)
        return session_pb2.ImportSnapshotResponse(snapshot=snapshot(row))

    async def _next(self, messages: _Import, received: int) -> session_pb2.ImportSnapshotRequest | None:
        try:
            async with asyncio.timeout(self._idle_seconds):
                return await anext(messages, None)
        except TimeoutError:
            raise UploadStalled(
                f"nothing came for {self._idle_seconds:g} s; {received} bytes of the snapshot had come"
            ) from None


def snapshot(row: SnapshotRow) -> session_pb2.Snapshot:
    """Write a snapshot."""
    return session_pb2.Snapshot(
        snapshot_id=row.id,
        session_id=row.session or "",
        image=row.image,
        context_id=row.context or "",
        name=row.name,
        labels=row.labels,
        create_time=responses.time(row.created_at),
        size_bytes=row.size_bytes,
    )


def _new(header: session_pb2.ImportSnapshotHeader) -> NewSnapshot:
    with FieldChecks() as check:
        repeatable = check(requests.repeatable, tenant(), header, "header.request_id")
        check(requests.check_name, "header.name", header.name)
        if not 0 < header.size_bytes <= MAX_SNAPSHOT_BYTES:
            check.wrong("header.size_bytes", f"must be from 1 to {MAX_SNAPSHOT_BYTES}, not {header.size_bytes}")
        check(requests.sha256, "header.sha256", header.sha256)
        labels = check(requests.labels, header.labels, "header.labels")
    return NewSnapshot(tenant(), repeatable, header.name, labels)


def _data(message: session_pb2.ImportSnapshotRequest, received: int, announced: int) -> bytes:
    if message.WhichOneof("part") != "chunk":
        raise InvalidField("chunk", "only chunks may follow the header")
    chunk = message.chunk
    with FieldChecks() as check:
        if chunk.offset != received:
            check.wrong("chunk.offset", f"must be {received}, where the last chunk ended, not {chunk.offset}")
        if received + len(chunk.data) > announced:
            check.wrong("chunk.data", f"goes beyond the {announced} bytes that were announced")
    return chunk.data
