"""Snapshots of sessions: made, listed, begun from, carried elsewhere and back, deleted."""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from io import BufferedReader
from types import TracebackType
from typing import Self, TypeVar

from rlm_server.clock import now
from rlm_server.contexts.context_table import Context, ContextUnknown
from rlm_server.contexts.contexts import Contexts
from rlm_server.database.requests import Request
from rlm_server.repl.limits import RunLimits
from rlm_server.sessions.one_at_a_time import OneAtATime
from rlm_server.sessions.session import ReplSession
from rlm_server.sessions.snapshot_table import SnapshotFilter, SnapshotRow, SnapshotTable
from rlm_server.shares.shares import Shares
from rlm_server.shares.threads import Purpose
from sandbox.cancellation import run_to_completion
from sandbox.pool.pool import Pool
from sandbox.pool.sealing import SnapshotRefused
from sandbox.pool.snapshots import Incoming, SessionStore

T = TypeVar("T")

SNAPSHOT = "snap_"
"""How the ids of snapshots begin."""
CHUNK = 256 << 10
"""Bytes of an exported file that are read at once."""
AT_ONCE = 200
"""Snapshots that are removed together with their tenant at once."""


@dataclass(frozen=True, slots=True)
class NewSnapshot:
    """A snapshot as a caller asks for it."""

    tenant: str
    request: Request | None
    name: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SnapshotFile:
    """The file of a snapshot: its size in bytes, its SHA-256 as hex digits, and its chunks with their offsets."""

    row: SnapshotRow
    size: int
    sha256: str
    chunks: AsyncGenerator[tuple[int, bytes], None]


