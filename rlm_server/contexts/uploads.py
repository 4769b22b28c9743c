"""Uploads that become contexts. Each has a row and a folder until it is finished, refused or too old.

At any time an upload is either taken or idle. It is taken while one stream sends it, or while it is being finished or
removed. It is idle until a stream continues it. Only an upload with a request id is ever idle.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from rlm_server.clock import now
from rlm_server.contexts.background import Background, keep_up
from rlm_server.contexts.context_table import Content, Context
from rlm_server.contexts.contexts import Contexts
from rlm_server.contexts.disk_room import DiskRoom
from rlm_server.contexts.spool import Header, Spool, UploadRefused, UploadShort
from rlm_server.contexts.upload_table import UploadQuota, UploadRow, UploadTable
from rlm_server.database.database import Database
from rlm_server.database.requests import RequestIdReused
from rlm_server.shares.shares import Shares
from rlm_server.shares.threads import Cancelled, Purpose
from sandbox.cancellation import run_to_completion

log = logging.getLogger(__name__)

DOCUMENT_BYTES = 16
"""What an upload holds in memory of each of its documents."""
MAX_IDLE_DOCUMENTS = 1_000_000
"""Documents of one tenant's idle uploads that are kept in memory. Uploads with more are read again."""

_T = TypeVar("_T")


class UploadBusy(Exception):
    """Another stream is sending the same upload."""


class UploadStalled(Exception):
    """A stream sent nothing more of its upload for too long."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How much of an upload has arrived. `context` is what it became, once it is finished."""

    received_bytes: int
    received_documents: int
    context: Context | None = None


