"""The files of the contexts that are kept: local, and in the object store where there is one.

With an object store, the local folder is a cache. A context that is missing or damaged there is fetched again. The
least recently used contexts make room.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from weakref import WeakValueDictionary

from rlm_server.contexts.context_table import Context, ContextTable
from rlm_server.contexts.local_files import ContextDamaged, LocalContextFiles
from rlm_server.contexts.object_store import ObjectStore
from rlm_server.contexts.pins import Pins
from rlm_server.shares.threads import Cancelled, Purpose, Threads
from sandbox.cancellation import run_to_completion
from sandbox.corpora.corpus import Corpus

if TYPE_CHECKING:
    from rlm_server.contexts.lineage import Lineage

_T = TypeVar("_T")


class ContextFiles:
    """The files. With an object store, `cache_bytes` bounds the local ones, but pinned ones always stay."""

    def __init__(
        self,
        local: LocalContextFiles,
        objects: ObjectStore | None,
        table: ContextTable,
        pins: Pins,
        cache_bytes: int,
        threads: Threads,
    ) -> None:
        self._local, self._objects, self._table, self._pins = local, objects, table, pins
        self._cache_bytes = cache_bytes
        self._threads = threads
        self._fetching: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._indexing: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def corpus(self, context: Context) -> Corpus:
        """Open a context whose files are local.

        Raises:
            ContextDamaged: a file is not what was written, as far as its size and time tell.
        """
        return self._local.corpus(context.id, context.files)

    async def lineage(self, context: Context) -> Lineage:
        """Open the lineage of a context, which finds its parts in prompts. Its index is built once, and stays local.

        Raises:
            ContextDamaged: as `corpus` does.
            OSError: the index cannot be written.
        """
        lock = self._indexing.setdefault(context.id, asyncio.Lock())
        folder = self._local.path(context.id, "lineage")
        corpus, tenant, run = self.corpus(context), context.tenant, self._threads.run
        async with lock:
            there = await run(Purpose.READING, tenant, lambda _: _opened_lineage(corpus, folder))
            if there is not None:
                return there
            return await run(Purpose.INDEXING, tenant, lambda cancelled: _built_lineage(corpus, folder, cancelled))

    async def make_local(self, context: Context) -> None:
        """Make sure that a pinned context's files are local and whole. If not, they are fetched from the object store.

        Raises:
            ContextDamaged: a file is not what was written.
            ObjectStoreUnavailable: the object store failed.
            OSError: a file cannot be written.
        """
        if self._objects:
            lock = self._fetching.setdefault(context.id, asyncio.Lock())
            async with lock:
                await self._fetch_if_needed(context, self._objects)
        self.corpus(context)

    async def _fetch_if_needed(self, context: Context, objects: ObjectStore) -> None:
        if self._local.has(context.id):
            # Files that another user has mapped are not replaced.
            if self._pins.users(context.id) > 1 or self._is_whole(context):
                return
            await self.clear(context.id)
        await objects.fetch(context.id, context.files, self._local)
        await self.trim()

    def _is_whole(self, context: Context) -> bool:
        try:
            self.corpus(context)
        except ContextDamaged:
            return False
        return True

    async def store(self, context_id: str) -> None:
        """Copy local files into the object store, where there is one.

        Raises:
            ObjectStoreUnavailable: the object store failed.
            OSError: a file cannot be read.
        """
        if self._objects:
            await self._objects.put(context_id, self._local)

    async def erase(self, context_id: str) -> None:
        """Remove a context's files everywhere.

        Raises:
            ObjectStoreUnavailable: the object store failed.
        """
        await self.clear(context_id)
        if self._objects:
            await self._objects.remove(context_id)

    async def clear(self, context_id: str) -> None:
        """Remove a context's local files."""
        aside = self._local.take_away(context_id)
        if aside:
            await run_to_completion(self._upkeep(partial(self._local.clear, aside.name)))

    async def clear_unknown(self, known: set[str]) -> None:
        """Remove what is in the local folder and belongs to no context that is known."""
        for name in await self._upkeep(self._local.names) - known:
            await self._upkeep(partial(self._local.clear, name))

    async def trim(self) -> None:
        """With an object store, keep at most `cache_bytes` of local files: those that were used last."""
        if self._objects is None:
            return
        names = await self._upkeep(self._local.names)
        sizes = [size for size in await self._table.sizes() if size.context_id in names]
        sizes.sort(key=lambda size: self._pins.used_at(size.context_id, size.used_at))
        over = sum(size.size_bytes for size in sizes) - self._cache_bytes
        for size in sizes:
            if over > 0 and not self._pins.users(size.context_id):
                over -= size.size_bytes
                await self.clear(size.context_id)

    async def _upkeep(self, work: Callable[[], _T]) -> _T:
        return await self._threads.run(Purpose.READING, "", lambda _: work())


# The module of lineage is imported where it is needed, as it comes with numpy: a quarter of a second of every start.


def _opened_lineage(corpus: Corpus, folder: Path) -> Lineage | None:
    from rlm_server.contexts.fingerprints import FingerprintsUnusable
    from rlm_server.contexts.lineage import Lineage

    try:
        return Lineage(corpus, folder)
    except FingerprintsUnusable:
        return None


def _built_lineage(corpus: Corpus, folder: Path, cancelled: Cancelled) -> Lineage:
    from rlm_server.contexts.lineage import Lineage

    folder.mkdir(exist_ok=True)
    return Lineage.open(corpus, folder, cancelled)