class Snapshots:
    """The snapshots of every tenant. An async context manager: what a former server left half done is removed."""

    def __init__(
        self,
        pool: Pool,
        store: SessionStore,
        table: SnapshotTable,
        contexts: Contexts,
        shares: Shares,
        limits_of: Callable[[str], RunLimits],
    ) -> None:
        self._pool, self._store, self._table, self._contexts = pool, store, table, contexts
        self._shares, self._limits_of = shares, limits_of
        self._making = OneAtATime()
        self._unpacking: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)  # by tenant: it takes memory

    async def __aenter__(self) -> Self:
        known = await self._table.names()
        self._store.keep_only_snapshots({name for name, _ in known})
        for name, tenant in known:
            self._store.count_snapshot(name, tenant)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    # ---- what there is -------------------------------------------------------------------------------------------

    async def get(self, tenant: str, snapshot: str) -> SnapshotRow | None:
        """Return a tenant's snapshot, or None: another tenant's does not exist for this one."""
        return await self._table.get(tenant, snapshot)

    async def asked_before(self, request: Request | None) -> SnapshotRow | None:
        """Return the snapshot that a request made, if one did. Raises `RequestIdReused` where it asked for another."""
        return await self._table.by_request(request)

    async def page(self, asked: SnapshotFilter, before: str | None, most: int) -> list[SnapshotRow]:
        """Return up to `most` snapshots, the newest first, from the one after the place `before` on."""
        return await self._table.page(asked, before, most)

    async def knows(self, tenant: str, session: str) -> bool:
        """Whether a tenant has a session, or has snapshots of one that is forgotten."""
        return await self._table.knows(tenant, session)

    async def count(self, tenant: str) -> int:
        """Return how many snapshots a tenant has."""
        return await self._table.count(tenant)

    # ---- making and deleting -------------------------------------------------------------------------------------

    async def create(self, session: ReplSession, new: NewSnapshot) -> SnapshotRow:
        """Keep a session as it is after its last finished turn; a repeated request returns what it made.

        Raises:
            RequestIdReused: the request asked for another.
            TooManySnapshots: the tenant has as many as it may.
            StoreFull: it does not fit beside what the tenant has stored.
            SessionClosed: the session has ended meanwhile.
        """
        async with self._making.of(new.request):
            known = await self._table.by_request(new.request)
            return known if known is not None else await run_to_completion(self._create(session, new))

    async def _create(self, session: ReplSession, new: NewSnapshot) -> SnapshotRow:
        context, id = session.row.context, SNAPSHOT + secrets.token_hex(16)
        about = json.dumps({"context": context, "name": new.name}).encode()
        size = await session.live.snapshot(id, about)
        made = SnapshotRow(
            id, new.tenant, session.id, session.row.image, context, new.name, size, now(), new.labels
        )  # fmt: skip
        return await self._keep(made, new.request)

    async def _keep(self, row: SnapshotRow, request: Request | None) -> SnapshotRow:
        try:
            await self._table.insert(row, request, self._shares.limits(row.tenant).tenant_snapshots)
        except BaseException:
            self._store.remove_snapshot(row.id, row.tenant)
            raise
        return row

    async def delete(self, tenant: str, snapshot: str, request: Request | None = None) -> bool:
        """Delete a snapshot, and say whether there was one; a repeated request is answered as it was."""
        return await run_to_completion(self._delete(tenant, snapshot, request))

    async def _delete(self, tenant: str, snapshot: str, request: Request | None) -> bool:
        there = await self._table.delete(tenant, snapshot, request, now())
        if there:
            self._store.remove_snapshot(snapshot, tenant)
        return there

    async def delete_all(self, tenant: str) -> None:
        """Delete all of a tenant's snapshots."""
        while some := await self._table.some(tenant, AT_ONCE):
            for snapshot in some:
                await self.delete(tenant, snapshot)

    # ---- elsewhere and back --------------------------------------------------------------------------------------

    async def export(self, row: SnapshotRow, offset: int) -> SnapshotFile:
        """Open the file of a snapshot, whose chunks come from an offset on. They must be read, or closed.

        Raises:
            SnapshotRefused: the file is not there.
        """
        try:
            file = self._store.open_snapshot(row.id)
        except OSError:
            raise SnapshotRefused("nothing is stored of it") from None
        try:
            sha256 = await self._in_thread(row.tenant, Purpose.EXPORTS, partial(_hash, file))
            size = file.seek(0, 2)
        except BaseException:
            file.close()
            raise
        return SnapshotFile(row, size, sha256, self._chunks(row.tenant, file, offset))

    async def _chunks(self, tenant: str, file: BufferedReader, offset: int) -> AsyncGenerator[tuple[int, bytes], None]:
        with file:
            file.seek(offset)
            while data := await self._in_thread(tenant, Purpose.EXPORTS, partial(file.read, CHUNK)):
                yield offset, data
                offset += len(data)

    @asynccontextmanager
    async def importing(self, new: NewSnapshot) -> AsyncIterator[Import]:
        """Take a snapshot's file from elsewhere. It is kept once `Import.finish` has returned, and not without."""
        id = SNAPSHOT + secrets.token_hex(16)
        with self._pool.incoming(id, new.tenant) as incoming:
            yield Import(self, id, new, incoming)

    async def accept(self, id: str, new: NewSnapshot, incoming: Incoming) -> SnapshotRow:
        """Check all of a file that has come, and keep it; see `Import.finish`."""
        image, about = await self._in_thread(new.tenant, Purpose.UPLOADS, incoming.check)
        said = json.loads(about)
        context = await self._context(new.tenant, said["context"])
        limits = self._limits_of(new.tenant).sandbox
        async with self._making.of(new.request):
            known = await self._table.by_request(new.request)
            if known is not None:
                return known
            async with AsyncExitStack() as held, self._unpacking[new.tenant]:
                corpora = (await held.enter_async_context(self._contexts.pinned(context)),) if context else ()
                accept = partial(incoming.accept, image, corpora, limits)
                size = await self._in_thread(new.tenant, Purpose.UPLOADS, accept)
            name, context_id = new.name or said["name"], said["context"]
            made = SnapshotRow(id, new.tenant, None, image, context_id, name, size, now(), new.labels)
            return await run_to_completion(self._keep(made, new.request))

    async def _context(self, tenant: str, context: str | None) -> Context | None:
        if context is None:
            return None
        found = await self._contexts.get(tenant, context)
        if found is None:
            raise ContextUnknown(context)
        return found

    async def write(self, tenant: str, incoming: Incoming, data: bytes) -> None:
        """Take the next bytes of a file; see `Import.write`."""
        await self._in_thread(tenant, Purpose.UPLOADS, partial(incoming.write, data))

    async def _in_thread(self, tenant: str, purpose: Purpose, work: Callable[[], T]) -> T:
        return await self._shares.threads.run(purpose, tenant, lambda _: work())


class Import:
    """A file that comes."""

    def __init__(self, snapshots: Snapshots, id: str, new: NewSnapshot, incoming: Incoming) -> None:
        self._snapshots, self._id, self._new, self._incoming = snapshots, id, new, incoming
        self._sha256 = hashlib.sha256()
        self.received = 0
        """Bytes that have come."""

    async def write(self, data: bytes) -> None:
        """Take the file's next bytes.

        Raises:
            StoreFull: they do not fit beside what the tenant has stored.
        """
        await self._snapshots.write(self._new.tenant, self._incoming, data)
        self._sha256.update(data)
        self.received += len(data)

    async def finish(self, size: int, sha256: str) -> SnapshotRow:
        """Check all that has come, which was announced with a size and a SHA-256, and keep it.

        Raises:
            SnapshotRefused: it is not the file that this server made for this tenant; or it has more than the tenant's
                sessions may.
            ContextUnknown: the context that it was made with is not there.
            TooManySnapshots: the tenant has as many as it may.
        """
        if (self.received, self._sha256.hexdigest()) != (size, sha256):
            raise SnapshotRefused(f"{self.received} bytes came, and they are not the {size} that were announced")
        return await self._snapshots.accept(self._id, self._new, self._incoming)


def _hash(file: BufferedReader) -> str:
    return hashlib.file_digest(file, "sha256").hexdigest()