class Uploads:
    """The uploads of every tenant. An async context manager, to be left once no stream sends any more."""

    def __init__(
        self,
        database: Database,
        folder: Path,
        contexts: Contexts,
        shares: Shares,
        *,
        quota: Callable[[str], UploadQuota],
        reserve_bytes: int,
        rest_seconds: float,
    ) -> None:
        """`quota` returns what a tenant may have.

        Uploads leave `reserve_bytes` of their disk free. One that is idle for over `rest_seconds` is removed.
        """
        self._table, self._folder, self._contexts = UploadTable(database), folder, contexts
        self._quota, self._rest_seconds = quota, rest_seconds
        self._shares, self._threads = shares, shares.threads
        self._held, self._counted = shares.held, dict[str, int]()  # by upload: what is held of its list of documents
        self.room = DiskRoom(folder, reserve_bytes)
        self._taken: dict[str, Spool | None] = {}
        self._idle: dict[str, Spool] = {}  # those whose state need not be read again
        self._finishing: dict[str, asyncio.Future[Context]] = {}
        self._background = Background()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    async def __aenter__(self) -> Self:
        resumable = await self._table.resumable_ids()
        for folder in list(self._folder.iterdir()):
            if folder.name not in resumable:
                await self._clear(folder.name)
        await self._background.__aenter__()
        self._background.start(keep_up("uploads", self._remove_the_old, self._rest_seconds))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._background.__aexit__(None, None, None)

    # ---- from the first message to the last ----------------------------------------------------------------------

    async def begin(self, header: Header) -> Upload | Context:
        """Begin an upload, or continue the one with the same request id. If that is finished, return its context.

        The upload is an async context manager, and must be used as one.

        Raises:
            RequestIdReused: the request id is that of an upload with another header.
            UploadBusy: another stream is sending it.
            ContextQuotaExceeded: the upload would exceed the tenant's quota.
        """
        new = secrets.token_hex(16)
        self._taken[new] = None
        try:
            quota = self._quota(header.tenant)
            row = await run_to_completion(self._table.begin(new, header, now(), quota))
        except BaseException:
            del self._taken[new]  # where there is a row, the upkeep removes it
            raise
        if row.id == new:
            return Upload(self, row)
        del self._taken[new]
        return await self._go_on(row, header)

    async def _go_on(self, row: UploadRow, header: Header) -> Upload | Context:
        _check_same(row.header, header)
        if row.id in self._finishing:
            return await asyncio.shield(self._finishing[row.id])
        if row.context is not None:
            # If the context was deleted meanwhile, so was the upload's row, and this is a new upload.
            return await self._contexts.get(header.tenant, row.context) or await self.begin(header)
        if row.id in self._taken:
            raise UploadBusy(f"another stream is sending the upload {header.request_id!r}: wait until it has ended")
        self._taken[row.id] = None
        idle = False
        try:
            idle = await self._table.is_unfinished(row.id)  # asked once it is taken: it may have ended since
        finally:
            if not idle:
                del self._taken[row.id]
        return Upload(self, row) if idle else await self.begin(header)

    async def in_use(self, tenant: str) -> tuple[int, int]:
        """Return the bytes that a tenant's contexts and unfinished uploads have, and how many of the latter there are.

        What an upload announced counts, whether or not it has come.
        """
        return await self._table.in_use(tenant)

    async def status(self, tenant: str, request_id: str) -> Progress | None:
        """Return how far an upload is. None where the tenant has none with this request id."""
        row = await self._table.by_request(tenant, request_id)
        if row is None:
            return None
        if row.context is not None:
            context = await self._contexts.get(tenant, row.context)
            return Progress(row.header.size_bytes, row.header.documents, context) if context else None
        spool = self._taken.get(row.id) or self._idle.get(row.id)
        if spool is not None:
            return Progress(spool.received, spool.announced)
        try:
            received, announced = await self._in_thread(tenant, lambda _: Spool.measure(self._folder / row.id))
        except OSError:
            return Progress(0, 0)
        return Progress(min(received, row.header.size_bytes), announced)

    async def open(self, row: UploadRow) -> Spool:
        """Return the spool of a taken upload: the one in memory, or else one read again from its folder.

        Raises:
            TooMuchHeld: there is no room in memory for its list of documents.
            OSError: with ENOSPC, what is to come would leave too little of the disk free.
        """
        size = row.header.documents * DOCUMENT_BYTES
        self._held.take(row.header.tenant, size, "the documents of an upload")
        self._counted[row.id] = size
        spool = self._idle.pop(row.id, None)
        if spool is None:
            folder, tenant = self._folder / row.id, row.header.tenant
            try:
                spool = await self._in_thread(tenant, lambda stopped: Spool.open(folder, row.header, stopped))
            except (OSError, ValueError, UploadRefused) as error:
                log.warning("upload %s begins anew: what there was of it cannot be read: %s", row.id, error)
                await self._clear(row.id)
                spool = await self._in_thread(tenant, lambda _: Spool.open(folder, row.header))
        self._taken[row.id] = spool
        self.room.check(row.header.size_bytes - spool.received)
        return spool

    def finish(self, row: UploadRow, spool: Spool) -> asyncio.Future[Context]:
        """Begin to make an upload a context. The work goes on even if the caller does not wait for it."""
        ended: asyncio.Future[Context] = asyncio.get_running_loop().create_future()
        ended.add_done_callback(lambda future: future.cancelled() or future.exception())  # perhaps nobody waits
        self._finishing[row.id] = ended
        self._background.start(self._finish(row, spool, ended))
        return ended

    async def _finish(self, row: UploadRow, spool: Spool, ended: asyncio.Future[Context]) -> None:
        try:
            context = await self._become(row, spool)
            await self._clear(row.id)
            del self._taken[row.id]
            ended.set_result(context)
        except Exception as error:
            if isinstance(error, UploadRefused) or await self._undo(row):
                await self.leave(row, spool, error)
            ended.set_exception(error)
        finally:
            self._untake(row)
            del self._finishing[row.id]
            ended.cancel()  # where the server stops; the next start goes on from here

    async def _become(self, row: UploadRow, spool: Spool) -> Context:
        header = row.header
        self.room.check(header.size_bytes)
        await self._in_thread(header.tenant, lambda _: spool.check_whole())
        identity = await self._in_thread(header.tenant, lambda _: spool.identity())
        make = partial(
            Context,
            row.context_id,
            header.tenant,
            header.name,
            header.labels,
            now(),
            run="" if header.passing else None,
        )
        known = await self._contexts.same(header.tenant, identity)
        shared = await self._contexts.share(make(content=known), row.id) if known else None
        if shared:
            return shared
        local_files = self._contexts.local_files
        files = await self._in_thread(header.tenant, lambda stopped: local_files.write(row.content_id, spool, stopped))
        new = Content(
            row.content_id, header.tenant, identity, header.kind, header.sha256, header.size_bytes,
            sum(spool.characters), len(spool.characters), files,
        )  # fmt: skip
        return await self._contexts.keep(make(content=new), row.id, damaged=known.id if known else "")

    async def leave(self, row: UploadRow, spool: Spool | None, error: BaseException | None) -> None:
        """Note that a stream ended before its upload did. The upload becomes idle, or is removed."""
        try:
            refused = isinstance(error, UploadRefused) and not isinstance(error, UploadShort)
            if refused or row.header.request_id is None:
                await self._remove(row)
            elif spool and isinstance(error, asyncio.CancelledError | UploadStalled | UploadShort):
                self._keep_idle(row, spool)
        except Exception:
            log.exception("upload %s could not be removed; it is tried again later", row.id)
        finally:
            self._untake(row)

    def _untake(self, row: UploadRow) -> None:
        self._taken.pop(row.id, None)
        self._held.give_back(row.header.tenant, self._counted.pop(row.id, 0))

    def _keep_idle(self, row: UploadRow, spool: Spool) -> None:
        """Keep a spool in memory while nobody sends it, unless its tenant has too much there; the oldest go first."""
        self._idle[row.id] = spool
        own = {id: one for id, one in self._idle.items() if one.header.tenant == row.header.tenant}
        documents = sum(one.header.documents for one in own.values())
        for id, one in own.items():
            if documents <= MAX_IDLE_DOCUMENTS:
                return
            del self._idle[id]
            documents -= one.header.documents

    async def _in_thread(self, tenant: str, work: Callable[[Cancelled], _T]) -> _T:
        return await self._threads.run(Purpose.UPLOADS, tenant, work)

    # ---- removing ------------------------------------------------------------------------------------------------

    async def _remove(self, row: UploadRow) -> None:
        await self._clear(row.id)
        await self._table.remove(row.id)

    async def _clear(self, upload_id: str) -> None:
        folder = self._folder / upload_id
        await run_to_completion(self._in_thread("", lambda _: shutil.rmtree(folder, ignore_errors=True)))

    async def _undo(self, row: UploadRow) -> bool:
        try:
            await self._contexts.undo(row.content_id)
        except Exception:
            log.exception("what was made of upload %s could not be removed; it is tried again later", row.id)
            return False
        return True

    async def _remove_the_old(self) -> None:
        """Remove uploads that are idle for too long, and those that no stream can continue."""
        oldest = now() - round(self._rest_seconds * 1000)
        for row in await self._table.unfinished():
            if row.id in self._taken:
                continue
            if row.header.request_id is None or self._changed_at(row) < oldest:
                await self._give_up(row)

    async def remove_all(self, tenant: str) -> None:
        """Remove all of a tenant's uploads, of which no stream may be under way.

        Raises:
            UploadBusy: one is being made a context.
        """
        for row in await self._table.of_tenant(tenant):
            if row.id in self._taken:
                raise UploadBusy(f"the upload {row.id} is being made a context")
            if row.context is not None:
                await self._table.remove(row.id)
            else:
                await self._give_up(row)

    async def _give_up(self, row: UploadRow) -> None:
        self._taken[row.id] = None
        try:
            if await self._table.is_unfinished(row.id):  # asked once it is taken: it may have ended since
                self._idle.pop(row.id, None)
                if await self._undo(row):
                    await self._remove(row)
        finally:
            del self._taken[row.id]

    def _changed_at(self, row: UploadRow) -> int:
        try:
            return max(row.changed_at, (self._folder / row.id / "texts").stat().st_mtime_ns // 1_000_000)
        except OSError:
            return row.changed_at


class Upload:
    """An upload that one stream sends. If it is left before `finish`, it becomes idle, or is removed if refused."""

    def __init__(self, uploads: Uploads, row: UploadRow) -> None:
        self.spool: Spool
        self._uploads, self._row = uploads, row
        self._finished = False

    def check_room(self) -> None:
        """Refuse to write more where that would leave too little of the disk free.

        Raises:
            OSError: with ENOSPC.
        """
        self._uploads.room.check(0)

    async def __aenter__(self) -> Self:
        try:
            self.spool = await self._uploads.open(self._row)
        except BaseException as error:
            await run_to_completion(self._uploads.leave(self._row, None, error))
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._finished:
            await run_to_completion(self._uploads.leave(self._row, self.spool, error))

    async def finish(self) -> Context:
        """Make it a context. The work goes on if this is cancelled.

        Raises:
            UploadRefused: something is missing, or it has another hash.
            ObjectStoreUnavailable: the object store that is to keep it failed.
            OSError: it cannot be written.
        """
        self.spool.check_complete()  # before others who send the same upload are told of how this ends
        self._finished = True
        return await asyncio.shield(self._uploads.finish(self._row, self.spool))


def _check_same(known: Header, header: Header) -> None:
    if known != header and header.request_id is not None:
        raise RequestIdReused(header.request_id)
