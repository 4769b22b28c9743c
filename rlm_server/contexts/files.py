"""The files of the contents that are kept: local, and in the object store where there is one.

With an object store, the local folder is a cache. A content that is missing or damaged there is fetched again. The
least recently used contents make room.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from weakref import WeakValueDictionary

from rlm_server.contexts.context_table import Content, ContextTable
from rlm_server.contexts.local_files import ContentDamaged, LocalContextFiles
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

    def corpus(self, content: Content) -> Corpus:
        """Open a content whose files are local.

        Raises:
            ContentDamaged: a file is not what was written, as far as its size and time tell.
        """
        return self._local.corpus(content.id, content.files)

    async def lineage(self, content: Content) -> Lineage:
        """Open the lineage of a content, which finds its parts in prompts. Its index is built once, and stays local.

        Raises:
            ContentDamaged: as `corpus` does.
            OSError: the index cannot be written.
        """
        lock = self._indexing.setdefault(content.id, asyncio.Lock())
        folder = self._local.path(content.id, "lineage")
        corpus, tenant, run = self.corpus(content), content.tenant, self._threads.run
        async with lock:
            there = await run(Purpose.READING, tenant, lambda _: _opened_lineage(corpus, folder))
            if there is not None:
                return there
            return await run(Purpose.INDEXING, tenant, lambda cancelled: _built_lineage(corpus, folder, cancelled))

    async def make_local(self, content: Content) -> None:
        """Make sure that a pinned content's files are local and whole. If not, they are fetched from the object store.

        Raises:
            ContentDamaged: a file is not what was written.
            ObjectStoreUnavailable: the object store failed.
            OSError: a file cannot be written.
        """
        if self._objects:
            lock = self._fetching.setdefault(content.id, asyncio.Lock())
            async with lock:
                await self._fetch_if_needed(content, self._objects)
        self.corpus(content)

    async def _fetch_if_needed(self, content: Content, objects: ObjectStore) -> None:
        if self._local.has(content.id):
            # Files that another user has mapped are not replaced.
            if self._pins.users(content.id) > 1 or self._is_whole(content):
                return
            await self.clear(content.id)
        await objects.fetch(content.id, content.files, self._local)
        await self.trim()

    def _is_whole(self, content: Content) -> bool:
        try:
            self.corpus(content)
        except ContentDamaged:
            return False
        return True

    async def store(self, content_id: str) -> None:
        """Copy local files into the object store, where there is one.

        Raises:
            ObjectStoreUnavailable: the object store failed.
            OSError: a file cannot be read.
        """
        if self._objects:
            await self._objects.put(content_id, self._local)

    async def erase(self, content_id: str) -> None:
        """Remove a content's files everywhere.

        Raises:
            ObjectStoreUnavailable: the object store failed.
        """
        await self.clear(content_id)
        if self._objects:
            await self._objects.remove(content_id)

    async def clear(self, content_id: str) -> None:
        """Remove a content's local files."""
        aside = self._local.take_away(content_id)
        if aside:
            await run_to_completion(self._upkeep(partial(self._local.clear, aside.name)))

    async def clear_unknown(self, known: set[str]) -> None:
        """Remove what is in the local folder and belongs to no content that is known."""
        for name in await self._upkeep(self._local.names) - known:
            await self._upkeep(partial(self._local.clear, name))

    async def trim(self) -> None:
        """With an object store, keep at most `cache_bytes` of local files: those that were used last."""
        if self._objects is None:
            return
        names = await self._upkeep(self._local.names)
        used_at: dict[str, int] = {}
        sizes: dict[str, int] = {}
        for use in await self._table.uses():
            if use.content_id in names:
                at = self._pins.used_at(use.context_id, use.used_at)
                used_at[use.content_id] = max(at, used_at.get(use.content_id, at))
                sizes[use.content_id] = use.size_bytes
        over = sum(sizes.values()) - self._cache_bytes
        for content_id in sorted(used_at, key=used_at.__getitem__):
            if over > 0 and not self._pins.users(content_id):
                over -= sizes[content_id]
                await self.clear(content_id)

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
