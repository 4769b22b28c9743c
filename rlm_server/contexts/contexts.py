"""Contexts: documents kept in the form the guest maps. Each has a row and a folder, and belongs to one tenant.

The order of steps keeps them whole. Files are durable before their row is written. A deleted context is out of every
tenant's reach before its files are removed, and its row is removed last. If a process died between two steps, the next
start undoes what it left.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rlm_server.clock import DAY_MS, now
from rlm_server.contexts.background import UPKEEP_SECONDS, Background, keep_up
from rlm_server.contexts.context_table import Context, ContextTable
from rlm_server.contexts.files import ContextFiles
from rlm_server.contexts.local_files import LocalContextFiles
from rlm_server.contexts.object_store import ObjectStore
from rlm_server.contexts.pins import Pins
from rlm_server.database.database import Database
from rlm_server.shares.threads import Threads
from sandbox.cancellation import run_to_completion
from sandbox.corpora.corpus import Corpus

if TYPE_CHECKING:
    from rlm_server.contexts.lineage import Lineage

log = logging.getLogger(__name__)

REMOVAL_SECONDS = 10.0
"""For removals under way when the server stops; the next start does what is left."""


class ContextGone(Exception):
    """The context was deleted."""

    def __init__(self, context: str) -> None:
        super().__init__(f"there is no context {context!r}")
        self.context = context


class Contexts:
    """The contexts of every tenant. A tenant sees only its own.

    An async context manager. It begins by cleaning up after a former process. Every pin must be released before its
    end.
    """

    def __init__(
        self,
        database: Database,
        local_files: LocalContextFiles,
        threads: Threads,
        *,
        objects: ObjectStore | None = None,
        cache_bytes: int = 1 << 62,
        retention_days: Callable[[str], float] = lambda _: 0.0,
    ) -> None:
        """`cache_bytes` bounds the local files where `objects` keeps the contexts.

        `retention_days` tells for how long a tenant's contexts are kept that nobody uses; 0 is for ever.
        """
        self.local_files = local_files
        self._table, self._pins = ContextTable(database), Pins()
        self._files = ContextFiles(local_files, objects, self._table, self._pins, cache_bytes, threads)
        self._retention_days, self._pause = retention_days, UPKEEP_SECONDS
        self._deleted: set[str] = set()  # their files are still there
        self._removing: set[str] = set()
        self._background = Background()
        self._removals: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        ids = await self._table.all_ids()
        self._deleted = {context_id for context_id, deleted in ids.items() if deleted}
        await self._files.clear_unknown(set(ids))
        await self._background.__aenter__()
        self._begin_removal()
        self._background.start(keep_up("contexts", self._keep_up, lambda: self._pause))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._removals:
            await asyncio.wait(self._removals, timeout=REMOVAL_SECONDS)
        await self._background.__aexit__(None, None, None)
        await self._record_use()

    # ---- looking up ----------------------------------------------------------------------------------------------

    async def get(self, tenant: str, context_id: str) -> Context | None:
        """Return a tenant's context, or None. A context of another tenant counts as missing."""
        return await self._table.get(tenant, context_id)

    async def same(self, tenant: str, identity: str) -> Context | None:
        """Return the tenant's context of the same content, if there is one."""
        return await self._table.same(tenant, identity)

    async def page(self, tenant: str, before: int | None, most: int) -> list[Context]:
        """Return a tenant's contexts, the newest first: those whose number is below `before`, or all."""
        return await self._table.page(tenant, before, most)

    # ---- reading -------------------------------------------------------------------------------------------------

    async def pin(self, context: Context) -> None:
        """Make sure that a context's files are local and whole, and keep them until `unpin`, even if it is deleted.

        Raises:
            ContextGone: it was deleted before.
            ContextDamaged: a file is not what was written.
            ObjectStoreUnavailable: the object store that has it failed.
        """
        self._pins.pin(context.id)
        try:
            await self._check_is_there(context)
            await self._files.make_local(context)
        except BaseException:
            self.unpin(context)
            raise

    async def _check_is_there(self, context: Context) -> None:
        if await self._table.get(context.tenant, context.id) is None:
            raise ContextGone(context.id)

    def hold(self, context: Context) -> None:
        """Keep a context's files until `unpin`, even if it is deleted. They are not looked at, nor brought here."""
        self._pins.pin(context.id)

    async def open_held(self, context: Context) -> Corpus:
        """Return the corpus of a context that is held, also where it was deleted since.

        Raises:
            ContextDamaged: a file is not what was written.
            ObjectStoreUnavailable: the object store that has it failed.
        """
        await self._files.make_local(context)
        return self.corpus(context)

    def unpin(self, context: Context) -> None:
        """End one `pin`."""
        self._pins.unpin(context.id)
        self._begin_removal()

    @asynccontextmanager
    async def pinned(self, context: Context) -> AsyncIterator[Corpus]:
        """Pin a context and yield its corpus; raises as `pin` does."""
        await self.pin(context)
        try:
            yield self.corpus(context)
        finally:
            self.unpin(context)

    def corpus(self, context: Context) -> Corpus:
        """Return the corpus of a context that is pinned.

        Raises:
            ContextDamaged: a file is not what was written, as far as its size and time tell.
        """
        return self._files.corpus(context)

    async def lineage(self, context: Context) -> Lineage:
        """Return the lineage of a pinned context, which finds its parts in prompts. It is built once, and kept.

        Raises:
            ContextDamaged: as `corpus` does.
            OSError: it cannot be written.
        """
        return await self._files.lineage(context)

    # ---- keeping -------------------------------------------------------------------------------------------------

    async def keep(self, context: Context, upload: str) -> Context:
        """Keep a context whose files are local as the result of an upload.

        Returns:
            the context, or an earlier one of the same content.

        Raises:
            ObjectStoreUnavailable: the object store failed; `undo` removes what it has of the context.
        """
        try:
            await self._files.store(context.id)
            kept = await run_to_completion(self._table.insert(context, upload))
        except Exception:
            await self._files.clear(context.id)
            raise
        self._pins.touch(kept.id)
        if kept.id == context.id:
            await self._files.trim()
        else:
            self._begin_removal([context.id])
        return kept

    async def undo(self, context_id: str) -> None:
        """Remove all traces of a context that was never kept. A context that is kept stays.

        Raises:
            ObjectStoreUnavailable: the object store failed.
        """
        if not await self._table.exists(context_id):
            await self._files.erase(context_id)

    async def adopt(self, context: Context, upload: str) -> Context | None:
        """Note that an upload became an existing context. Return None if that was deleted meanwhile."""
        adopted = await self._table.adopt(context, upload)
        if adopted:
            self._pins.touch(adopted.id)
        return adopted

    # ---- deleting ------------------------------------------------------------------------------------------------

    async def delete(self, tenant: str, context_id: str) -> bool:
        """Delete a tenant's context, and return whether it existed. Its files are removed when nobody pins it."""
        return await run_to_completion(self._delete(self._table.delete(tenant, context_id))) > 0

    async def delete_all(self, tenant: str) -> None:
        """Delete all of a tenant's contexts."""
        await run_to_completion(self._delete(self._table.delete_all(tenant)))

    async def _delete(self, marking: Awaitable[list[str]]) -> int:
        deleted = await marking
        self._begin_removal(deleted)
        return len(deleted)

    def _begin_removal(self, deleted: Iterable[str] = ()) -> None:
        """Begin to remove the files of these contexts and of all that were deleted, except those that are pinned."""
        self._deleted.update(deleted)
        for context_id in self._deleted - self._removing:
            if not self._pins.users(context_id):
                self._removing.add(context_id)
                task = self._background.start(self._remove(context_id))
                self._removals.add(task)
                task.add_done_callback(self._removals.discard)

    async def _remove(self, context_id: str) -> None:
        try:
            await self._files.erase(context_id)
            await self._table.remove(context_id)
            self._deleted.discard(context_id)
            self._pins.forget(context_id)
        except Exception:
            log.exception("the files of %s could not be removed; it is tried again later", context_id)
        finally:
            self._removing.discard(context_id)

    # ---- upkeep --------------------------------------------------------------------------------------------------

    async def _keep_up(self) -> None:
        await self._record_use()
        self._pause = UPKEEP_SECONDS
        for tenant in ("", *await self._table.tenants()):  # nobody's is every tenant's that was told nothing else
            kept = round(self._retention_days(tenant) * DAY_MS)
            if kept:
                self._pause = min(self._pause, kept / 1000)
                await self._delete(self._table.delete_unused_since(tenant, now() - kept))
        await self._files.trim()
        self._begin_removal()

    async def _record_use(self) -> None:
        used = self._pins.unrecorded()
        if used:
            await self._table.record_use(used)
        self._pins.recorded(used)
