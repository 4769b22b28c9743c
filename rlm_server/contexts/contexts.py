"""Contexts: documents kept in the form the guest maps. Each belongs to one tenant, and is of a content.

A content has a row and a folder. It stays as long as a context is of it. The order of steps keeps it whole. Files are
durable before their row is written. The last context of a content is out of its tenant's reach before the files are
removed, and the row of the content is removed last. If a process died between two steps, the next start undoes what it
left.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rlm_server.clock import DAY_MS, now
from rlm_server.contexts.background import UPKEEP_SECONDS, Background, keep_up
from rlm_server.contexts.context_table import Content, Context, ContextFilter, ContextTable, Deleted
from rlm_server.contexts.files import ContextFiles
from rlm_server.contexts.local_files import ContentDamaged, LocalContextFiles
from rlm_server.contexts.object_store import ObjectStore
from rlm_server.contexts.pins import Pins
from rlm_server.database.database import Database
from rlm_server.database.requests import Request
from rlm_server.shares.threads import Threads
from sandbox.cancellation import run_to_completion
from sandbox.corpora.corpus import Corpus

if TYPE_CHECKING:
    from rlm_server.contexts.lineage import Lineage

log = logging.getLogger(__name__)

REMOVAL_SECONDS = 10.0
"""For removals under way when the server stops; the next start does what is left."""


class ContextDamaged(Exception):
    """The files of a context are not what was written."""

    def __init__(self, context: str, what: str) -> None:
        super().__init__(f"the stored files of {context} are damaged: {what}; upload the same again, which mends it")
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
        self._deleted: set[str] = set()  # contents whose files are still there
        self._removing: set[str] = set()
        self._background = Background()
        self._removals: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        ids = await self._table.all_contents()
        self._deleted = {content_id for content_id, deleted in ids.items() if deleted}
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

    async def page(self, asked: ContextFilter, before: int | None, most: int) -> list[Context]:
        """Return a tenant's contexts, the newest first: those whose number is below `before`, or all."""
        return await self._table.page(asked, before, most)

    async def count(self, tenant: str) -> int:
        """Return how many contexts a tenant has."""
        return await self._table.count(tenant)

    # ---- reading -------------------------------------------------------------------------------------------------

    async def pin(self, context: Context) -> None:
        """Make sure that a context's files are local and whole, and keep them until `unpin`, even if it is deleted.

        Raises:
            ContextUnknown: it was deleted before.
            ContextDamaged: a file is not what was written.
            ObjectStoreUnavailable: the object store that has it failed.
        """
        self._pins.pin(context.id, context.content.id)
        try:
            await self._table.check(context)
            with _damage_of(context):
                await self._files.make_local(context.content)
        except BaseException:
            self.unpin(context)
            raise

    def hold(self, context: Context) -> None:
        """Keep a context's files until `unpin`, even if it is deleted. They are not looked at, nor brought here."""
        self._pins.pin(context.id, context.content.id)

    async def open_held(self, context: Context) -> Corpus:
        """Return the corpus of a context that is held, also where it was deleted since.

        Raises:
            ContextDamaged: a file is not what was written.
            ObjectStoreUnavailable: the object store that has it failed.
        """
        with _damage_of(context):
            await self._files.make_local(context.content)
        return self.corpus(context)

    def unpin(self, context: Context) -> None:
        """End one `pin`."""
        self._pins.unpin(context.id, context.content.id)
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
        with _damage_of(context):
            return self._files.corpus(context.content)

    async def lineage(self, context: Context) -> Lineage:
        """Return the lineage of a pinned context, which finds its parts in prompts. It is built once, and kept.

        Raises:
            ContextDamaged: as `corpus` does.
            OSError: it cannot be written.
        """
        with _damage_of(context):
            return await self._files.lineage(context.content)

    # ---- keeping -------------------------------------------------------------------------------------------------

    async def same(self, tenant: str, identity: str) -> Content | None:
        """Return the tenant's content of an identity, if there is one, whole or not."""
        return await self._table.content(tenant, identity)

    async def share(self, context: Context, upload: str) -> Context | None:
        """Keep a context of a content that is there, as the result of an upload.

        None where that content went meanwhile, or its files are damaged.

        Raises:
            ObjectStoreUnavailable: the object store that has it failed.
        """
        self._pins.pin(context.id, context.content.id)
        try:
            await self._files.make_local(context.content)
            return await run_to_completion(self._table.insert(context, upload))
        except ContentDamaged:
            return None
        finally:
            self.unpin(context)

    async def keep(self, context: Context, upload: str, damaged: str = "") -> Context:
        """Keep a context whose files are local as the result of an upload. Return it as it is now.

        Where the tenant has its content by now, it is of that. But one that is `damaged` makes way: contexts of that
        one are of the new one then.

        Raises:
            ObjectStoreUnavailable: the object store failed; `undo` removes what it has of the content.
        """
        content = context.content.id
        try:
            await self._files.store(content)
            kept = await run_to_completion(self._table.insert_new(context, upload, damaged))
        except Exception:
            await self._files.clear(content)
            raise
        self._pins.touch(kept.id)
        if kept.content.id != content:
            self._begin_removal([content])
        elif damaged:
            self._begin_removal([damaged])
        await self._files.trim()
        return kept

    async def give_to_run(self, context: Context, run: str) -> None:
        """Have a context go with a run: some time after that has ended it is deleted, if it is still there."""
        await self._table.give_to_run(context.id, run)

    async def undo(self, content_id: str) -> None:
        """Remove all traces of a content that was never kept. One that is kept stays.

        Raises:
            ObjectStoreUnavailable: the object store failed.
        """
        if not await self._table.has_content(content_id):
            await self._files.erase(content_id)

    # ---- changing and deleting -----------------------------------------------------------------------------------

    async def update(self, tenant: str, context_id: str, change: Mapping[str, Any], request: Request | None) -> Context:
        """Change a context's `name` or `labels`; a request that comes again changes nothing.

        Raises:
            ContextUnknown: the tenant has none of this id.
            RequestIdReused: the request asked for something else before.
        """
        return await self._table.update(tenant, context_id, change, request)

    async def delete(self, tenant: str, context_id: str, request: Request | None = None) -> None:
        """Delete a tenant's context. Files that are no context's any more are removed when nobody pins them.

        Raises:
            ContextUnknown: the tenant has none of this id.
            RequestIdReused: the request asked for something else before.
        """
        await run_to_completion(self._delete(partial(self._table.delete, tenant, context_id, request)))

    async def delete_all(self, tenant: str) -> None:
        """Delete all of a tenant's contexts."""
        await run_to_completion(self._delete(partial(self._table.delete_all, tenant)))

    async def _delete(self, delete: Callable[[], Awaitable[Deleted]]) -> None:
        more = True
        while more:
            deleted = await delete()
            self._begin_removal(deleted.contents)
            more = deleted.more

    def _begin_removal(self, deleted: Iterable[str] = ()) -> None:
        """Begin to remove the files of these contents, and of all that are no context's and that nobody pins."""
        self._deleted.update(deleted)
        for content_id in self._deleted - self._removing:
            if not self._pins.users(content_id):
                self._removing.add(content_id)
                task = self._background.start(self._remove(content_id))
                self._removals.add(task)
                task.add_done_callback(self._removals.discard)

    async def _remove(self, content_id: str) -> None:
        try:
            await self._files.erase(content_id)
            await self._table.remove_content(content_id)
            self._deleted.discard(content_id)
        except Exception:
            log.exception("the files of %s could not be removed; it is tried again later", content_id)
        finally:
            self._removing.discard(content_id)

    # ---- upkeep --------------------------------------------------------------------------------------------------

    async def _keep_up(self) -> None:
        await self._record_use()
        self._pause = UPKEEP_SECONDS
        for tenant in ("", *await self._table.tenants()):  # nobody's is every tenant's that was told nothing else
            kept = round(self._retention_days(tenant) * DAY_MS)
            if kept:
                self._pause = min(self._pause, kept / 1000)
                await self._delete(partial(self._table.delete_unused_since, tenant, now() - kept))
        await self._delete(partial(self._table.delete_passed, now() - DAY_MS))
        await self._files.trim()
        self._begin_removal()

    async def _record_use(self) -> None:
        used = self._pins.unrecorded()
        if used:
            await self._table.record_use(used)
        self._pins.recorded(used)


@contextmanager
def _damage_of(context: Context) -> Iterator[None]:
    """Say whose files are damaged."""
    try:
        yield
    except ContentDamaged as error:
        raise ContextDamaged(context.id, str(error)) from error
